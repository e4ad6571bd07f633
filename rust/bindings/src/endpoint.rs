//! The endpoint: one socket, its connections, and what happens on it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyreach_masque::client::{
    Credentials, Dialers, Purpose, RelayTarget, Trust, TunnelOptions, Tunnels,
};
use anyreach_masque::https::{ClientTrust, Proxy, ServerCertificate};
use anyreach_masque::relay::{Prefix, Relay, RelayConfig};
use anyreach_masque::server::{Listeners, RelayServer, ServeError};
use anyreach_quic::https::TcpTls;
use anyreach_quic::{EndpointConfig, EndpointError, Event, IpMode, PathOptions, PeerId, RelayHint};
use anyreach_wire::uri_template::Host;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::attempt::PathAttempt;
use crate::bridge::Bridge;
use crate::connection::{Connection, Connections};
use crate::dial::Dial;
use crate::errors::Failure;
use crate::find::{PyAddresses, addresses, reach_from_python};
use crate::identity::Identity;
use crate::punching_notices::method_name;
use crate::runtime::{self, Deferred, PerProcess};
use crate::tunnel::{Tunnel, carrier_plan, hosts_and_ports};
use crate::wake::Slot;

/// Prefixes a relay is told of, such as `10.0.0.0/8`.
fn prefixes(given: &[String]) -> Result<Vec<Prefix>, Failure> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| Failure::Value(format!("{text:?} is not a prefix")))
    };
    given.iter().map(parse).collect()
}

/// The socket, the QUIC endpoint on it, and the registry of connections (one per peer).
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Endpoint(PerProcess<Deferred<Inner>>);

