//! How tunnels, connections and their tasks end.

use anyreach_masque::{
    carrier::{CapsuleError, ClientCarrier, Close, DatagramError},
    h3::connect,
};
use anyreach_wire::{capsule::Capsule, context::ContextId};
use bytes::Bytes;
use noq::{TransportConfig, VarInt};
use tokio::runtime::Handle;

use crate::support::{
    BAD, Event, Pair, client_endpoint, connected, raw, recorder, request, server_endpoint, until,
    within,
};

#[tokio::test]
async fn either_side_can_close_in_good_order() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    for client_closes in [true, false] {
        let (mut near, mut far) = pair.tunnel(&carrier).await;
        let (closing, other) = if client_closes {
            (&near.out, &mut far.events)
        } else {
            (&far.out, &mut near.events)
        };
        let last = Capsule::CompressionClose(ContextId::from_u32(2));
        closing.send_capsule(last.to_bytes()).unwrap();
        closing.close(Close::Done);
        closing.close(Close::Done);
        assert_eq!(
            closing.send_capsule(Bytes::new()),
            Err(CapsuleError::Closed)
        );
        assert_eq!(closing.send_datagram(&[], &[]), Err(DatagramError::Closed));
        assert_eq!(other.next().await, Some(Event::Capsule(last)));
        assert_eq!(near.events.closed().await, reason(!client_closes));
        assert_eq!(far.events.closed().await, reason(client_closes));
        assert_eq!(
            near.out.send_capsule(Bytes::new()),
            Err(CapsuleError::Closed)
        );
        assert_eq!(far.out.send_datagram(&[], &[]), Err(DatagramError::Closed));
    }
    assert_eq!(pair.dialed.close_reason(), None);
}

fn reason(by_peer: bool) -> &'static str {
    if by_peer {
        "the peer closed the tunnel"
    } else {
        "the tunnel was closed by this side"
    }
}

#[tokio::test]
async fn a_violation_resets_the_tunnel_and_no_other() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (mut other_near, mut other_far) = pair.tunnel(&carrier).await;
    for client_is_bad in [true, false] {
        let (mut near, mut far) = pair.tunnel(&carrier).await;
        let (bad, good) = if client_is_bad {
            (&mut near, &mut far.events)
        } else {
            far.out.send_datagram(&[], BAD).unwrap();
            assert_eq!(near.events.closed().await, "a bad datagram");
            assert!(far.events.closed().await.contains("H3_DATAGRAM_ERROR"));
            continue;
        };
        bad.out.send_datagram(&[], BAD).unwrap();
        assert_eq!(good.closed().await, "a bad datagram");
        let reason = bad.events.closed().await;
        assert!(reason.contains("H3_DATAGRAM_ERROR"), "{reason}");
    }
    other_near.out.send_datagram(&[], b"fine").unwrap();
    assert_eq!(other_far.events.datagram().await, b"fine"[..]);
    other_far.out.close(Close::DatagramError);
    assert!(
        other_near
            .events
            .closed()
            .await
            .contains("H3_DATAGRAM_ERROR")
    );
}

#[tokio::test]
async fn an_end_inside_a_capsule_is_malformed() {
    let mut pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let bytes = [raw::connect_udp("192.0.2.1"), raw::data(&[0, 5, 1, 2])].concat();
    let (mut send, mut recv) = raw::stream(&pair.dialed, &bytes).await;
    let mut far = pair.opened().await;
    send.finish().unwrap();
    assert!(far.events.closed().await.contains("inside a capsule"));
    let error = within(recv.read_to_end(10_000)).await.unwrap_err();
    assert!(error.to_string().contains("error 51"), "{error}");
}

#[tokio::test]
async fn a_reset_ends_the_tunnel() {
    let mut pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let (mut send, _recv) = raw::stream(&pair.dialed, &raw::connect_udp("192.0.2.1")).await;
    let mut far = pair.opened().await;
    send.reset(VarInt::from_u32(0x10c)).unwrap();
    assert!(far.events.closed().await.contains("H3_REQUEST_CANCELLED"));
}

