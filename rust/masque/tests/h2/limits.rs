//! How many connections a listener takes, and for how long it waits for them.

use std::{net::SocketAddr, time::Duration};

use anyreach_masque::h2::Limits;
use anyreach_quic::Identity;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{RawClient, Recorder, Relay, request, until, within};

/// Whether the relay has closed the connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    !matches!(within(stream.read(&mut byte)).await, Ok(1..))
}

/// Connects without saying anything. The relay has counted it once it has not closed it: it looks
/// at connections in their order.
async fn silent(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

#[tokio::test]
async fn handshakes_are_bounded_and_end() {
    let relay = Relay::with_limits(Limits {
        handshakes: 2,
        ..Limits::default()
    })
    .await;
    let mut slow = [silent(relay.addr).await, silent(relay.addr).await];
    // Half a TLS record, and then nothing, is no better.
    slow[1].write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut third = silent(relay.addr).await;
    assert!(is_closed(&mut third).await);
    let node = Identity::generate().unwrap();
    let failed = relay.dial_as(&node).await.unwrap_err();
    assert_eq!(failed[0].reason, "closed", "{failed:?}");

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    for stream in &mut slow {
        assert!(is_closed(stream).await);
    }
    relay.dial_as(&node).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_and_make_room() {
    let relay = Relay::with_limits(Limits {
        connections: 2,
        ..Limits::default()
    })
    .await;
    let first = relay.dial().await;
    let second = relay.dial().await;
    let node = Identity::generate().unwrap();
    let failed = relay.dial_as(&node).await.unwrap_err();
    assert_eq!(failed[0].reason, "closed", "{failed:?}");
    within(first.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
    drop(second);
    within(async { while relay.dial_as(&node).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_connection_without_http_or_tunnel_is_closed() {
    let relay = Relay::start().await;
    let mut no_http = relay.raw_tls().await;
    let idle = RawClient::new(&relay).await;
    let busy = RawClient::new(&relay).await;
    let (_recv, _send) = busy.open().await;
    let opened = relay.service.opened(0).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    let mut byte = [0; 1000];
    while let Ok(1..) = within(no_http.read(&mut byte)).await {}
    assert!(!idle.connection.is_finished());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    until(|| idle.connection.is_finished()).await;
    opened.out.send_datagram(b"", b"still here").unwrap();
    assert!(!busy.connection.is_finished());
    assert!(opened.input.heard().closed.is_empty());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, _send) = client.open().await;
    let opened = relay.service.opened(0).await;
    // Its task is gone, but not its socket: as of a process that is stopped.
    let frozen = relay.raw_tls().await;
    let mut frozen = h2::client::handshake(frozen).await.unwrap();
    let (response, _send) = frozen
        .0
        .send_request(crate::support::connect_udp("/tunnel"), false)
        .unwrap();
    tokio::select! {
        _ = &mut frozen.1 => panic!("closed"),
        response = response => assert!(response.is_ok()),
    }
    let stopped = relay.service.opened(1).await;
    for seconds in [46, 21, 21] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        // The living one has its answer on the way before the clock moves on.
        let before = opened.out.rtt();
        if seconds == 46 {
            until(|| opened.out.rtt() != before).await;
        }
    }
    let reason = stopped.input.closed().await;
    assert!(reason.contains("no answer to an HTTP/2 PING"), "{reason}");
    assert!(opened.input.heard().closed.is_empty());
}

/// Runs in a process of its own, which has few file descriptors.
#[tokio::test]
#[ignore = "run by descriptors_may_run_out"]
async fn with_few_descriptors() {
    let relay = Relay::start().await;
    let node = Identity::generate().unwrap();
    let carrier = relay.dial_as(&node).await.unwrap().carrier;
    let mut hoard = Vec::new();
    let error = loop {
        match TcpStream::connect(relay.addr).await {
            Ok(stream) => hoard.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(24), "EMFILE, not {error}");
    // One descriptor comes back: for a client that connects, and whom the listener has none for.
    hoard.pop();
    let waiting = TcpStream::connect(relay.addr).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Who is there is served all the while.
    within(carrier.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
    drop((hoard, waiting));
    within(async { while relay.dial_as(&node).await.is_err() {} }).await;
}

#[cfg(unix)]
#[test]
fn descriptors_may_run_out() {
    let test = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\""])
        .arg(test)
        .args(["--exact", "limits::with_few_descriptors", "--ignored"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}
