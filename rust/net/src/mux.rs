//! Adding ways to a running socket: tunnels, extra punching sockets, another primary socket.
//!
//! [`MuxHandle`] is what the rest of the node holds after the engine has taken the
//! [`NodeSocket`](crate::NodeSocket). It does not keep the socket open; what it adds lives as long
//! as the returned [`Tunnel`] or [`ExtraSocket`].

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Weak},
    time::Duration,
};

use noq_udp::Transmit;

use crate::{
    addr::{SocketFamily, canonical},
    bind::BoundSocket,
    counters::Counters,
    extra::Extra,
    port::{Port, SendFailure},
    routes::{Shared, Slot},
    sender::in_socket_form,
    synthetic::{SyntheticAddr, is_synthetic},
    tunnel::{Inbox, TunnelEntry},
    unreachable::Unreachable,
};
pub use crate::{
    extra::{Adoption, ExtraOptions},
    tunnel::{INBOX_DATAGRAMS, Injector, TunnelClosed, TunnelSend, TunnelSendError},
};

/// Tunnels one socket may have: a node holds two reservations and dials through the relays of its
/// peers, one tunnel per relay in use; an order of magnitude above what that needs.
pub const MAX_TUNNELS: usize = 256;

/// Extra sockets at once: two birthday attempts of 256 side by side, within the usual limit of
/// 1,024 descriptors per process.
pub const MAX_EXTRA_SOCKETS: usize = 512;

/// How long [`MuxHandle::close`] waits for the descriptor to go: sends and receives in progress
/// take microseconds, so this is only ever reached by one that is stuck.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it looks.
const CLOSE_POLL: Duration = Duration::from_millis(1);

/// Why a way could not be added.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    /// The endpoint has gone, and the socket with it. Nothing can be added any more.
    #[error("the node's socket is closed")]
    Closed,
    /// [`MAX_TUNNELS`] are registered. Drop one that is not in use.
    #[error("there are {MAX_TUNNELS} tunnels already: close one that is not in use")]
    TooManyTunnels,
    /// [`MAX_EXTRA_SOCKETS`] are registered. Wait for an attempt to end.
    #[error("there are {MAX_EXTRA_SOCKETS} extra sockets already: wait for an attempt to end")]
    TooManySockets,
    /// Another extra socket has that remote address.
    #[error("{0} is reached through another extra socket already")]
    AdoptedElsewhere(SocketAddr),
    /// The system refused the socket.
    #[error("the UDP socket cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// Adds ways to a running [`NodeSocket`](crate::NodeSocket). Cheap to clone, usable from any task.
#[derive(Debug, Clone)]
pub struct MuxHandle {
    shared: Weak<Shared>,
}

impl MuxHandle {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
        }
    }

    /// Closes the node's own socket, so that its port is free when this returns, whatever the
    /// engine still holds. Further datagrams are dropped. Waits for sends in progress on other
    /// threads, at most [`CLOSE_TIMEOUT`].
    pub async fn close(&self) {
        let Ok(shared) = self.shared() else { return };
        let Some(port) = shared.close_primary() else {
            return;
        };
        let io = Arc::downgrade(&port.io);
        drop(port);
        let closed = async {
            while io.strong_count() > 0 {
                tokio::time::sleep(CLOSE_POLL).await;
            }
        };
        // Afterwards only a send that waits for a full socket holds it.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    }

    pub(crate) fn shared(&self) -> Result<Arc<Shared>, MuxError> {
        self.shared.upgrade().ok_or(MuxError::Closed)
    }

    /// Registers a tunnel. Its remotes are reachable as [`Tunnel::address`] at once.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`], [`MuxError::TooManyTunnels`].
    pub fn add_tunnel(&self, carrier: Box<dyn TunnelSend>) -> Result<Tunnel, MuxError> {
        let shared = self.shared()?;
        let number = shared.numbers.next().ok_or(MuxError::TooManyTunnels)?;
        let entry = Arc::new(TunnelEntry {
            number,
            carrier: Slot::new(Arc::from(carrier)),
            inbox: Arc::new(Inbox::new(
                number,
                shared.receiver.clone(),
                shared.counters.clone(),
            )),
        });
        let mut added = false;
        shared.update(|routes| {
            added = routes.tunnels.len() < MAX_TUNNELS;
            if added {
                routes.add_tunnel(entry.clone());
            }
            added
        });
        if !added {
            return Err(MuxError::TooManyTunnels);
        }
        Ok(Tunnel {
            entry,
            shared: self.shared.clone(),
        })
    }

    /// Registers a bound UDP socket for receiving, and for sending to what it adopts. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`], [`MuxError::TooManySockets`], [`MuxError::Io`].
    pub fn add_socket(
        &self,
        socket: UdpSocket,
        options: ExtraOptions,
    ) -> Result<ExtraSocket, MuxError> {
        let shared = self.shared()?;
        let local = socket.local_addr()?;
        let family = SocketFamily::of(&socket)?;
        let port = Port::new(socket, family)?;
        let extra = Arc::new(Extra::new(
            port,
            canonical(local),
            options,
            shared.receiver.clone(),
        ));
        let mut added = false;
        shared.update(|routes| {
            added = routes.extras.len() < MAX_EXTRA_SOCKETS;
            if added {
                routes.extras.push(extra.clone());
            }
            added
        });
        if !added {
            return Err(MuxError::TooManySockets);
        }
        Ok(ExtraSocket {
            extra,
            shared: self.shared.clone(),
        })
    }

    /// Replaces the primary socket, as after the system has invalidated it. Connections, tunnels,
    /// extra sockets and counters stay; the engine should be told of the network change. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`], [`MuxError::Io`].
    pub fn rebind(&self, bound: BoundSocket) -> Result<(), MuxError> {
        let shared = self.shared()?;
        let local_addr = bound.local_addr();
        let port = Port::new(bound.socket, bound.family)?;
        match shared.rebind_primary(port, local_addr) {
            true => Ok(()),
            false => Err(MuxError::Closed),
        }
    }

    /// Waits until a datagram could not be sent because its source address has left this host.
    ///
    /// This is the earliest sign of roaming: the engine pins a path to the local address it was
    /// last seen on, and whatever it sends there fails until it is told of the network change. For
    /// one waiter; failures while nobody waits end the next wait at once. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`] if the socket is gone when the wait begins. The wait does not end when
    /// it goes later: race it against the end of the endpoint.
    pub async fn source_gone(&self) -> Result<(), MuxError> {
        let signal = self.shared()?.source_gone.clone();
        signal.notified().await;
        Ok(())
    }

    /// Watches for the system having no route to `remote`, from now until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`].
    pub fn watch_unreachable(&self, remote: SocketAddr) -> Result<Unreachable, MuxError> {
        Ok(self.shared()?.dialed.add(canonical(remote)))
    }

    /// The primary socket's present address, canonical.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`].
    pub fn local_addr(&self) -> Result<SocketAddr, MuxError> {
        Ok(self.shared()?.current().local_addr)
    }
}

