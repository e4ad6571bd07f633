//! Openers a node sends to itself, to see how the network sees it.
//!
//! One that is sent to an address of its own at a relay comes back through the tunnel, with the
//! source the relay saw: that is the port the node's NAT has for this relay, or for a new socket. One
//! that is sent through a tunnel to the node's own external address arrives if the NAT lets in
//! strangers. Both need no help but the relay's.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    num::NonZeroU8,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyreach_net::{Arrival, ArrivedBy, Hops, MuxError, MuxHandle, SpareSocket, is_synthetic};
use anyreach_wire::opener::{Mac, OPENER_LEN, Opener, OpenerKind, OpenerRole};
use tokio::{sync::oneshot, time::Instant};

use super::Secret;
use crate::directory::DirectorySlot;

/// Reflections under way at once: all that a node can learn takes a handful, for each of two relays
/// and both families.
pub const MAX_REFLECTIONS: usize = 64;

/// How often the datagram is sent, evenly over the first half of the time: so that one that is lost
/// is not taken for a NAT that lets nothing in, and the last has time to arrive. Through a tunnel it
/// is sent once: a later one may be let in by what the node has sent meanwhile.
const COPIES: u32 = 3;

/// Where and how a reflection arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reflected {
    /// The source it arrived with, as the relay reports it if it came through a tunnel.
    pub source: SocketAddr,
    /// The number of the tunnel it came through; `None` for the node's own socket.
    pub tunnel: Option<u32>,
}

/// Why there is no reflection.
#[derive(Debug, thiserror::Error)]
pub enum ReflectError {
    /// [`MAX_REFLECTIONS`] are under way. Wait for some of them.
    #[error("{MAX_REFLECTIONS} reflections are under way already")]
    Limit,
    /// It could not be sent.
    #[error(transparent)]
    Socket(#[from] MuxError),
    /// There is no socket for it.
    #[error("there is no socket for it: {0}")]
    Io(#[from] io::Error),
}

impl From<ReflectError> for io::Error {
    fn from(error: ReflectError) -> Self {
        match error {
            ReflectError::Io(error) | ReflectError::Socket(MuxError::Io(error)) => error,
            other => Self::other(other),
        }
    }
}

/// Waits for what the node has sent itself.
pub(crate) struct Mirror {
    secret: Secret,
    next: AtomicU32,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Reflected>>>,
}

impl Mirror {
    pub(super) fn new(secret: Secret) -> Self {
        Self {
            secret,
            next: AtomicU32::new(0),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Reflected>>> {
        // A map is whole between any two operations.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an opener to itself, to a canonical or synthetic address. At once, so that several leave
    /// in the order of the calls: NATs count.
    pub(crate) fn reflect(
        &self,
        socket: &MuxHandle,
        to: SocketAddr,
        fresh: bool,
    ) -> Result<Reflection, ReflectError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let datagram = self
            .secret
            .datagram(OpenerKind::Reflection, number, OpenerRole::Myself);
        let spare = fresh.then(|| socket.spare_socket(to)).transpose()?;
        let local_port = match &spare {
            Some(spare) => spare.local_addr()?.port(),
            None => socket.local_addr()?.port(),
        };
        let (teller, arrived) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            // Those that were given up.
            waiting.retain(|_, teller| !teller.is_closed());
            if waiting.len() >= MAX_REFLECTIONS {
                return Err(ReflectError::Limit);
            }
            waiting.insert(number, teller);
        }
        let reflection = Reflection {
            datagram,
            to,
            socket: socket.clone(),
            spare,
            local_port,
            arrived,
        };
        reflection.send()?;
        Ok(reflection)
    }

    /// Sends a datagram that nobody is to get to `to`: it opens our own NATs, as many routers away.
    pub(crate) fn prime(
        &self,
        socket: &MuxHandle,
        to: SocketAddr,
        hops: NonZeroU8,
    ) -> Result<(), MuxError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let datagram = self
            .secret
            .datagram(OpenerKind::Reflection, number, OpenerRole::Myself);
        socket.send_raw(&datagram, to, Some(hops))
    }

    /// Whether it is one of ours.
    pub(super) fn received(
        &self,
        opener: &Opener,
        mac: &Mac,
        arrival: &Arrival<'_>,
        directory: &DirectorySlot,
    ) -> bool {
        if !self.secret.is_genuine(opener, mac, OpenerRole::Myself) {
            return false;
        }
        let from = arrival.from();
        let tunnel = match arrival.by() {
            ArrivedBy::Tunnel(number) => Some(number),
            ArrivedBy::Primary | ArrivedBy::Extra(_) => None,
        };
        let source = match is_synthetic(from.ip()) {
            true => directory.resolve(from).map(|resolved| resolved.remote),
            false => Some(from),
        };
        // The first arrival counts; copies of it find nobody.
        if let Some(source) = source
            && let Some(teller) = self.waiting().remove(&opener.number)
        {
            // Given up meanwhile.
            let _ = teller.send(Reflected { source, tunnel });
        }
        true
    }
}

/// An opener of the node to itself.
pub struct Reflection {
    datagram: [u8; OPENER_LEN],
    to: SocketAddr,
    socket: MuxHandle,
    spare: Option<SpareSocket>,
    local_port: u16,
    arrived: oneshot::Receiver<Reflected>,
}

impl Reflection {
    /// The local port it is sent from: that of the new socket, or the node's.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Waits until it arrives; `None` if it has not in this time.
    pub async fn arrive(mut self, timeout: Duration) -> Option<Reflected> {
        let begin = Instant::now();
        let copies = if is_synthetic(self.to.ip()) {
            1
        } else {
            COPIES
        };
        for next in 1..=copies {
            let until = if next == copies {
                timeout
            } else {
                timeout / 2 * next / copies
            };
            let arrived = tokio::time::timeout_at(begin + until, &mut self.arrived);
            if let Ok(arrived) = arrived.await {
                return arrived.ok();
            }
            if next < copies {
                // The first one left; this one is for luck.
                let _ = self.send();
            }
        }
        None
    }

    fn send(&self) -> Result<(), ReflectError> {
        match &self.spare {
            Some(spare) => spare.send_raw(&self.datagram, self.to, Hops::None)?,
            None => self.socket.send_raw(&self.datagram, self.to, Hops::None)?,
        }
        Ok(())
    }
}
