//! Things in between: lines that are cut, proxies, certificates.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyreach_masque::{
    carrier::CarrierKind,
    client::{Credentials, Purpose, Trust},
    https::{ClientTrust, ServerCertificate},
    server::Listeners,
};
use anyreach_wire::uri_template::{Host, Template};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UdpSocket},
    task::AbortHandle,
};

use crate::{
    inner::{pattern, transferred, within},
    lab::{LOOPBACK, Node, RelayNode, dialed_from_outside, endpoint},
    scene::{is_closed, is_up, is_up_again},
};

/// A line for UDP that can be cut.
struct Wire {
    addr: SocketAddr,
    cut: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    /// For one client.
    async fn to(server: SocketAddr) -> Self {
        let near = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        let far = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        far.connect(server).await.unwrap();
        let addr = near.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = cut.clone();
        let task = tokio::spawn(async move {
            let (mut client, mut there, mut back) = (None, vec![0; 65_535], vec![0; 65_535]);
            loop {
                tokio::select! {
                    received = near.recv_from(&mut there) => {
                        let (length, from) = received.unwrap();
                        client = Some(from);
                        if !is_cut.load(Relaxed) {
                            let _ = far.send(&there[..length]).await;
                        }
                    }
                    received = far.recv(&mut back) => {
                        if let (Ok(length), Some(client), false) =
                            (received, client, is_cut.load(Relaxed))
                        {
                            let _ = near.send_to(&back[..length], client).await;
                        }
                    }
                }
            }
        });
        Self {
            addr,
            cut,
            task: task.abort_handle(),
        }
    }
}

