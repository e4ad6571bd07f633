//! Two engine endpoints over `NodeSocket`s, and transfers that are checked byte by byte.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use anyreach_net::{BindOptions, BoundSocket, Counters, MuxHandle, NodeSocket, bind};
use noq::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const NAME: &str = "node.test";

/// Longest any single test may take; a healthy one takes milliseconds.
const TEST_LIMIT: Duration = Duration::from_secs(60);

static IDENTITY: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("certificate");
    (made.cert.into(), made.signing_key.serialize_der())
});

/// An endpoint, and what the tests want to know of its socket.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) counters: Arc<Counters>,
    pub(crate) handle: MuxHandle,
    /// Where the endpoint can be dialled on this host.
    pub(crate) addr: SocketAddr,
}

impl Node {
    pub(crate) fn bind(addr: &str) -> Self {
        let options = BindOptions::new(addr.parse().expect("literal"));
        Self::over(bind(&options).expect("loopback binds"))
    }

    pub(crate) fn over(bound: BoundSocket) -> Self {
        let addr = bound.local_addr();
        let socket = NodeSocket::new(bound).expect("socket options");
        let (counters, handle) = (socket.counters(), socket.handle());
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
            Some(server_config()),
            Box::new(socket),
            Arc::new(TokioRuntime),
        )
        .expect("endpoint");
        endpoint.set_default_client_config(client_config());
        Self {
            endpoint,
            counters,
            handle,
            addr,
        }
    }

    /// Dials `addr`, which must lead to `server`; both ends of the connection.
    pub(crate) async fn connect(
        &self,
        server: &Self,
        addr: SocketAddr,
    ) -> (Connection, Connection) {
        let dial = self.endpoint.connect(addr, NAME).expect("dialable");
        let accept = async { server.endpoint.accept().await.expect("open").await };
        let (dialled, accepted) = tokio::join!(dial, accept);
        (dialled.expect("dialled"), accepted.expect("accepted"))
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.max_concurrent_multipath_paths(8);
    Arc::new(config)
}

fn server_config() -> ServerConfig {
    let (cert, key) = &*IDENTITY;
    let key = PrivateKeyDer::try_from(key.clone()).expect("PKCS#8");
    let mut config = ServerConfig::with_single_cert(vec![cert.clone()], key).expect("TLS");
    config.transport_config(transport());
    config
}

fn client_config() -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(IDENTITY.0.clone()).expect("certificate");
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).expect("TLS");
    config.transport_config(transport());
    config
}

/// Runs a test on a runtime of its own, bounded in time.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(async { tokio::time::timeout(TEST_LIMIT, test).await })
        .expect("finishes in time")
}

/// Waits until `condition` holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends `len` bytes one way and checks every one of them.
pub(crate) async fn transfer(from: &Connection, to: &Connection, len: usize) {
    let send = async {
        let mut stream = from.open_uni().await.expect("stream");
        stream.write_all(&pattern(len)).await.expect("written");
        stream.finish().expect("finished");
        stream.stopped().await.expect("acknowledged");
    };
    let receive = async {
        let mut stream = to.accept_uni().await.expect("stream");
        let got = stream.read_to_end(len).await.expect("read");
        assert!(
            got == pattern(len),
            "{} of {len} bytes, or wrong ones",
            got.len()
        );
    };
    tokio::join!(send, receive);
}

/// Bytes that differ wherever a datagram boundary could be mistaken for another.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}