/// A registered tunnel; dropping it takes it out, and late datagrams for it are dropped.
#[derive(Debug)]
pub struct Tunnel {
    entry: Arc<TunnelEntry>,
    shared: Weak<Shared>,
}

impl Tunnel {
    /// The tunnel's number, unique for the life of the socket.
    pub fn number(&self) -> u32 {
        self.entry.number
    }

    /// The address under which the engine reaches the remote with number `index`. The numbering is
    /// the carrier's.
    pub fn address(&self, index: u32) -> SyntheticAddr {
        SyntheticAddr::new(self.entry.number, index)
    }

    /// Where the carrier puts what it receives.
    pub fn injector(&self) -> Injector {
        Injector::new(self.entry.inbox.clone())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.entry.inbox.close();
        if let Some(shared) = self.shared.upgrade() {
            shared.update(|routes| routes.remove_tunnel(&self.entry));
        }
        // Last, because a carrier may do anything when it is dropped.
        self.entry.carrier.close();
    }
}

/// A registered extra socket; dropping it closes it and returns its addresses to the primary one.
#[derive(Debug)]
pub struct ExtraSocket {
    extra: Arc<Extra>,
    shared: Weak<Shared>,
}

impl ExtraSocket {
    pub(crate) fn extra(&self) -> &Extra {
        &self.extra
    }

    /// The socket's local address, canonical.
    pub fn local_addr(&self) -> SocketAddr {
        self.extra.local
    }

    /// Sends a datagram of the caller's making, to open a NAT mapping; waits only while the
    /// system's buffer is full. Does not adopt `remote`. Cancelling sends nothing.
    ///
    /// # Errors
    ///
    /// What the system reports for this datagram; [`io::ErrorKind::InvalidInput`] if none can be
    /// sent there from this socket.
    pub async fn send_to(&self, datagram: &[u8], remote: SocketAddr) -> io::Result<()> {
        let remote = canonical(remote);
        let transmit = Transmit {
            destination: remote,
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: None,
        };
        let port = self.extra.port.get().ok_or(io::ErrorKind::NotConnected)?;
        let counters = self.shared.upgrade().map(|shared| shared.counters.clone());
        let wire = in_socket_form(&transmit, remote, &port, &counters.unwrap_or_default())
            .ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            match port.try_send(&wire) {
                Ok(()) => return Ok(()),
                Err(SendFailure::WouldBlock) => port.io.writable().await?,
                Err(SendFailure::Datagram(error)) => return Err(error),
                Err(SendFailure::Renewed(error, renewed)) => {
                    if let Some(renewed) = renewed {
                        self.extra.port.replace(&port, Arc::from(renewed));
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Sends everything for `remote` by this socket from now on, without waiting for something to
    /// arrive from there.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`], [`MuxError::AdoptedElsewhere`]; [`MuxError::Io`] for a synthetic
    /// address, which has its way already.
    pub fn adopt(&self, remote: SocketAddr) -> Result<(), MuxError> {
        let shared = self.shared.upgrade().ok_or(MuxError::Closed)?;
        let remote = canonical(remote);
        if is_synthetic(remote.ip()) {
            Counters::bump(&shared.counters.send_bad_destination);
            return Err(MuxError::Io(io::ErrorKind::InvalidInput.into()));
        }
        if self.extra.adopt(&shared, remote) {
            Ok(())
        } else {
            Err(MuxError::AdoptedElsewhere(remote))
        }
    }

    /// The addresses this socket has adopted, canonical, in no order.
    pub fn adopted(&self) -> Vec<SocketAddr> {
        let Some(shared) = self.shared.upgrade() else {
            return Vec::new();
        };
        shared.current().adopted_by(&self.extra)
    }
}

impl Drop for ExtraSocket {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.update(|routes| routes.remove_extra(&self.extra));
        }
        self.extra.port.close();
    }
}
