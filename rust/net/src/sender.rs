//! The sending half the engine uses: one per connection, each with its own waker.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    num::NonZeroUsize,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use noq_udp::Transmit;

use crate::{
    addr::canonical,
    counters::Counters,
    extra::Extra,
    port::{Port, SendFailure},
    routes::{Reader, Routes, Shared},
    synthetic::{SyntheticAddr, is_synthetic},
};

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Datagrams in one transmit of a connection that has not sent much yet. The engine keeps a buffer
/// of as many full-sized ones for as long as the connection lives, so a connection that only says
/// hello and waits is 10 KB lighter than with the batches of a bulk transfer.
const FEW_SEGMENTS: usize = 2;

/// Full transmits after which a connection is one that sends much: about 20 KB, beyond the longest
/// flight of a handshake.
const FULL_TRANSMITS: u8 = 8;

/// Sends transmits of the engine by the route their destination has.
pub(crate) struct NodeSender {
    shared: Arc<Shared>,
    reader: Reader,
    /// Transmits so far that were as large as they might be, up to [`FULL_TRANSMITS`].
    full: u8,
    /// Waits for a full socket. Made only then, so that the usual send allocates nothing.
    writable: Option<Writable>,
}

impl NodeSender {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            reader: Reader::new(&shared),
            shared,
            full: 0,
            writable: None,
        }
    }

    fn note(&mut self, transmit: &Transmit<'_>) {
        if self.full < FULL_TRANSMITS && segments(transmit) >= FEW_SEGMENTS {
            self.full += 1;
        }
    }
}

/// Datagrams in a transmit.
fn segments(transmit: &Transmit<'_>) -> usize {
    match transmit.segment_size {
        Some(size) if size > 0 => transmit.contents.len().div_ceil(size),
        _ => 1,
    }
}

impl fmt::Debug for NodeSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSender")
            .field("waiting", &self.writable.is_some())
            .finish_non_exhaustive()
    }
}

impl noq::UdpSender for NodeSender {
    fn poll_send(
        self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.note(transmit);
        let Self {
            shared,
            reader,
            writable,
            ..
        } = this;
        let destination = canonical(transmit.destination);
        let routes = reader.get(shared);
        if is_synthetic(destination.ip()) {
            routes.send_to_tunnel(transmit, &shared.counters);
            return Poll::Ready(Ok(()));
        }
        if routes.holds(destination, &shared.counters) {
            return Poll::Ready(Ok(()));
        }
        let (extra, adopted) = extra_port(routes, destination).unzip();
        let Some(port) = adopted.or_else(|| shared.primary(routes)) else {
            return Poll::Ready(Ok(()));
        };
        let port = &*port;
        let Some(wire) = in_socket_form(transmit, destination, port, &shared.counters) else {
            return Poll::Ready(Ok(()));
        };
        loop {
            if let Some(waiting) = writable {
                let result = ready!(waiting.as_mut().poll(cx));
                *writable = None;
                // Fails only when the runtime is shutting down.
                result?;
            }
            match port.try_send(&wire) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(SendFailure::WouldBlock) => {
                    let io = port.io.clone();
                    *writable = Some(Box::pin(async move { io.writable().await }));
                }
                Err(failure) => {
                    send_failed(shared, extra, port, &wire, failure);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        let most = self.shared.max_transmit_segments();
        let now = match self.full {
            FULL_TRANSMITS.. => most,
            _ => most.min(FEW_SEGMENTS),
        };
        NonZeroUsize::new(now).unwrap_or(NonZeroUsize::MIN)
    }
}

/// The transmit with its addresses in the port's form; `None`, and counted, if it has none.
///
/// What the kernel would reject is stopped here, because its `EINVAL` cannot be told from one that
/// is about offloads (see [`Port::try_send`]).
pub(crate) fn in_socket_form<'a>(
    transmit: &Transmit<'a>,
    destination: SocketAddr,
    port: &Port,
    counters: &Counters,
) -> Option<Transmit<'a>> {
    // The last gate before the wire, for whatever way a synthetic address may come here.
    if !is_possible_peer(destination) || is_synthetic(destination.ip()) {
        Counters::bump(&counters.send_bad_destination);
        return None;
    }
    let source = transmit.src_ip.map(|ip| ip.to_canonical());
    let same_family = source.is_none_or(|ip| ip.is_ipv4() == destination.is_ipv4());
    match port.family.destination(destination) {
        Some(destination) if same_family => Some(Transmit {
            destination,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: source.map(|ip| port.family.source(ip)),
        }),
        _ => {
            Counters::bump(&counters.send_wrong_family);
            None
        }
    }
}

