//! Peers that say much at once, and do listen.

use std::sync::Arc;

use anyreach_masque::{
    carrier::{
        Accepted, BoxFuture, CarrierKind, Client, Decision, ProtocolViolation, Service, TunnelIn,
        TunnelOut,
    },
    h2::serve,
};
use anyreach_wire::{capsule::Capsule, context::ContextId};
use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::io::duplex;

use crate::support::{RawClient, within};

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

/// All of them in one frame: the answers must not count as unread before anybody could have read
/// them.
#[tokio::test]
async fn many_registrations_at_once_are_answered() {
    let (near, far) = duplex(64 << 10);
    let who = Client {
        peer_id: None,
        remote: ([127, 0, 0, 1], 1).into(),
        local: None,
        carrier: CarrierKind::H2,
    };
    let serving = tokio::spawn(serve(far, who, Arc::new(Answering)));
    let client = RawClient::configured(near, &h2::client::Builder::new()).await;
    let (mut recv, mut send) = client.open().await;
    let (asked, answered) = registrations();
    send.send_data(asked.into(), false).unwrap();
    let mut received = 0;
    while received < answered {
        let data = within(recv.data()).await.expect("no end");
        received += data.expect("no reset").len();
    }
    serving.abort();
}