struct Inner {
    endpoint: anyreach_quic::Endpoint,
    connections: Arc<Connections>,
    tunnels: Tunnels,
    dialers: Dialers,
    relay: OnceLock<(Relay, RelayServer)>,
    key_log: bool,
    incoming: Slot<Option<anyreach_quic::Connection>>,
    events: Slot<Option<Vec<Event>>>,
    closed: Slot<()>,
}

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (
        identity, *, bind_addr, ip_mode, allow_ipv4_mapped, idle_timeout, keep_alive_interval,
        handshake_timeout, stream_receive_window, receive_window, send_window, max_bidi_streams,
        max_uni_streams, datagram_buffer, socket_buffer, max_connections, key_log,
        serve_relay, nat_traversal, capabilities
    ))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword-only in Python, a struct in Rust"
    )]
    fn new(
        py: Python<'_>,
        identity: &Identity,
        bind_addr: &str,
        ip_mode: &str,
        allow_ipv4_mapped: bool,
        idle_timeout: f64,
        keep_alive_interval: f64,
        handshake_timeout: f64,
        stream_receive_window: u32,
        receive_window: u32,
        send_window: u64,
        max_bidi_streams: u32,
        max_uni_streams: u32,
        datagram_buffer: usize,
        socket_buffer: usize,
        max_connections: usize,
        key_log: bool,
        serve_relay: bool,
        nat_traversal: bool,
        capabilities: Vec<String>,
    ) -> Result<Self, Failure> {
        let config = EndpointConfig {
            bind_addr: bind_address(bind_addr)?,
            ip_mode: match ip_mode {
                "dual" => IpMode::Dual,
                "v4" => IpMode::V4,
                "v6" => IpMode::V6,
                _ => return Err(Failure::Value(format!("{ip_mode:?} is not an IP mode"))),
            },
            allow_ipv4_mapped,
            idle_timeout: seconds(idle_timeout)?,
            keep_alive_interval: Some(seconds(keep_alive_interval)?)
                .filter(|interval| !interval.is_zero()),
            handshake_timeout: seconds(handshake_timeout)?,
            stream_receive_window,
            receive_window,
            send_window,
            max_bidi_streams,
            max_uni_streams,
            datagram_buffer,
            socket_buffer,
            max_connections,
            key_log,
            agent: concat!("anyreach/", env!("CARGO_PKG_VERSION")).to_owned(),
            capabilities,
            serve_h3: serve_relay,
            nat_traversal,
            tap: None,
        };
        let identity = Arc::clone(&identity.0);
        let endpoint = py.detach(|| -> Result<_, Failure> {
            let _runtime = runtime::enter()?;
            Ok(anyreach_quic::Endpoint::bind(identity, config)?)
        })?;
        let tls = TcpTls::new(endpoint.identity(), key_log).map_err(EndpointError::from)?;
        let tunnels = Tunnels::new(endpoint.socket().clone());
        endpoint.set_directory(tunnels.directory());
        Ok(Self(PerProcess::deferred(Inner {
            dialers: Dialers::new(endpoint.clone(), &tls),
            endpoint,
            tunnels,
            relay: OnceLock::new(),
            key_log,
            connections: Arc::new(Connections::new()),
            incoming: Slot::new(),
            events: Slot::new(),
            closed: Slot::new(),
        })))
    }

    /// What was bound: "dual", "v4" or "v6".
    #[getter]
    fn ip_mode(&self) -> Result<&'static str, Failure> {
        Ok(match self.0.get()?.endpoint.mode() {
            IpMode::Dual => "dual",
            IpMode::V4 => "v4",
            IpMode::V6 => "v6",
        })
    }

    /// The bound addresses; the unspecified address stands for every one of its family.
    fn local_addresses(&self) -> Result<Vec<(String, u16)>, Failure> {
        Ok(vec![host_and_port(self.0.get()?.endpoint.local_addr())])
    }

    /// Starts an attempt to reach a peer. It makes progress whether it is polled or not.
    #[pyo3(signature = (ip, port, peer_id, timeout, *, via = None, relayed = false))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn dial(
        &self,
        py: Python<'_>,
        ip: &str,
        port: u16,
        peer_id: Option<[u8; 32]>,
        timeout: f64,
        via: Option<&Tunnel>,
        relayed: bool,
    ) -> Result<Dial, Failure> {
        let inner = self.0.get()?;
        let address = socket_address(ip, port)?;
        let timeout = seconds(timeout)?;
        let peer = peer_id.map(PeerId);
        let endpoint = inner.endpoint.clone();
        let connections = Arc::clone(&inner.connections);
        let tunnelled = via.map(|tunnel| tunnel.address_of(address)).transpose()?;
        py.detach(|| {
            let dial = async move {
                match tunnelled {
                    Some(address) => endpoint.dial_through(address, peer, timeout).await,
                    None => {
                        let hint = RelayHint { relayed, via: None };
                        endpoint.dial_hinted(address, peer, timeout, hint).await
                    }
                }
            };
            Ok(Dial::new(&runtime::handle()?, connections, dial))
        })
    }

    /// Tries one more path of a connection this side has dialed; whether the peer answers at the
    /// address is asked first, unless that is `proved`.
    #[pyo3(signature = (
        connection, ip, port, timeout, *, via, relayed, standby, proved = false
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn open_path(
        &self,
        py: Python<'_>,
        connection: &Connection,
        ip: &str,
        port: u16,
        timeout: f64,
        via: Option<&Tunnel>,
        relayed: bool,
        standby: bool,
        proved: bool,
    ) -> Result<PathAttempt, Failure> {
        let inner = self.0.get()?;
        let address = socket_address(ip, port)?;
        let timeout = seconds(timeout)?;
        let connection = connection.core()?;
        let endpoint = inner.endpoint.clone();
        let tunnelled = via.map(|tunnel| tunnel.address_of(address)).transpose()?;
        let options = PathOptions {
            hint: RelayHint { relayed, via: None },
            standby,
        };
        py.detach(|| {
            let opening = async move {
                match tunnelled {
                    Some(through) => {
                        let opening =
                            endpoint.open_path_through(&connection, through, options, timeout);
                        opening.await
                    }
                    None if proved => connection.open_path(address, options, timeout).await,
                    None => {
                        endpoint
                            .open_path(&connection, address, options, timeout)
                            .await
                    }
                }
            };
            Ok(PathAttempt::new(&runtime::handle()?, opening))
        })
    }

    /// Carries packets for others from now on; the bound addresses of tcp and of https.
    #[pyo3(signature = (
        *, tcp, https, certificate, private_key, allow_anonymous, allow_targets, deny_targets,
        bytes_per_second, total_bytes_per_second, max_reservations
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn serve_relay(
        &self,
        py: Python<'_>,
        tcp: Option<&str>,
        https: Option<&str>,
        certificate: Option<PathBuf>,
        private_key: Option<PathBuf>,
        allow_anonymous: bool,
        allow_targets: Vec<String>,
        deny_targets: Vec<String>,
        bytes_per_second: u64,
        total_bytes_per_second: u64,
        max_reservations: usize,
    ) -> Result<(PyAddresses, PyAddresses), Failure> {
        let inner = self.0.get()?;
        let (tcp, https) = (tcp.map(bind_address), https.map(bind_address));
        let (tcp, https) = (tcp.transpose()?, https.transpose()?);
        let config = RelayConfig {
            allow_anonymous,
            allow_targets: prefixes(&allow_targets)?,
            deny_targets: prefixes(&deny_targets)?,
            client_bytes_per_second: bytes_per_second,
            total_bytes_per_second,
            max_reservations,
            ..RelayConfig::default()
        };
        let certificate = certificate.zip(private_key);
        py.detach(|| inner.serve_relay(config, tcp, https, certificate))
    }

    /// What peers whose packets are carried are told about where the bound addresses are.
    fn set_external_addresses(&self, py: Python<'_>, ips: Vec<String>) -> Result<(), Failure> {
        let inner = self.0.get()?;
        let ips = ips
            .iter()
            .map(|ip| {
                ip.parse()
                    .map_err(|_| Failure::Value(format!("{ip:?} is not an IP address")))
            })
            .collect::<Result<Vec<IpAddr>, _>>()?;
        py.detach(|| {
            if let Some((relay, _)) = inner.relay.get() {
                relay.set_public_addresses(ips);
            }
        });
        Ok(())
    }

    /// What the relay has done, by name; empty if there is none.
    fn relay_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.0.get()?;
        let stats = py.detach(|| inner.relay.get().map(|(relay, _)| relay.stats()));
        let dict = PyDict::new(py);
        if let Some(stats) = stats {
            for (name, value) in [
                ("sessions", stats.sessions as u64),
                ("tunnels", stats.tunnels as u64),
                ("leases", stats.leases as u64),
                ("received_bytes", stats.from_clients.bytes),
                ("sent_bytes", stats.to_clients.bytes),
                ("received_packets", stats.from_clients.packets),
                ("sent_packets", stats.to_clients.packets),
                ("accepted", stats.accepted),
                ("taken_over", stats.taken_over),
            ] {
                dict.set_item(name, value)?;
            }
            for (reason, count) in stats.refused {
                dict.set_item(format!("refused_{reason}"), count)?;
            }
            for (reason, count) in stats.drops {
                dict.set_item(format!("dropped_{}", reason.as_str()), count)?;
            }
        }
        Ok(dict)
    }

    /// Starts a tunnel to a relay.
    #[pyo3(signature = (
        *, peer_id, host, port, udp, tcp, plan, proxy, ca_file, allow_tls_inspection
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn open_tunnel(
        &self,
        py: Python<'_>,
        peer_id: Option<[u8; 32]>,
        host: &str,
        port: u16,
        udp: PyAddresses,
        tcp: PyAddresses,
        plan: Vec<(String, f64)>,
        proxy: Option<&str>,
        ca_file: Option<PathBuf>,
        allow_tls_inspection: bool,
    ) -> Result<Tunnel, Failure> {
        let inner = self.0.get()?;
        let plan = carrier_plan(&plan)?;
        let proxy = proxy
            .map(|url| url.parse::<Proxy>())
            .transpose()
            .map_err(|error| Failure::Value(error.to_string()))?;
        let host = match host.parse() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name(host.to_lowercase()),
        };
        let mut target = RelayTarget::node(peer_id.map(PeerId), host, port, &[]);
        target.udp = addresses(udp)?;
        target.tcp = addresses(tcp)?;
        // Between us and a proxy that ends TLS there are no raw keys; a token says who we are.
        if proxy.is_some() && allow_tls_inspection {
            target.trust = Trust::NodeOrWeb;
            target.credentials = Credentials::Token(Arc::clone(inner.endpoint.identity()));
        }
        let web = target.trust != Trust::Node || proxy.as_ref().is_some_and(|proxy| proxy.tls);
        target.proxy = proxy;
        let options = TunnelOptions {
            target,
            plan,
            purpose: Purpose::Bind,
            persist: false,
        };
        py.detach(|| {
            let runtime = runtime::handle()?;
            let _entered = runtime.enter();
            let mut dialers = inner.dialers.clone();
            if web {
                let trust = ClientTrust::load(ca_file.as_deref())
                    .map(|trust| trust.allow_classical(allow_tls_inspection));
                dialers = trust
                    .and_then(|trust| dialers.with_web(&trust, inner.key_log))
                    .map_err(|error| Failure::Unreachable(error.to_string()))?;
            }
            let tunnel = inner
                .tunnels
                .open(Arc::new(dialers), options)
                .map_err(|error| Failure::Unreachable(error.to_string()))?;
            Ok(Tunnel::new(&runtime, tunnel))
        })
    }

    /// What all peers are to know of us, and may tell others if `findable`.
    #[pyo3(signature = (direct, relayed, findable, load = None))]
    fn announce(
        &self,
        py: Python<'_>,
        direct: PyAddresses,
        relayed: Vec<([u8; 32], PyAddresses)>,
        findable: bool,
        load: Option<u8>,
    ) -> Result<(), Failure> {
        let inner = self.0.get()?;
        let reach = reach_from_python(direct, relayed, findable, load)?;
        py.detach(|| {
            let _runtime = runtime::enter()?;
            inner.endpoint.set_reach(reach);
            Ok(())
        })
    }

    /// The established connection to a peer.
    fn connection(&self, py: Python<'_>, peer_id: [u8; 32]) -> Result<Option<Connection>, Failure> {
        let inner = self.0.get()?;
        let found = py.detach(|| inner.endpoint.connection(&PeerId(peer_id)));
        Ok(found.map(|connection| {
            connection.claim();
            inner.connections.wrap(connection)
        }))
    }

    /// All established connections.
    fn connections(&self, py: Python<'_>) -> Result<Vec<Connection>, Failure> {
        let inner = self.0.get()?;
        let found = py.detach(|| inner.endpoint.connections());
        Ok(found
            .into_iter()
            .map(|connection| inner.connections.wrap(connection))
            .collect())
    }

    /// The next connection a peer made to us.
    fn poll_incoming(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<Connection>, Failure> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        let accepted = py.detach(|| {
            inner.incoming.poll(queue, token, || {
                let endpoint = inner.endpoint.clone();
                Box::pin(async move { endpoint.accept().await })
            })
        })?;
        match accepted {
            None => Ok(None),
            Some(None) => Err(Failure::EndpointClosed),
            Some(Some(connection)) => Ok(Some(inner.connections.wrap(connection))),
        }
    }

    /// Everything that happened since the last poll, oldest first.
    fn poll_events<'py>(
        &self,
        py: Python<'py>,
        bridge: &Bridge,
        token: u64,
    ) -> PyResult<Option<Vec<Bound<'py, PyTuple>>>> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        let events = py.detach(|| {
            inner.events.poll(queue, token, || {
                let endpoint = inner.endpoint.clone();
                Box::pin(async move { endpoint.events().await })
            })
        })?;
        match events {
            None => Ok(None),
            Some(None) => Err(Failure::EndpointClosed.into()),
            Some(Some(events)) => events
                .into_iter()
                .map(|event| inner.event(py, event))
                .collect::<PyResult<_>>()
                .map(Some),
        }
    }

    /// Counters since the start, by name.
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.0.get()?;
        let counters = py.detach(|| inner.endpoint.counters());
        let dict = PyDict::new(py);
        for (name, value) in counters {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Closes every connection with this code and reason, and takes no more.
    fn close(&self, py: Python<'_>, code: u32, reason: &[u8]) -> Result<(), Failure> {
        let inner = self.0.get()?;
        py.detach(|| -> Result<(), Failure> {
            let _runtime = runtime::enter()?;
            inner.endpoint.close(code, reason);
            Ok(())
        })
    }

    /// Closes in good order, the socket as well, with nobody left to wait for it. Harmless twice.
    fn abandon(&self, py: Python<'_>) -> Result<(), Failure> {
        let inner = self.0.get()?;
        py.detach(|| inner.abandon())
    }

    /// True once every peer was told, or can be assumed not to listen, and the socket is closed.
    fn poll_closed(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<bool>, Failure> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        let closed = py.detach(|| {
            inner.closed.poll(queue, token, || {
                let endpoint = inner.endpoint.clone();
                Box::pin(async move { endpoint.closed().await })
            })
        })?;
        Ok(closed.map(|()| true))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The endpoint's tasks keep it alive until it is closed; nobody is left to do so. Without a
        // runtime nothing is open.
        let _ = self.abandon();
    }
}