/// Whether a QUIC peer can have this (canonical) address at all.
pub fn is_possible_peer(addr: SocketAddr) -> bool {
    let ip_fits = match addr.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    ip_fits && addr.port() != 0
}

/// The extra socket that has adopted `destination`, and its port; `None` for nearly everything.
#[inline]
fn extra_port(routes: &Routes, destination: SocketAddr) -> Option<(&Arc<Extra>, Arc<Port>)> {
    if routes.overrides.is_empty() {
        return None;
    }
    let extra = routes.overrides.get(&destination)?;
    Some((extra, extra.port.get()?))
}

impl Routes {
    /// Hands a transmit to the tunnel its synthetic destination names. This is its only way: if
    /// there is none, it ends here and never on the wire.
    pub(crate) fn send_to_tunnel(&self, transmit: &Transmit<'_>, counters: &Counters) {
        let found = SyntheticAddr::from_socket_addr(transmit.destination)
            .and_then(|addr| Some((self.tunnel(addr.tunnel())?, addr.index())));
        match found {
            Some((tunnel, index)) => tunnel.send(index, transmit, counters),
            None => Counters::bump(&counters.send_no_tunnel),
        }
    }
}

/// Sends a transmit by one port, now or not at all. `extra`: whose port it is, if not the node's.
pub(crate) fn send_now(
    shared: &Shared,
    extra: Option<&Arc<Extra>>,
    port: &Port,
    transmit: &Transmit<'_>,
) {
    let destination = canonical(transmit.destination);
    let Some(wire) = in_socket_form(transmit, destination, port, &shared.counters) else {
        return;
    };
    if let Err(failure) = port.try_send(&wire) {
        send_failed(shared, extra, port, &wire, failure);
    }
}

/// Counts a failure and takes over the renewed port, if there is one. The failure ends here: it
/// concerns one datagram.
#[cold]
fn send_failed(
    shared: &Shared,
    extra: Option<&Arc<Extra>>,
    port: &Port,
    wire: &Transmit<'_>,
    failure: SendFailure,
) {
    let (error, renewed) = match failure {
        SendFailure::WouldBlock => return,
        SendFailure::Datagram(error) => (error, None),
        SendFailure::Renewed(error, renewed) => (error, renewed),
    };
    tracing::trace!(%error, destination = %canonical(wire.destination), "datagram not sent");
    if wire.src_ip.is_some_and(|ip| is_source_gone(ip, &error)) {
        Counters::bump(&shared.counters.send_source_gone);
        shared.source_gone.notify_one();
    } else {
        shared.counters.send_error(&error);
        if matches!(
            error.kind(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        ) {
            shared.dialed.failed(canonical(wire.destination));
        }
    }
    if let Some(renewed) = renewed {
        Counters::bump(&shared.counters.offload_renewed);
        // Somebody who was faster has renewed it as well.
        let _ = match extra {
            Some(extra) => extra.port.replace(port, Arc::from(renewed)),
            None => shared.renew_primary(port, *renewed),
        };
    }
}

/// Whether a send failed because this host has the source address no longer.
///
/// The system does not say so: Linux reports an invalid argument for IPv6 and an unreachable
/// network for IPv4. Whether the address can be bound tells it from the other reasons.
fn is_source_gone(source: IpAddr, error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let source = source.to_canonical();
    // Binding one needs its scope, which a source address does not have here.
    let link_local = matches!(source, IpAddr::V6(ip) if ip.is_unicast_link_local());
    match error.kind() {
        Kind::AddrNotAvailable => true,
        Kind::InvalidInput if link_local => true,
        Kind::InvalidInput | Kind::NetworkUnreachable | Kind::HostUnreachable if !link_local => {
            let probe = UdpSocket::bind((source, 0));
            probe.is_err_and(|error| error.kind() == Kind::AddrNotAvailable)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_no_peer_can_have() {
        for addr in [
            "0.0.0.0:9",
            "255.255.255.255:9",
            "224.0.0.1:9",
            "192.0.2.1:0",
            "[::]:9",
            "[ff02::1]:9",
            "[2001:db8::1]:0",
        ] {
            assert!(!is_possible_peer(addr.parse().expect("literal")), "{addr}");
        }
        for addr in [
            "192.0.2.1:9",
            "127.0.0.1:9",
            "[2001:db8::1]:9",
            "[fe80::1%1]:9",
        ] {
            assert!(is_possible_peer(addr.parse().expect("literal")), "{addr}");
        }
    }
}
