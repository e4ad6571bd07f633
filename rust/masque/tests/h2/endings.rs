//! How tunnels and connections end, and that everybody is told once.

use std::{sync::Arc, time::Duration};

use anyreach_masque::{
    carrier::{CapsuleError, CarrierKind, Close, DatagramError},
    h2::connect,
};
use bytes::Bytes;
use h2::Reason;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::support::{
    RawClient, Recorder, Relay, connect_udp, pair, request, reset_reason, until, within,
};

#[tokio::test]
async fn the_client_ends_a_tunnel() {
    let pair = pair().await;
    pair.out.send_datagram(b"", b"last words").unwrap();
    pair.out.close(Close::Done);
    pair.out.close(Close::Done);
    assert_eq!(pair.input.closed().await, "closed by this side");
    assert_eq!(
        pair.relay_side.input.closed().await,
        "the peer ended the tunnel"
    );
    assert_eq!(pair.relay_side.input.heard().datagrams, ["last words"]);
    assert_eq!(
        pair.out.send_datagram(b"", b"x"),
        Err(DatagramError::Closed)
    );
    assert_eq!(
        pair.out.send_capsule(Bytes::new()),
        Err(CapsuleError::Closed)
    );
    // The connection stays.
    let again = Recorder::new();
    within(pair.carrier.open(request("/again"), again.clone()))
        .await
        .unwrap();
    assert_eq!(pair.input.heard().closed.len(), 1);
    assert_eq!(pair.relay_side.input.heard().closed.len(), 1);
}

#[tokio::test]
async fn the_relay_ends_a_tunnel() {
    let pair = pair().await;
    pair.relay_side
        .out
        .send_datagram(b"", b"last words")
        .unwrap();
    pair.relay_side.out.close(Close::Done);
    assert_eq!(pair.input.closed().await, "the peer ended the tunnel");
    assert_eq!(pair.input.heard().datagrams, ["last words"]);
    assert_eq!(pair.relay_side.input.closed().await, "closed by this side");
    until(|| pair.out.send_datagram(b"", b"x") == Err(DatagramError::Closed)).await;
}

#[tokio::test]
async fn a_violation_resets_the_stream_and_nothing_else() {
    let pair = pair().await;
    pair.relay_side.out.close(Close::DatagramError);
    assert_eq!(
        pair.relay_side.input.closed().await,
        "closed by this side after a violation"
    );
    let reason = pair.input.closed().await;
    assert!(reason.contains("the peer reset the stream"), "{reason}");
    within(pair.carrier.open(request("/again"), Recorder::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_tunnel_refuses_is_a_violation() {
    let pair = pair().await;
    pair.out.send_datagram(b"viola", b"tion").unwrap();
    assert_eq!(pair.relay_side.input.closed().await, "as the test asked");
    let reason = pair.input.closed().await;
    assert!(reason.contains("the peer reset the stream"), "{reason}");
}

#[tokio::test]
async fn a_reset_by_the_peer_ends_the_tunnel() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, mut send) = client.open().await;
    let opened = relay.service.opened(0).await;
    send.send_reset(Reason::CANCEL);
    let reason = opened.input.closed().await;
    assert!(reason.contains("the peer reset the stream"), "{reason}");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_cannot_hold_the_end_up() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, mut send) = client.open().await;
    let opened = relay.service.opened(0).await;
    for _ in 0..300 {
        opened.out.send_datagram(&[], &[0; 1200]).unwrap();
        tokio::task::yield_now().await;
    }
    opened.out.close(Close::Done);
    assert_eq!(opened.input.closed().await, "closed by this side");
    // Neither half ends by itself, so the stream is reset after a while.
    assert_eq!(reset_reason(&mut send).await, Reason::CANCEL);
}

#[tokio::test]
async fn dropping_the_carrier_closes_connection_and_tunnels() {
    let pair = pair().await;
    drop(pair.carrier);
    assert_eq!(pair.input.closed().await, "closed by this side");
    pair.relay_side.input.closed().await;
    assert_eq!(
        pair.out.send_datagram(b"", b"x"),
        Err(DatagramError::Closed)
    );
}

#[tokio::test]
async fn a_relay_that_stops_tells_both_sides() {
    let pair = pair().await;
    pair.relay.task.abort();
    let reason = within(pair.carrier.closed()).await;
    assert!(!reason.is_empty());
    pair.input.closed().await;
    let reason = pair.relay_side.input.closed().await;
    assert_eq!(reason, "the connection was closed by this side");
    let error = within(pair.carrier.open(request("/more"), Recorder::new()))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "closed");
    assert_eq!(pair.input.heard().closed.len(), 1);
    assert_eq!(pair.relay_side.input.heard().closed.len(), 1);
}

#[tokio::test]
async fn a_client_that_vanishes_closes_its_tunnels() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, _send) = client.open().await;
    let opened = relay.service.opened(0).await;
    client.connection.abort();
    opened.input.closed().await;
    until(|| opened.out.send_datagram(b"", b"x") == Err(DatagramError::Closed)).await;
    assert_eq!(opened.input.heard().closed.len(), 1);
}

