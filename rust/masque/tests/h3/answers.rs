//! Peers that say much at once, and do listen.

use std::sync::Arc;

use anyreach_masque::{
    carrier::{
        Accepted, BoxFuture, CarrierKind, Client, Decision, ProtocolViolation, Service, TunnelIn,
        TunnelOut,
    },
    h3::{MAX_REQUESTS, serve},
};
use anyreach_wire::{capsule::Capsule, context::ContextId};
use bytes::Bytes;
use http::{HeaderMap, Request};
use noq::TransportConfig;

use crate::support::{Pair, client_endpoint, connected, raw, server_endpoint, within};

/// As many as a relay keeps, and twice what a carrier queues.
const REGISTRATIONS: u32 = 128;

/// Answers every registration, as a relay does.
struct Answering;

struct Answer(Arc<dyn TunnelOut>);

impl Service for Answering {
    fn open<'a>(
        &'a self,
        _: &'a Client,
        _: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            let headers = HeaderMap::new();
            let input: Arc<dyn TunnelIn> = Arc::new(Answer(out));
            Ok((Accepted { headers }, input))
        })
    }
}

impl TunnelIn for Answer {
    fn datagram(&self, _: Bytes) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        let answer = Capsule::CompressionAck(capsule.context());
        let sent = self.0.send_capsule(answer.to_bytes());
        sent.map_err(|error| ProtocolViolation(error.to_string()))
    }

    fn closed(&self, _: String) {}
}

/// Registrations, and as many bytes as the answers to them have.
fn registrations() -> (Vec<u8>, usize) {
    let ids = (1..=REGISTRATIONS).map(|n| ContextId::from_u32(2 * n));
    let (mut asked, mut answered) = (Vec::new(), 0);
    for context in ids {
        let target = Some(([192, 0, 2, 1], 4433).into());
        Capsule::CompressionAssign { context, target }.encode(&mut asked);
        answered += Capsule::CompressionAck(context).to_bytes().len();
    }
    (asked, answered)
}

/// All of them in one packet or two: the answers must not count as unread before anybody could have
/// read them.
#[tokio::test]
async fn many_registrations_at_once_are_answered() {
    let server = server_endpoint(TransportConfig::default());
    let client = client_endpoint(TransportConfig::default());
    let (dialed, accepted) = connected(&client, &server).await;
    let who = Client {
        peer_id: None,
        remote: client.local_addr().unwrap(),
        local: None,
        carrier: CarrierKind::H3,
    };
    let serving = tokio::spawn(serve(accepted, who, Arc::new(Answering)));
    let (asked, answered) = registrations();
    let bytes = [raw::connect_udp("192.0.2.1"), raw::data(&asked)].concat();
    let (_send, mut recv) = raw::stream(&dialed, &bytes).await;
    let mut received = 0;
    while received < answered {
        let chunk = within(recv.read_chunk(4096)).await;
        received += chunk.expect("no reset").expect("no end").len();
    }
    serving.abort();
}

/// Requests made and reset faster than anybody needs end the connection.
#[tokio::test]
async fn a_flood_of_requests_ends_the_connection() {
    let pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let flood = async {
        for _ in 0..100 * MAX_REQUESTS {
            let (mut send, mut recv) = pair.dialed.open_bi().await?;
            let _ = send.write_all(&raw::connect_udp("192.0.2.1")).await;
            let _ = send.reset(0x10c_u32.into());
            let _ = recv.stop(0x10c_u32.into());
        }
        Ok::<_, noq::ConnectionError>(())
    };
    let error = within(flood).await.expect_err("it is closed");
    let noq::ConnectionError::ApplicationClosed(close) = error else {
        panic!("{error}");
    };
    assert_eq!(close.error_code.into_inner(), 0x107, "H3_EXCESSIVE_LOAD");
}
