//! Clients and relays that break the rules.

use anyreach_masque::{carrier::CarrierKind, h2::connect};
use anyreach_wire::capsule::encode_datagram_header;
use bytes::Bytes;
use h2::Reason;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::support::{
    RawClient, Recorder, Relay, connect_udp, pair, request, reset_reason, until, within,
};

/// Streams that cannot become capsules, and what the tunnel is told.
const MALFORMED: [(&[u8], &str); 5] = [
    (&[0x12, 0x01, 0x00], "context 0"),
    (&[0x12, 0x09], "does not hold exactly its fields"),
    (&[0x11, 0x02, 0x03, 0x05], "IP version 5"),
    (&[0x13, 0x00], "does not hold exactly its fields"),
    (
        &[0x00, 0x80, 0x02, 0x00, 0x00, 0x00],
        "more than a UDP packet",
    ),
];

#[tokio::test]
async fn malformed_capsules_reset_the_stream() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    for (n, (bytes, message)) in MALFORMED.into_iter().enumerate() {
        let (_recv, mut send) = client.open().await;
        let opened = relay.service.opened(n).await;
        send.send_data(Bytes::from_static(bytes), false).unwrap();
        let reason = opened.input.closed().await;
        assert!(reason.contains(message), "{reason}");
        assert_eq!(reset_reason(&mut send).await, Reason::PROTOCOL_ERROR);
        assert_eq!(opened.input.heard().closed.len(), 1);
    }
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_capsule_is_a_violation() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, mut send) = client.open().await;
    let opened = relay.service.opened(0).await;
    let mut half = encode_datagram_header(100).to_vec();
    half.extend_from_slice(&[0; 50]);
    send.send_data(Bytes::from(half), true).unwrap();
    let reason = opened.input.closed().await;
    assert!(reason.contains("inside a capsule"), "{reason}");
    assert!(opened.input.heard().datagrams.is_empty());
}

#[tokio::test]
async fn a_relay_that_sends_rubbish_is_cut_off() {
    let (near, far) = duplex(1 << 16);
    tokio::spawn(async move {
        let mut connection = h2::server::Builder::new()
            .enable_connect_protocol()
            .handshake::<_, Bytes>(far)
            .await
            .unwrap();
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(&[0x12, 0x01, 0x00]), false)
                .unwrap();
            tokio::spawn(async move {
                let reason = reset_reason(&mut send).await;
                assert_eq!(reason, Reason::PROTOCOL_ERROR);
            });
        }
    });
    let carrier = within(connect(near, CarrierKind::H2, None)).await.unwrap();
    let input = Recorder::new();
    use anyreach_masque::carrier::ClientCarrier;
    let (_, out) = within(carrier.open(request("/tunnel"), input.clone()))
        .await
        .unwrap();
    let reason = input.closed().await;
    assert!(reason.contains("context 0"), "{reason}");
    until(|| out.send_datagram(b"", b"x").is_err()).await;
}

#[tokio::test]
async fn a_flood_of_withdrawn_requests_ends_the_connection_alone() {
    let pair = pair().await;
    let client = RawClient::new(&pair.relay).await;
    let mut requests = client.requests.clone();
    let mut made = 0;
    // Whether h2 notices first or the pace of requests does: nobody needs thousands.
    while made < 5000 {
        let Ok(ready) = within(requests.ready()).await else {
            break;
        };
        requests = ready;
        let Ok((response, mut send)) = requests.send_request(connect_udp("/never"), false) else {
            break;
        };
        send.send_reset(Reason::CANCEL);
        drop(response);
        made += 1;
    }
    let ended = within(client.connection).await.unwrap();
    // The reset of the TCP connection may overtake the GOAWAY: there is much that was not read.
    assert!(ended.is_err(), "after {made}");
    // Others go on.
    pair.out.send_datagram(b"", b"still here").unwrap();
    let heard = pair
        .relay_side
        .input
        .until(|heard| !heard.datagrams.is_empty())
        .await;
    assert_eq!(heard.datagrams, ["still here"]);
}

#[tokio::test]
async fn a_flood_of_accepted_requests_ends_the_connection() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let mut made = 0;
    while made < 5000 {
        let Ok((_response, mut send)) = client.send(connect_udp("/tunnel")).await else {
            break;
        };
        send.send_reset(Reason::CANCEL);
        made += 1;
    }
    assert!((100..1000).contains(&made), "{made} requests");
    let ended = within(client.connection).await.unwrap();
    let reason = ended.unwrap_err().reason();
    assert!(matches!(reason, None | Some(Reason::ENHANCE_YOUR_CALM)));
    until(|| relay.service.count() >= 100).await;
    for n in 0..relay.service.count() {
        let opened = relay.service.opened(n).await;
        opened.input.closed().await;
        assert_eq!(opened.input.heard().closed.len(), 1);
    }
}

#[tokio::test]
async fn more_tunnels_than_allowed_wait_for_others_to_end() {
    let relay = Relay::start().await;
    let carrier = relay.dial().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(
            within(carrier.open(request("/tunnel"), Recorder::new()))
                .await
                .unwrap(),
        );
    }
    let one_more = carrier.open(request("/one/more"), Recorder::new());
    tokio::pin!(one_more);
    tokio::select! {
        biased;
        result = &mut one_more => panic!("{result:?}"),
        _ = carrier.closed() => panic!("the connection must stay"),
        () = tokio::task::yield_now() => {}
    }
    let (_, first) = held.swap_remove(0);
    first.close(anyreach_masque::carrier::Close::Done);
    within(one_more).await.unwrap();
    assert_eq!(relay.service.count(), 65);
}

#[tokio::test]
async fn rubbish_instead_of_http_ends_the_connection() {
    let relay = Relay::start().await;
    for rubbish in [
        &b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n"[..],
        &[0; 100],
        // A preface, then a frame larger than allowed.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    ] {
        let mut stream = relay.raw_tls().await;
        stream.write_all(rubbish).await.unwrap();
        let mut answer = Vec::new();
        // SETTINGS and GOAWAY may come; the end does.
        let _ = within(stream.read_to_end(&mut answer)).await;
    }
    assert_eq!(relay.service.count(), 0);
    within(relay.dial().await.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_flood_of_tiny_data_frames_is_taken() {
    let pair = pair().await;
    let client = RawClient::new(&pair.relay).await;
    let (_recv, mut send) = client.open().await;
    let opened = pair.relay.service.opened(1).await;
    for _ in 0..5000 {
        let mut capsule = encode_datagram_header(1).to_vec();
        capsule.push(7);
        for byte in capsule {
            if send.send_data(Bytes::from(vec![byte]), false).is_err() {
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    opened
        .input
        .until(|heard| heard.datagrams.len() == 5000 || !heard.closed.is_empty())
        .await;
    // Whatever becomes of such a client, others are served.
    pair.out.send_datagram(b"", b"still here").unwrap();
    pair.relay_side
        .input
        .until(|heard| !heard.datagrams.is_empty())
        .await;
}