#[tokio::test]
async fn a_request_given_up_is_withdrawn() {
    let relay = Relay::start().await;
    let carrier = relay.dial().await;
    let input = Recorder::new();
    let asking = tokio::spawn({
        let (carrier, input) = (carrier.clone(), input.clone());
        async move { carrier.open(request("/never"), input).await.map(drop) }
    });
    let opened = relay.service.opened(0).await;
    assert_eq!(relay.service.abandoned(), 0);
    asking.abort();
    until(|| relay.service.abandoned() == 1).await;
    assert_eq!(
        opened.out.send_datagram(b"", b"x"),
        Err(DatagramError::Closed)
    );
    assert!(input.heard().closed.is_empty(), "it never was open");
    within(carrier.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_that_goes_withdraws_its_requests() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let mut requests = client.requests.clone();
    let (_response, _send) = requests.send_request(connect_udp("/never"), false).unwrap();
    relay.service.opened(0).await;
    client.connection.abort();
    until(|| relay.service.abandoned() == 1).await;
}

/// A line that can be cut without either end hearing of it.
async fn cuttable(target: std::net::SocketAddr) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let (cut, is_cut) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(target).await.unwrap();
        let (near, far) = (near.into_split(), far.into_split());
        for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
            let mut is_cut = is_cut.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let Ok(n @ 1..) = from.read(&mut buffer).await else {
                        return;
                    };
                    is_cut.wait_for(|cut| !cut).await.unwrap();
                    to.write_all(&buffer[..n]).await.unwrap();
                }
            });
        }
    });
    (addr, cut)
}

#[tokio::test]
async fn a_probe_notices_a_dead_line_and_leaves_a_living_one() {
    use anyreach_masque::h2::{Route, dial};
    let relay = Relay::start().await;
    let (addr, cut) = cuttable(relay.addr).await;
    let node = anyreach_quic::Identity::generate().unwrap();
    let dialed = within(dial(&relay.target(&node), &Route::Direct(vec![addr])))
        .await
        .unwrap();
    assert_eq!(dialed.address, Some(addr));
    let input = Recorder::new();
    let (_, out) = within(dialed.carrier.open(request("/tunnel"), input.clone()))
        .await
        .unwrap();
    let opened = relay.service.opened(0).await;

    let closed = dialed.carrier.closed();
    tokio::pin!(closed);
    dialed.carrier.probe();
    tokio::select! {
        reason = &mut closed => panic!("{reason}"),
        () = tokio::time::sleep(Duration::from_millis(800)) => {}
    }
    out.send_datagram(b"", b"alive").unwrap();
    opened
        .input
        .until(|heard| !heard.datagrams.is_empty())
        .await;

    cut.send_replace(true);
    let begun = tokio::time::Instant::now();
    dialed.carrier.probe();
    let reason = within(&mut closed).await;
    assert!(reason.contains("no answer to an HTTP/2 PING"), "{reason}");
    assert!(begun.elapsed() >= Duration::from_millis(490));
    assert!(begun.elapsed() < Duration::from_secs(5));
    let told = input.closed().await;
    assert!(told.contains("no answer"), "{told}");
}

#[tokio::test]
async fn other_servers_than_relays_are_told_apart() {
    // No HTTP/2 at all.
    let (near, mut far) = duplex(1 << 16);
    let server = tokio::spawn(async move {
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        far
    });
    let error = within(connect(near, CarrierKind::H2, None))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "http", "{error}");
    drop(server);

    // Closed at once.
    let (near, far) = duplex(1 << 16);
    drop(far);
    let error = within(connect(near, CarrierKind::H2, None))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "closed", "{error}");

    // HTTP/2 without extended CONNECT.
    let (near, far) = duplex(1 << 16);
    let server = tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        connection.accept().await.is_none()
    });
    let error = within(connect(near, CarrierKind::H2, None))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "no-connect-udp", "{error}");
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let (near, _far) = duplex(1 << 16);
    let error = connect(near, CarrierKind::H2, None).await.unwrap_err();
    assert_eq!(error.reason, "handshake-timeout");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_no_longer_answers_is_noticed_without_being_asked() {
    let (near, far) = duplex(1 << 16);
    let frozen = Arc::new(tokio::sync::Notify::new());
    let thaw = frozen.clone();
    tokio::spawn(async move {
        let mut connection = h2::server::Builder::new()
            .enable_connect_protocol()
            .handshake::<_, Bytes>(far)
            .await
            .unwrap();
        tokio::select! {
            _ = connection.accept() => {}
            () = thaw.notified() => std::future::pending().await,
        }
    });
    let carrier = connect(near, CarrierKind::H2, None).await.unwrap();
    let carrier: Arc<dyn anyreach_masque::carrier::ClientCarrier> = Arc::new(carrier);
    assert!(
        tokio::time::timeout(Duration::from_secs(300), carrier.closed())
            .await
            .is_err(),
        "a quiet relay that answers stays"
    );
    frozen.notify_one();
    let begun = tokio::time::Instant::now();
    let reason = carrier.closed().await;
    assert!(reason.contains("no answer"), "{reason}");
    assert!(begun.elapsed() < Duration::from_secs(60));
}
