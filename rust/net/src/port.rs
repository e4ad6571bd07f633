//! One UDP socket with its offload state: the place where the kernel is called.

use std::{
    io::{self, IoSliceMut},
    net::UdpSocket,
    num::NonZeroUsize,
    ops::Deref,
    sync::Arc,
};

use noq_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;

use crate::{addr::SocketFamily, inherit::NotInherited};

/// A UDP socket in its present offload state. Immutable: a changed state is a new `Port` over the
/// same socket, so that readers need no lock.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) io: Arc<Io>,
    pub(crate) family: SocketFamily,
    state: UdpSocketState,
    /// Cleared once segmentation offload has proved not to work on this host.
    gso: bool,
}

/// The socket itself.
#[derive(Debug)]
pub(crate) struct Io {
    // Before the socket, so that it is dropped first.
    _not_inherited: NotInherited,
    socket: tokio::net::UdpSocket,
}

impl Deref for Io {
    type Target = tokio::net::UdpSocket;

    fn deref(&self) -> &Self::Target {
        &self.socket
    }
}

/// Why a datagram was not sent.
#[derive(Debug)]
pub(crate) enum SendFailure {
    /// Try again when the socket is writable.
    WouldBlock,
    /// This datagram cannot be sent.
    Datagram(io::Error),
    /// Like [`Self::Datagram`], and the offload state has switched itself off over it: continue
    /// with the given one.
    Renewed(io::Error, Option<Box<Port>>),
}

impl Port {
    /// Takes over a bound socket; must be called within a tokio runtime.
    pub(crate) fn new(socket: UdpSocket, family: SocketFamily) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Self {
            io: Arc::new(Io {
                _not_inherited: NotInherited::new(&socket),
                socket,
            }),
            family,
            state,
            gso: true,
        })
    }

    /// The number of datagrams one transmit may hold.
    pub(crate) fn max_transmit_segments(&self) -> NonZeroUsize {
        if self.gso {
            self.state.max_gso_segments()
        } else {
            NonZeroUsize::MIN
        }
    }

    pub(crate) fn max_receive_segments(&self) -> NonZeroUsize {
        self.state.gro_segments()
    }

    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Receives a batch without waiting.
    pub(crate) fn try_recv(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.io.try_io(Interest::READABLE, || {
            self.state.recv((&self.io.socket).into(), bufs, meta)
        })
    }

    /// Sends a transmit whose addresses are in this socket's form, without waiting.
    pub(crate) fn try_send(&self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        if !self.gso && is_batch(transmit) {
            return self.send_one_by_one(transmit);
        }
        match self.send(transmit) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SendFailure::WouldBlock),
            Err(error) if disables_offload(&error) => {
                let renewed = self.renew(transmit).map(Box::new);
                Err(SendFailure::Renewed(error, renewed))
            }
            Err(error) => Err(SendFailure::Datagram(error)),
        }
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || {
            self.state.try_send((&self.io.socket).into(), transmit)
        })
    }

    /// Batches that were built just before segmentation offload was found not to work.
    fn send_one_by_one(&self, transmit: &Transmit<'_>) -> Result<(), SendFailure> {
        let mut result = Ok(());
        for single in singles(transmit) {
            match self.send(&single) {
                Ok(()) => {}
                // Resuming in the middle would need memory of what has left; these few stragglers
                // are not worth it, loss recovery is there for them.
                Err(error) => result = Err(SendFailure::Datagram(error)),
            }
        }
        result
    }

    /// The state to go on with after the kernel has rejected the *arguments* of a datagram.
    ///
    /// The offload state takes `EINVAL` or `EIO` as a sign of an old kernel or of a network card
    /// without segmentation, and gives up segmentation and ECN for good. Far more often the reason
    /// is a source address that has left the host, and the next datagram would be fine. So the
    /// state is made anew, without segmentation only if the batch passes in single datagrams.
    ///
    /// `None` if the state cannot be made anew; then the present one stays.
    fn renew(&self, transmit: &Transmit<'_>) -> Option<Self> {
        let mut fresh = self.fresh(self.gso)?;
        if is_batch(transmit) {
            match fresh.send_one_by_one(transmit) {
                Ok(()) => fresh.gso = false,
                // The trial may have switched the fresh state off as well.
                Err(_) => fresh = self.fresh(self.gso)?,
            }
        }
        Some(fresh)
    }

    fn fresh(&self, gso: bool) -> Option<Self> {
        let state = UdpSocketState::new((&self.io.socket).into()).ok()?;
        Some(Self {
            io: self.io.clone(),
            family: self.family,
            state,
            gso,
        })
    }
}

/// Whether the transmit holds more than one datagram.
pub(crate) fn is_batch(transmit: &Transmit<'_>) -> bool {
    transmit
        .segment_size
        .is_some_and(|size| size < transmit.contents.len())
}

/// The datagrams of a transmit, each as a transmit of its own.
pub(crate) fn singles<'a>(transmit: &'a Transmit<'a>) -> impl Iterator<Item = Transmit<'a>> {
    let size = transmit.segment_size.unwrap_or(transmit.contents.len());
    transmit
        .contents
        .chunks(size.max(1))
        .map(move |contents| Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents,
            segment_size: None,
            src_ip: transmit.src_ip,
        })
}

#[cfg(unix)]
fn disables_offload(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO))
}

#[cfg(not(unix))]
fn disables_offload(_error: &io::Error) -> bool {
    false
}
