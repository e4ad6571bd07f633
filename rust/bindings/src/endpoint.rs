//! The endpoint: one socket, its connections, and what happens on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyreach_quic::{EndpointConfig, Event, IpMode, PeerId};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::bridge::Bridge;
use crate::connection::{Connection, Connections};
use crate::dial::Dial;
use crate::errors::Failure;
use crate::identity::Identity;
use crate::runtime::{self, Deferred, PerProcess};
use crate::wake::Slot;

/// The socket, the QUIC endpoint on it, and the registry of connections (one per peer).
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Endpoint(PerProcess<Deferred<Inner>>);

struct Inner {
    endpoint: anyreach_quic::Endpoint,
    connections: Arc<Connections>,
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
        max_uni_streams, datagram_buffer, socket_buffer, max_connections, key_log
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
    ) -> Result<Self, Failure> {
        let config = EndpointConfig {
            bind_addr: bind_addr
                .parse()
                .map_err(|_| Failure::Value(format!("{bind_addr:?} is not IP:PORT")))?,
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
            tap: None,
        };
        let identity = Arc::clone(&identity.0);
        let endpoint = py.detach(|| -> Result<_, Failure> {
            let _runtime = runtime::enter()?;
            Ok(anyreach_quic::Endpoint::bind(identity, config)?)
        })?;
        Ok(Self(PerProcess::deferred(Inner {
            endpoint,
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
    fn dial(
        &self,
        py: Python<'_>,
        ip: &str,
        port: u16,
        peer_id: Option<[u8; 32]>,
        timeout: f64,
    ) -> Result<Dial, Failure> {
        let inner = self.0.get()?;
        let address = socket_address(ip, port)?;
        let timeout = seconds(timeout)?;
        let endpoint = inner.endpoint.clone();
        let connections = Arc::clone(&inner.connections);
        py.detach(|| {
            let dial = async move { endpoint.dial(address, peer_id.map(PeerId), timeout).await };
            Ok(Dial::new(&runtime::handle()?, connections, dial))
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

impl Inner {
    fn abandon(&self) -> Result<(), Failure> {
        let runtime = runtime::handle()?;
        let _runtime = runtime.enter();
        let endpoint = self.endpoint.clone();
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
            Event::PathsChanged { connection, reason } => {
                let connection = self.connections.wrap(connection).paths_changed(reason);
                ("path", connection, reason).into_pyobject(py)
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
        }
    }
}

fn seconds(value: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| Failure::Value(format!("{value} is not a number of seconds")))
}

/// From an IP address, with `%` and the number of its zone if it has one (RFC 4007, section 11).
fn socket_address(ip: &str, port: u16) -> Result<SocketAddr, Failure> {
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
