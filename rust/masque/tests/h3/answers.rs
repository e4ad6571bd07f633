//! Peers that say much at once, and do listen.

use std::sync::Arc;

use anyreach_masque::{
    carrier::{CarrierKind, Client},
    h3::{MAX_REQUESTS, serve},
};
use noq::TransportConfig;

use crate::{
    answering::{Answering, registrations},
    support::{Pair, client_endpoint, connected, raw, server_endpoint, within},
};

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
