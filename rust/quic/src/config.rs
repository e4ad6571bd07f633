//! What an endpoint can be told, and how that becomes the engine's configuration.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyreach_net::IpMode;
use noq::{IdleTimeout, TransportConfig, VarInt};

use crate::{TapFactory, first_flight::FirstFlight, traversal::MAX_CANDIDATES};

/// Paths of one connection that may be open at once. Relayed and direct are two; probing a few
/// candidates at a time and a change of network take the rest.
pub(crate) const MAX_PATHS: u32 = 8;

/// A relay that has not answered for this long is gone: two keep-alives and some time for the
/// second to be repeated.
const HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Keep-alive towards a relay: below the shortest NAT timers seen in the field (20 to 30 s), and
/// within RFC 8085 section 3.5 together with what an active tunnel sends anyway.
const HTTP_KEEP_ALIVE: Duration = Duration::from_secs(14);

/// Unidirectional streams of a relay's HTTP/3: control, two of QPACK, and one of an extension.
const HTTP_UNI_STREAMS: u32 = 4;

/// Bytes of datagrams that may wait for an outer connection: 10 ms of 100 Mbit/s. Congestion
/// control inside must see loss, not delay.
const HTTP_DATAGRAM_QUEUE: usize = 128 << 10;

/// Settings of an endpoint. The defaults, with their reasons, are those of the Python
/// configuration; here every field is given.
#[derive(Clone)]
pub struct EndpointConfig {
    /// Address to bind; port 0 lets the system choose.
    pub bind_addr: SocketAddr,
    /// Families wanted.
    pub ip_mode: IpMode,
    /// Whether the IPv6 socket also serves IPv4.
    pub allow_ipv4_mapped: bool,
    /// Bytes of socket buffer asked for, each way.
    pub socket_buffer: usize,
    /// A connection without any packet for this long is lost.
    pub idle_timeout: Duration,
    /// Silence after which the dialing side sends a keep-alive. `None`: never.
    pub keep_alive_interval: Option<Duration>,
    /// Time a handshake may take on the accepting side.
    pub handshake_timeout: Duration,
    /// Bytes a peer may send on one stream ahead of the reader.
    pub stream_receive_window: u32,
    /// Bytes a peer may send on all streams of a connection ahead of the readers.
    pub receive_window: u32,
    /// Bytes sent and not yet acknowledged, per connection.
    pub send_window: u64,
    /// Bidirectional streams a peer may have open at once.
    pub max_bidi_streams: u32,
    /// Unidirectional streams a peer may have open at once.
    pub max_uni_streams: u32,
    /// Bytes of datagrams kept for a slow reader, and for a slow line; the oldest are dropped.
    pub datagram_buffer: usize,
    /// Connections at once; further ones are refused.
    pub max_connections: usize,
    /// Write TLS secrets to the file named by `SSLKEYLOGFILE`.
    pub key_log: bool,
    /// Name and version of the software, told to peers.
    pub agent: String,
    /// What peers are told the node offers, as short tokens (`relay`). Hints, no promises.
    pub capabilities: Vec<String>,
    /// Take HTTP/3 connections as well; they come out of
    /// [`Endpoint::accept_http`](crate::Endpoint::accept_http).
    pub serve_h3: bool,
    /// Offer peers to look for direct paths together (draft-seemann-quic-nat-traversal-02).
    pub nat_traversal: bool,
    /// Sees packets in clear as they are on the wire, and may rewrite them.
    pub tap: Option<TapFactory>,
}

impl EndpointConfig {
    /// Settings for tests and tools: an address, all else as the Python defaults.
    pub fn new(bind_addr: SocketAddr) -> Self {
        Self {
            bind_addr,
            ip_mode: IpMode::Dual,
            allow_ipv4_mapped: true,
            socket_buffer: 8 << 20,
            idle_timeout: Duration::from_secs(50),
            keep_alive_interval: Some(Duration::from_secs(15)),
            handshake_timeout: Duration::from_secs(10),
            stream_receive_window: 2 << 20,
            receive_window: 8 << 20,
            send_window: 8 << 20,
            max_bidi_streams: 1024,
            max_uni_streams: 1024,
            datagram_buffer: 1 << 20,
            max_connections: 1024,
            key_log: false,
            agent: String::new(),
            capabilities: Vec::new(),
            serve_h3: false,
            nat_traversal: true,
            tap: None,
        }
    }

    /// Transport parameters and timers, for the side that dials (`true`) or accepts.
    pub(crate) fn transport(&self, dialing: bool) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .unwrap_or_else(|_| IdleTimeout::from(VarInt::MAX));
        transport
            .max_idle_timeout(Some(idle))
            .congestion_controller_factory(Arc::new(FirstFlight::default()))
            // One side suffices to keep a connection and the NATs on its way alive: the dialing
            // one, because it is the one that may sit behind a NAT.
            .keep_alive_interval(self.keep_alive_interval.filter(|_| dialing))
            .stream_receive_window(self.stream_receive_window.into())
            .receive_window(self.receive_window.into())
            .send_window(self.send_window)
            // The control stream takes one.
            .max_concurrent_bidi_streams(self.max_bidi_streams.saturating_add(1).into())
            .max_concurrent_uni_streams(self.max_uni_streams.into())
            .datagram_receive_buffer_size(Some(self.datagram_buffer))
            .datagram_send_buffer_size(self.datagram_buffer)
            .send_observed_address_reports(true)
            .receive_observed_address_reports(true)
            .max_concurrent_multipath_paths(MAX_PATHS);
        if self.nat_traversal {
            transport.max_remote_nat_traversal_addresses(MAX_CANDIDATES as u8);
        }
        Arc::new(transport)
    }

    /// The same for the side that dials a relay by HTTP/3. What runs inside its datagrams has its
    /// own windows and paths.
    pub(crate) fn http_transport(&self) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let idle =
            IdleTimeout::try_from(HTTP_IDLE_TIMEOUT).unwrap_or(IdleTimeout::from(VarInt::MAX));
        transport
            .max_idle_timeout(Some(idle))
            .congestion_controller_factory(Arc::new(FirstFlight::default()))
            .keep_alive_interval(Some(HTTP_KEEP_ALIVE))
            .max_concurrent_bidi_streams(0u32.into())
            .max_concurrent_uni_streams(HTTP_UNI_STREAMS.into())
            .datagram_receive_buffer_size(Some(self.datagram_buffer))
            .datagram_send_buffer_size(HTTP_DATAGRAM_QUEUE)
            .send_observed_address_reports(true)
            .receive_observed_address_reports(true);
        Arc::new(transport)
    }
}
