//! A path of a connection, as seen at one instant.

use std::borrow::Cow;

use anyreach_quic::PathSnapshot;
use pyo3::prelude::*;

use crate::endpoint::host_and_port;

/// A path of a connection, as seen at one instant.
#[pyclass(frozen, get_all, module = "anyreach._core")]
pub(crate) struct PathInfo {
    /// Number of the path within its connection.
    id: u32,
    /// "direct", "punched" or "relayed".
    method: &'static str,
    /// Where its packets go.
    remote: (String, u16),
    /// The relay, where it is known.
    via: Option<Cow<'static, [u8]>>,
    /// Whether our end of it is a tunnel of ours.
    tunnelled: bool,
    /// Which of our addresses they leave from, if the engine knows.
    local_ip: Option<String>,
    /// Smoothed round-trip time in seconds.
    rtt: f64,
    /// Largest UDP payload in use.
    mtu: u16,
    /// Bytes the congestion controller allows in flight.
    congestion_window: u64,
    /// UDP payload bytes sent.
    sent_bytes: u64,
    /// UDP payload bytes received.
    received_bytes: u64,
    /// Packets declared lost.
    lost_packets: u64,
    /// Seconds since the path was established.
    age: f64,
    /// Whether data goes this way.
    current: bool,
    /// Our address as the peer reports it on this path.
    observed: Option<(String, u16)>,
}

impl From<PathSnapshot> for PathInfo {
    fn from(path: PathSnapshot) -> Self {
        Self {
            id: path.id,
            method: path.method,
            remote: host_and_port(path.remote),
            via: path.via.map(|relay| Cow::Owned(relay.0.to_vec())),
            tunnelled: path.tunnelled,
            local_ip: path.local_ip.map(|ip| ip.to_canonical().to_string()),
            rtt: path.rtt.as_secs_f64(),
            mtu: path.mtu,
            congestion_window: path.congestion_window,
            sent_bytes: path.sent_bytes,
            received_bytes: path.received_bytes,
            lost_packets: path.lost_packets,
            age: path.age.as_secs_f64(),
            current: path.current,
            observed: path.observed.map(host_and_port),
        }
    }
}
