//! Nodes and a relay on loopback, with everything between them real.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyreach_masque::{
    carrier::CarrierKind,
    client::{Dialers, Purpose, RelayTarget, Tunnel, TunnelOptions, Tunnels},
    relay::{Relay, RelayConfig},
    server::{Listeners, RelayServer},
};
use anyreach_quic::{Connection, Endpoint, EndpointConfig, Identity, https::TcpTls};
use anyreach_wire::uri_template::Host;

use crate::{
    inner::{LONG, within},
    scene::is_up,
};

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) fn endpoint(adjust: impl FnOnce(&mut EndpointConfig)) -> Endpoint {
    let mut config = EndpointConfig::new((LOOPBACK, 0).into());
    adjust(&mut config);
    Endpoint::bind(Arc::new(Identity::generate().unwrap()), config).unwrap()
}

/// A node that relays.
pub(crate) struct RelayNode {
    pub(crate) endpoint: Endpoint,
    pub(crate) relay: Relay,
    pub(crate) server: Option<RelayServer>,
    pub(crate) tcp: SocketAddr,
}

impl RelayNode {
    pub(crate) fn new(serve_h3: bool) -> Self {
        Self::with(serve_h3, Listeners::default())
    }

    pub(crate) fn with(serve_h3: bool, listeners: Listeners) -> Self {
        let endpoint = endpoint(|config| config.serve_h3 = serve_h3);
        let relay = Relay::new(RelayConfig {
            allow_targets: vec!["127.0.0.0/8".parse().unwrap()],
            ..RelayConfig::default()
        });
        relay.set_public_addresses(vec![LOOPBACK]);
        relay.set_node_addresses(vec![endpoint.local_addr()]);
        let mut this = Self {
            endpoint,
            relay,
            server: None,
            tcp: (LOOPBACK, 0).into(),
        };
        this.start_with(listeners);
        this
    }

    /// Opens for clients, on the TCP port of before.
    pub(crate) fn start(&mut self) {
        self.start_with(Listeners::default());
    }

    fn start_with(&mut self, mut listeners: Listeners) {
        listeners.tcp = Some(self.tcp);
        let server = RelayServer::start(&self.endpoint, &self.relay, listeners).unwrap();
        self.tcp = server.tcp_addr().unwrap();
        self.server = Some(server);
    }

    /// Ends all carriers.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }

    pub(crate) fn target(&self) -> RelayTarget {
        let peer = Some(self.endpoint.identity().peer_id());
        let host = Host::parse("127.0.0.1").unwrap();
        let mut target = RelayTarget::node(peer, host, self.tcp.port(), &[]);
        target.udp = vec![self.endpoint.local_addr()];
        target.tcp = vec![self.tcp];
        target
    }
}

/// A node with a tunnel.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) tunnel: Tunnel,
    _tunnels: Tunnels,
}

impl Node {
    pub(crate) fn begin(relay: &RelayNode, plan: &[(CarrierKind, u64)], purpose: Purpose) -> Self {
        Self::by(relay.target(), plan, purpose, |_, dialers| dialers)
    }

    /// With the target as given, and dialers and target adjusted to the node that is made.
    pub(crate) fn by(
        mut target: RelayTarget,
        plan: &[(CarrierKind, u64)],
        purpose: Purpose,
        adjust: impl FnOnce((&mut RelayTarget, &Arc<Identity>), Dialers) -> Dialers,
    ) -> Self {
        let endpoint = endpoint(|_| ());
        let tunnels = Tunnels::new(endpoint.socket().clone());
        endpoint.set_directory(tunnels.directory());
        let tls = TcpTls::new(endpoint.identity(), false).unwrap();
        let dialers = Dialers::new(endpoint.clone(), &tls);
        let dialers = Arc::new(adjust((&mut target, endpoint.identity()), dialers));
        let options = TunnelOptions {
            target,
            plan: plan
                .iter()
                .map(|&(kind, ms)| (kind, Duration::from_millis(ms)))
                .collect(),
            purpose,
            persist: false,
        };
        let tunnel = tunnels.open(dialers, options).unwrap();
        Self {
            endpoint,
            tunnel,
            _tunnels: tunnels,
        }
    }

    pub(crate) async fn new(relay: &RelayNode, carrier: CarrierKind) -> Self {
        let node = Self::begin(relay, &[(carrier, 0)], Purpose::Bind);
        within(is_up(&node.tunnel)).await;
        node
    }

    pub(crate) fn public(&self) -> SocketAddr {
        self.tunnel.public_addresses()[0]
    }
}

/// Dials `bob` from a node without a tunnel, by its address at the relay.
pub(crate) async fn dialed_from_outside(
    outside: &Endpoint,
    bob: &Node,
) -> (Connection, Connection) {
    let peer = bob.endpoint.identity().peer_id();
    let dial = outside.dial(bob.public(), Some(peer), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, bob.endpoint.accept()) }).await;
    (dialed.unwrap().connection, accepted.unwrap())
}