impl Endpoint {
    /// A handle to it of the core's.
    pub(crate) fn core(&self) -> Result<anyreach_quic::Endpoint, Failure> {
        Ok(self.0.get()?.endpoint.clone())
    }
}

impl Inner {
    fn serve_relay(
        &self,
        config: RelayConfig,
        tcp: Option<SocketAddr>,
        https: Option<SocketAddr>,
        certificate: Option<(PathBuf, PathBuf)>,
    ) -> Result<(PyAddresses, PyAddresses), Failure> {
        let _runtime = runtime::enter()?;
        let https = match https {
            None => None,
            Some(addr) => {
                let certificate = match certificate {
                    Some((chain, key)) => ServerCertificate::from_files(&chain, &key),
                    None => ServerCertificate::self_signed([addr.ip().to_string()]),
                };
                Some((addr, certificate.map_err(ServeError::from)?))
            }
        };
        let relay = Relay::new(config);
        let listeners = Listeners {
            tcp,
            https,
            key_log: self.key_log,
        };
        let server = RelayServer::start(&self.endpoint, &relay, listeners)?;
        let bound = |address: Option<SocketAddr>| address.map(host_and_port).into_iter().collect();
        let addresses = (bound(server.tcp_addr()), bound(server.https_addr()));
        self.relay
            .set((relay, server))
            .map_err(|_| Failure::Internal("the node relays already".into()))?;
        Ok(addresses)
    }