/// An HTTP proxy that knows CONNECT; what it was asked for.
async fn proxy() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                asked.send(head).unwrap();
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (addr, requests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_udp_dies_a_probe_finds_out_and_tcp_takes_over() {
    let relay = RelayNode::new(true);
    let wire = Wire::to(relay.endpoint.local_addr()).await;
    let mut target = relay.target();
    target.udp = vec![wire.addr];
    let plan = [(CarrierKind::H3, 0), (CarrierKind::H2, 1_000)];
    let bob = Node::by(target, &plan, Purpose::Bind, |_, dialers| dialers);
    assert_eq!(within(is_up(&bob.tunnel)).await.carrier, CarrierKind::H3);
    let public = bob.public();
    let outside = endpoint(|_| ());
    let (out, inn) = dialed_from_outside(&outside, &bob).await;
    let outage = async {
        wire.cut.store(true, Relaxed);
        bob.tunnel.probe();
        is_up_again(&bob.tunnel, 2).await
    };
    let begun = std::time::Instant::now();
    let up = transferred(&out, &inn, &pattern(4 << 20), outage).await;
    assert_eq!(up.carrier, CarrierKind::H2);
    assert!(up.lost.is_some());
    assert_eq!(bob.public(), public);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // And back again, once it lives.
    wire.cut.store(false, Relaxed);
    let better = async {
        bob.tunnel.improve(vec![(CarrierKind::H3, Duration::ZERO)]);
        is_up_again(&bob.tunnel, 3).await
    };
    let up = transferred(&inn, &out, &pattern(4 << 20), better).await;
    assert_eq!((up.carrier, up.lost.clone()), (CarrierKind::H3, None));
    assert_eq!(bob.public(), public);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_asked_for_the_relay_and_sees_ciphertext_only() {
    let relay = RelayNode::new(true);
    let (proxy, mut requests) = proxy().await;
    let mut target = relay.target();
    target.proxy = Some(format!("http://me:secret@{proxy}").parse().unwrap());
    let plan = [(CarrierKind::H2Proxy, 0)];
    let bob = Node::by(target, &plan, Purpose::Bind, |_, dialers| dialers);
    let up = within(is_up(&bob.tunnel)).await;
    assert_eq!(
        (up.carrier, up.address),
        (CarrierKind::H2Proxy, Some(proxy))
    );
    assert_eq!(up.relay, relay.target().peer);
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with(&format!("CONNECT {} HTTP/1.1", relay.tcp)));
    assert!(request.contains("Proxy-Authorization: Basic "), "{request}");
    let outside = endpoint(|_| ());
    let (out, inn) = dialed_from_outside(&outside, &bob).await;
    transferred(&out, &inn, &pattern(1 << 20), async {}).await;
    transferred(&inn, &out, &pattern(1 << 20), async {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_proxy_there_is_no_way_through_one() {
    let relay = RelayNode::new(true);
    let bob = Node::begin(&relay, &[(CarrierKind::H2Proxy, 0)], Purpose::Bind);
    let closed = within(is_closed(&bob.tunnel)).await;
    assert_eq!(closed.attempts[0].reason, "unreachable");
}

/// To allow that TLS is inspected must cost nothing where it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_inspection_is_allowed_both_nodes_and_certificates_are_believed() {
    let certificate = ServerCertificate::self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = std::env::temp_dir().join(format!("either-{}.pem", std::process::id()));
    std::fs::write(&file, certificate.to_pem()).unwrap();
    let trust = ClientTrust::only(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let listeners = Listeners {
        https: Some(((LOOPBACK, 0).into(), certificate)),
        ..Listeners::default()
    };
    let relay = RelayNode::with(true, listeners);
    let https = relay.server.as_ref().unwrap().https_addr().unwrap();
    for (at_certificate, carrier) in [
        (false, CarrierKind::H3),
        (false, CarrierKind::H2),
        (true, CarrierKind::H3),
        (true, CarrierKind::H2),
    ] {
        let mut target = relay.target();
        target.trust = Trust::NodeOrWeb;
        if at_certificate {
            let host = Host::parse("127.0.0.1").unwrap();
            target.template = Template::well_known(host, https.port());
            (target.udp, target.tcp) = (vec![https], vec![https]);
        }
        let bob = Node::by(
            target,
            &[(carrier, 0)],
            Purpose::Bind,
            |(target, identity), dialers| {
                target.credentials = Credentials::Token(identity.clone());
                dialers.with_web(&trust, false).unwrap()
            },
        );
        let up = within(is_up(&bob.tunnel)).await;
        let proved = (!at_certificate).then_some(relay.target().peer).flatten();
        assert_eq!((up.carrier, up.relay), (carrier, proved));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_says_who_we_are_where_certificates_do_not() {
    let certificate = ServerCertificate::self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = std::env::temp_dir().join(format!("client-{}.pem", std::process::id()));
    std::fs::write(&file, certificate.to_pem()).unwrap();
    let trust = ClientTrust::only(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let listeners = Listeners {
        https: Some(((LOOPBACK, 0).into(), certificate)),
        ..Listeners::default()
    };
    let relay = RelayNode::with(true, listeners);
    let https = relay.server.as_ref().unwrap().https_addr().unwrap();
    for carrier in [CarrierKind::H3, CarrierKind::H2] {
        let mut target = relay.target();
        target.template = Template::well_known(Host::parse("127.0.0.1").unwrap(), https.port());
        target.trust = Trust::Web;
        (target.udp, target.tcp) = (vec![https], vec![https]);
        // A relay that lends addresses wants to know to whom.
        let stranger = Node::by(
            target.clone(),
            &[(carrier, 0)],
            Purpose::Bind,
            |_, dialers| dialers.with_web(&trust, false).unwrap(),
        );
        let closed = within(is_closed(&stranger.tunnel)).await;
        assert_eq!(closed.attempts[0].reason, "refused", "{closed:?}");

        let bob = Node::by(
            target,
            &[(carrier, 0)],
            Purpose::Bind,
            |(target, identity), dialers| {
                target.credentials = Credentials::Token(identity.clone());
                dialers.with_web(&trust, false).unwrap()
            },
        );
        let up = within(is_up(&bob.tunnel)).await;
        assert_eq!((up.carrier, up.relay), (carrier, None));
        let outside = endpoint(|_| ());
        let (out, inn) = dialed_from_outside(&outside, &bob).await;
        transferred(&out, &inn, &pattern(1 << 20), async {}).await;
        let known = relay.relay.sessions();
        let id = Some(bob.endpoint.identity().peer_id());
        assert!(
            known.iter().any(|session| session.peer_id == id),
            "{known:?}"
        );
    }
}
