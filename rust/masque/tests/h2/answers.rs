//! Peers that say much at once, and do listen.

use std::sync::Arc;

use anyreach_masque::{
    carrier::{CarrierKind, Client},
    h2::serve,
};
use tokio::io::duplex;

use crate::{
    answering::{Answering, registrations},
    support::{RawClient, within},
};

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