#[tokio::test]
async fn a_lost_connection_ends_every_tunnel_once() {
    for by_client in [true, false] {
        let mut pair = Pair::new().await;
        let carrier = pair.carrier().await;
        let mut tunnels = Vec::new();
        for _ in 0..5 {
            tunnels.push(pair.tunnel(&carrier).await);
        }
        if by_client {
            drop(carrier);
        } else {
            pair.serving.abort();
        }
        for (near, far) in &mut tunnels {
            near.events.closed().await;
            far.events.closed().await;
            assert_eq!(near.out.send_datagram(&[], &[]), Err(DatagramError::Closed));
        }
        within(pair.dialed.closed()).await;
        within(pair.accepted.closed()).await;
    }
}

#[tokio::test]
async fn the_end_of_a_carrier_is_told() {
    let pair = Pair::new().await;
    let carrier = pair.carrier().await;
    pair.accepted.close(0x100u32.into(), b"going away");
    let reason = within(carrier.closed()).await;
    assert!(
        reason.contains("H3_NO_ERROR") && reason.contains("going away"),
        "{reason}"
    );
    let (input, _events) = recorder();
    let error = within(carrier.open(request("192.0.2.1"), input)).await;
    assert_eq!(error.map(|_| ()).unwrap_err().reason, "closed");
}

#[tokio::test]
async fn a_probe_closes_a_silent_connection_and_no_other() {
    let pair = Pair::new().await;
    let carrier = pair.carrier().await;
    carrier.probe();
    carrier.probe();
    let before = pair.dialed.stats();
    until(|| {
        let now = pair.dialed.stats();
        now.frame_tx.ping > before.frame_tx.ping && now.udp_rx.datagrams > before.udp_rx.datagrams
    })
    .await;
    assert_eq!(pair.dialed.close_reason(), None);
    // The relay goes, without a word: packets to its port lead nowhere.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    pair.server.rebind(silent).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(4), async {
        loop {
            carrier.probe();
            tokio::select! {
                reason = carrier.closed() => break reason,
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn goaway_lets_the_last_tunnel_end_and_no_new_one_begin() {
    let server = server_endpoint(TransportConfig::default());
    let client = client_endpoint(TransportConfig::default());
    let (dialed, accepted) = connected(&client, &server).await;
    // Extended CONNECT and HTTP Datagrams.
    let mut control = raw::control(&accepted, &[0x08, 1, 0x33, 1]).await;
    let carrier = within(connect(dialed.clone(), None)).await.unwrap();
    let (input, mut events) = recorder();
    let (answered, opened) = within(async {
        tokio::join!(
            async {
                let (mut send, recv) = accepted.accept_bi().await.unwrap();
                send.write_all(&raw::headers(&[(":status", "200")]))
                    .await
                    .unwrap();
                (send, recv)
            },
            carrier.open(request("192.0.2.1"), input)
        )
    })
    .await;
    let (mut send, _recv) = answered;
    let (_, out) = opened.unwrap();
    within(control.write_all(&[0x07, 1, 4])).await.unwrap();
    // Refused once GOAWAY is in, and ignored by the relay before.
    let refused = || async {
        let (input, _events) = recorder();
        let opening = carrier.open(request("192.0.2.1"), input);
        let brief = std::time::Duration::from_millis(50);
        matches!(
            tokio::time::timeout(brief, opening).await,
            Ok(Err(error)) if error.reason == "closed" && error.detail.contains("GOAWAY")
        )
    };
    within(async { while !refused().await {} }).await;
    out.send_datagram(&[], b"still there").unwrap();
    assert_eq!(
        within(accepted.read_datagram()).await.unwrap(),
        b"\0still there"[..]
    );
    assert_eq!(dialed.close_reason(), None);
    send.finish().unwrap();
    assert_eq!(events.closed().await, "the peer closed the tunnel");
    let end = within(accepted.closed()).await.to_string();
    assert!(end.contains("256"), "H3_NO_ERROR: {end}");
}

#[tokio::test]
async fn no_task_is_left_behind() {
    let metrics = Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    {
        let mut pair = Pair::new().await;
        let carrier = pair.carrier().await;
        let mut tunnels = Vec::new();
        for _ in 0..10 {
            tunnels.push(pair.tunnel(&carrier).await);
        }
        tunnels[0].0.out.close(Close::Done);
        tunnels[1].1.out.close(Close::DatagramError);
        carrier.probe();
        drop(carrier);
        within(pair.serving).await.unwrap();
        within(pair.client.wait_idle()).await;
        within(pair.server.wait_idle()).await;
    }
    until(|| metrics.num_alive_tasks() <= before).await;
}
