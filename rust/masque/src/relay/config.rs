//! What an operator decides about a relay.

use std::time::Duration;

use super::prefix::Prefix;

/// Limits and rules of a relay. All of them have defaults that suit a node which helps its peers:
/// enough for a community, and nothing of the operator's own network reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// Bound addresses lent at a time, those kept for clients that have gone among them. Each is
    /// one socket. Default 128.
    pub max_reservations: usize,
    /// Of these, by one PeerId: an address and its successor while a client moves. A client that
    /// asks for more loses its oldest. Default 2.
    pub reservations_per_client: usize,
    /// Tunnels to one target (RFC 9298 without bind) at a time. Default 256.
    pub max_tunnels: usize,
    /// Of these, by one PeerId, or by one source prefix for clients without. Default 16.
    pub tunnels_per_client: usize,
    /// Sessions and tunnels of all clients in the same /24 (IPv4) or /48 (IPv6), so that nobody
    /// takes everything with identities made by the dozen. Default 32.
    pub sessions_per_prefix: usize,
    /// Bytes of payload per second relayed for one PeerId, or one source prefix for clients
    /// without, in each direction; 0 for no limit. Default 0.
    pub client_bytes_per_second: u64,
    /// Bytes a client may be ahead of that rate. Default 1 MiB: 64 packets for each of a dozen
    /// connections that begin.
    pub client_burst_bytes: u64,
    /// Bytes of payload per second relayed for all together, in each direction; 0 for no limit.
    /// When it does not suffice, active clients get equal parts. Default 0.
    pub total_bytes_per_second: u64,
    /// Bytes all together may be ahead of that rate. Default 4 MiB.
    pub total_burst_bytes: u64,
    /// How long a bound address is kept for its PeerId after its tunnel has ended. 0 keeps none.
    /// Default 10 min: a laptop that changes trains.
    pub lease_time: Duration,
    /// After how long without a packet a tunnel to one target ends. Default 2 min, the least
    /// RFC 9298, section 3.1 recommends.
    pub idle_limit: Duration,
    /// How long a context the relay has opened must be unused to be closed for another.
    /// Default 30 s: longer than keep-alives are apart.
    pub context_idle: Duration,
    /// How long a target's name may take to be resolved. Default 5 s.
    pub resolve_timeout: Duration,
    /// Ranges clients may send to although they are private, local, or the relay's own.
    pub allow_targets: Vec<Prefix>,
    /// Ranges clients may not send to. Stronger than `allow_targets`.
    pub deny_targets: Vec<Prefix>,
    /// Whether clients may use this relay that do not say who they are. Default no.
    pub allow_anonymous: bool,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            max_reservations: 128,
            reservations_per_client: 2,
            max_tunnels: 256,
            tunnels_per_client: 16,
            sessions_per_prefix: 32,
            client_bytes_per_second: 0,
            client_burst_bytes: 1 << 20,
            total_bytes_per_second: 0,
            total_burst_bytes: 4 << 20,
            lease_time: Duration::from_secs(600),
            idle_limit: Duration::from_secs(120),
            context_idle: Duration::from_secs(30),
            resolve_timeout: Duration::from_secs(5),
            allow_targets: Vec::new(),
            deny_targets: Vec::new(),
            allow_anonymous: false,
        }
    }
}
