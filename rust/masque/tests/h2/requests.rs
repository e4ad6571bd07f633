//! Which requests reach the service, and what becomes of the others.

use anyreach_masque::carrier::CarrierKind;
use h2::ext::Protocol;
use http::{HeaderValue, Method, Request, StatusCode, Version};

use crate::support::{RawClient, Recorder, Relay, connect_udp, request, within};

#[tokio::test]
async fn the_service_learns_who_asks_from_where_and_what() {
    let relay = Relay::start().await;
    let node = anyreach_quic::Identity::generate().unwrap();
    let carrier = relay.dial_as(&node).await.unwrap().carrier;
    assert_eq!(carrier.kind(), CarrierKind::H2);
    assert_eq!(carrier.peer_id(), Some(relay.peer_id));
    within(carrier.open(request("/some/path"), Recorder::new()))
        .await
        .unwrap();
    let opened = relay.service.opened(0).await;
    assert_eq!(opened.path, "/some/path");
    assert_eq!(opened.client.peer_id, Some(node.peer_id()));
    assert_eq!(opened.client.carrier, CarrierKind::H2);
    assert!(opened.client.remote.ip().is_loopback());
    assert_eq!(opened.client.local, Some(relay.addr));
}

#[tokio::test]
async fn a_refusal_says_what_the_relay_said() {
    let relay = Relay::start().await;
    let carrier = relay.dial().await;
    let input = Recorder::new();
    let error = within(carrier.open(request("/forbidden"), input.clone()))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "refused");
    assert!(error.detail.contains("403"), "{error}");
    let said = "proxy-status: relay; error=destination_ip_prohibited";
    assert!(error.detail.contains(said), "{error}");
    assert!(input.heard().closed.is_empty(), "it never was open");
    within(carrier.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn other_requests_do_not_reach_the_service() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let get = Request::get("https://relay.test/").body(()).unwrap();
    let mut tcp = Request::new(());
    *tcp.method_mut() = Method::CONNECT;
    *tcp.uri_mut() = "192.0.2.1:22".parse().unwrap();
    let mut websocket = connect_udp("/chat");
    let protocol = Protocol::from_static("websocket");
    websocket.extensions_mut().insert(protocol);
    for (mut request, status) in [
        (get, StatusCode::NOT_FOUND),
        (tcp, StatusCode::NOT_IMPLEMENTED),
        (websocket, StatusCode::NOT_IMPLEMENTED),
    ] {
        *request.version_mut() = Version::HTTP_2;
        let (response, _send) = client.send(request).await.unwrap();
        assert_eq!(response.status(), status);
        let proxy_status = &response.headers()["proxy-status"];
        let text = proxy_status.to_str().unwrap();
        assert!(text.starts_with("anyreach; error="), "{text}");
    }
    assert_eq!(relay.service.count(), 0);
    drop(client.open().await);
}

#[tokio::test]
async fn fields_beyond_the_limit_are_refused_by_themselves() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let mut fits = connect_udp("/fits");
    let long = HeaderValue::try_from("x".repeat(15 << 10)).unwrap();
    fits.headers_mut().insert("x-long", long);
    let (response, _send) = client.send(fits).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut exceeds = connect_udp("/exceeds");
    let longer = HeaderValue::try_from("x".repeat(17 << 10)).unwrap();
    exceeds.headers_mut().insert("x-long", longer);
    match client.send(exceeds).await {
        Ok((response, _)) => {
            assert_eq!(
                response.status(),
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            );
        }
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    assert_eq!(relay.service.count(), 1);
}