    fn abandon(&self) -> Result<(), Failure> {
        let runtime = runtime::handle()?;
        let _runtime = runtime.enter();
        let endpoint = self.endpoint.clone();
        if let Some((relay, _)) = self.relay.get() {
            relay.close();
        }
        endpoint.close(anyreach_quic::code::NODE_CLOSED, b"");
        runtime.spawn(async move { endpoint.closed().await });
        Ok(())
    }

    fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyTuple>> {
        match event {
            Event::Connected(connection) => {
                ("connected", self.connections.wrap(connection)).into_pyobject(py)
            }
            Event::Disconnected { connection, reason } => (
                "disconnected",
                self.connections.wrap(connection),
                reason.kind,
                reason.code,
                reason.message,
            )
                .into_pyobject(py),
            Event::Observed {
                connection,
                path_id,
                address,
                after,
                ..
            } => {
                let (ip, port) = host_and_port(address);
                (
                    "observed",
                    self.connections.wrap(connection),
                    path_id,
                    ip,
                    port,
                    after.as_secs_f64(),
                )
                    .into_pyobject(py)
            }
            Event::PathsChanged {
                connection,
                reason,
                silent,
            } => {
                let connection = self.connections.wrap(connection).paths_changed(reason);
                let silent = silent.map(|silent| silent.as_secs_f64());
                ("path", connection, reason, silent).into_pyobject(py)
            }
            Event::Silent { connection } => {
                ("silent", self.connections.wrap(connection)).into_pyobject(py)
            }
            Event::Reach { connection } => {
                ("reach", self.connections.wrap(connection)).into_pyobject(py)
            }
            Event::Sought {
                connection,
                peer,
                addresses,
            } => {
                let connection = self.connections.wrap(connection);
                let seen_at = addresses.first().copied().map(host_and_port);
                let (ip, port) = seen_at.unzip();
                ("sought", connection, peer.0, ip, port).into_pyobject(py)
            }
            Event::Candidates { connection } => {
                ("candidates", self.connections.wrap(connection)).into_pyobject(py)
            }
            Event::Round { connection, round } => {
                ("round", self.connections.wrap(connection), round).into_pyobject(py)
            }
            Event::Opened {
                connection,
                address,
            } => {
                let (ip, port) = host_and_port(address);
                ("opened", self.connections.wrap(connection), ip, port).into_pyobject(py)
            }
            Event::Network { reason } => ("network", reason).into_pyobject(py),
            Event::Nat { connection } => {
                ("nat", self.connections.wrap(connection)).into_pyobject(py)
            }
            Event::Prepare {
                connection,
                request,
                step,
            } => (
                "prepare",
                self.connections.wrap(connection),
                request,
                method_name(step.method),
                hosts_and_ports(step.addresses),
                step.count,
            )
                .into_pyobject(py),
            Event::Prepared {
                connection,
                request,
                result,
            } => (
                "prepared",
                self.connections.wrap(connection),
                request,
                result.done,
                hosts_and_ports(result.addresses),
            )
                .into_pyobject(py),
        }
    }
}

pub(crate) fn seconds(value: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| Failure::Value(format!("{value} is not a number of seconds")))
}

fn bind_address(text: &str) -> Result<SocketAddr, Failure> {
    text.parse()
        .map_err(|_| Failure::Value(format!("{text:?} is not IP:PORT")))
}

/// From an IP address, with `%` and the number of its zone if it has one (RFC 4007, section 11).
pub(crate) fn socket_address(ip: &str, port: u16) -> Result<SocketAddr, Failure> {
    let text = if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    };
    text.parse()
        .map_err(|_| Failure::Value(format!("{ip:?} is not an IP address")))
}

pub(crate) fn host_and_port(address: SocketAddr) -> (String, u16) {
    let host = match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_canonical().to_string(),
    };
    (host, address.port())
}
