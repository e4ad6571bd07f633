//! One tunnel as the socket sees it: where to put outgoing datagrams, and the inbox of the
//! incoming ones. Holds no socket and no knowledge of what carries the tunnel.

use std::{
    collections::VecDeque,
    io::IoSliceMut,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use noq_udp::{RecvMeta, Transmit};

use crate::{
    counters::Counters,
    junk::{Junk, classify},
    opener::Entrance,
    port::singles,
    receive::retain,
    routes::{Routes, Shared, Slot},
    synthetic::SyntheticAddr,
};

/// Datagrams a tunnel may hold for the engine; with one more, the oldest goes.
///
/// 512 of 1,200 bytes bridge 50 ms of 100 Mbit/s, more than the engine ever leaves its socket
/// alone on a busy machine. More would only be delay: congestion control needs to see the loss. The
/// oldest goes, because it is the one whose loss the sender finds out about first.
pub const INBOX_DATAGRAMS: usize = 512;

/// Batches in a row without anything for the engine before a tunnel yields.
const FRUITLESS_BATCHES: usize = 2;

/// The carrier of a tunnel: takes datagrams of the engine and brings them to a remote.
///
/// Called on the engine's tasks for every single datagram, so it must not block and should not
/// take long. A carrier that is full says so and the datagram is dropped: waiting for it would hold
/// up the direct paths of the same connection as well, and inner congestion control needs a short
/// queue with loss, not a long one without.
pub trait TunnelSend: Send + Sync + 'static {
    /// Takes one datagram for the remote with number `index`.
    ///
    /// # Errors
    ///
    /// [`TunnelSendError`]: the datagram is dropped and counted under that reason.
    fn try_send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError>;
}

/// Why a carrier did not take a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TunnelSendError {
    /// Its queue is full; a later datagram may fit.
    #[error("the tunnel's queue is full")]
    Full,
    /// The datagram is larger than the tunnel carries now. Tells MTU discovery of the inner path.
    #[error("the datagram is too large for the tunnel")]
    TooLarge,
    /// There is no such remote, or the tunnel is closing.
    #[error("the tunnel does not lead there any more")]
    Closed,
}

/// A tunnel in the table of routes.
#[derive(Debug)]
pub(crate) struct TunnelEntry {
    pub(crate) number: u32,
    pub(crate) carrier: Slot<dyn TunnelSend>,
    pub(crate) inbox: Arc<Inbox>,
}

impl TunnelEntry {
    /// Sends each datagram of a transmit on its own: segmentation offload ends here.
    pub(crate) fn send(&self, index: u32, transmit: &Transmit<'_>, counters: &Counters) {
        let carrier = self.carrier.get();
        for single in singles(transmit) {
            let result = match &carrier {
                Some(carrier) => carrier.try_send(index, single.contents),
                None => Err(TunnelSendError::Closed),
            };
            if let Err(reason) = result {
                Counters::bump(match reason {
                    TunnelSendError::Full => &counters.send_tunnel_full,
                    TunnelSendError::TooLarge => &counters.send_tunnel_too_large,
                    TunnelSendError::Closed => &counters.send_no_tunnel,
                });
            }
        }
    }
}

impl TunnelEntry {
    /// Moves datagrams for the engine into its buffers and returns how many; openers are handed on.
    pub(crate) fn receive(
        &self,
        shared: &Shared,
        routes: &Routes,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        for _ in 0..FRUITLESS_BATCHES {
            let drained = self.inbox.drain(bufs, meta);
            if drained == 0 {
                return 0;
            }
            for (buf, entry) in bufs.iter().zip(&mut *meta).take(drained) {
                if classify(&buf[..entry.len]) == Some(Junk::Opener) {
                    Entrance::Tunnel(self).opener(shared, routes, &buf[..entry.len], entry);
                    entry.len = 0;
                }
            }
            let kept = retain(bufs, meta, drained, |entry| entry.len > 0);
            if kept > 0 {
                return kept;
            }
        }
        shared.receiver.wake();
        0
    }
}

/// What a tunnel has received and the engine has not yet taken.
#[derive(Debug)]
pub(crate) struct Inbox {
    number: u32,
    queue: Mutex<VecDeque<(u32, Bytes)>>,
    /// Whether `queue` may hold something; lets the receiver pass by without the lock.
    filled: AtomicBool,
    open: AtomicBool,
    receiver: Arc<AtomicWaker>,
    counters: Arc<Counters>,
}

impl Inbox {
    pub(crate) fn new(number: u32, receiver: Arc<AtomicWaker>, counters: Arc<Counters>) -> Self {
        Self {
            number,
            queue: Mutex::default(),
            filled: AtomicBool::new(false),
            open: AtomicBool::new(true),
            receiver,
            counters,
        }
    }

    /// Refuses what comes from now on and forgets what is there.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::Release);
        self.with_queue(|queue| queue.clear());
    }

    fn with_queue<T>(&self, work: impl FnOnce(&mut VecDeque<(u32, Bytes)>) -> T) -> T {
        // A queue of whole datagrams is valid at every step, so a poisoned lock is harmless.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut queue);
        self.filled.store(!queue.is_empty(), Ordering::Release);
        result
    }

    fn push(&self, index: u32, datagram: Bytes) -> Result<(), TunnelClosed> {
        if !self.open.load(Ordering::Acquire) {
            return Err(TunnelClosed);
        }
        match classify(&datagram) {
            // Taken out again by who drains: its answer must not meet the locks of who fills.
            None | Some(Junk::Opener) => {}
            Some(kind) => {
                self.counters.junk(kind);
                return Ok(());
            }
        }
        self.with_queue(|queue| {
            if queue.len() == INBOX_DATAGRAMS {
                queue.pop_front();
                Counters::bump(&self.counters.recv_tunnel_overflow);
            }
            queue.push_back((index, datagram));
        });
        self.receiver.wake();
        Ok(())
    }

    /// Moves datagrams into the engine's buffers and returns how many.
    pub(crate) fn drain(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        if !self.filled.load(Ordering::Acquire) {
            return 0;
        }
        let slots = bufs.len().min(meta.len());
        self.with_queue(|queue| {
            let mut count = 0;
            while count < slots {
                let Some((index, datagram)) = queue.pop_front() else {
                    break;
                };
                let Some(buf) = bufs[count].get_mut(..datagram.len()) else {
                    Counters::bump(&self.counters.recv_tunnel_overflow);
                    continue;
                };
                buf.copy_from_slice(&datagram);
                let mut entry = RecvMeta::default();
                entry.addr = SyntheticAddr::new(self.number, index).socket_addr();
                entry.len = datagram.len();
                entry.stride = datagram.len();
                meta[count] = entry;
                count += 1;
            }
            count
        })
    }
}

/// Brings datagrams that came out of a tunnel to the engine. Cheap to clone, usable from any
/// thread; does not keep the tunnel or the socket alive.
#[derive(Debug, Clone)]
pub struct Injector {
    inbox: Arc<Inbox>,
}

impl Injector {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox }
    }

    /// Queues one datagram that came from the remote with number `index`. Never waits: beyond
    /// [`INBOX_DATAGRAMS`] the oldest one is dropped and counted. Datagrams that cannot be QUIC are
    /// dropped as if they had come from the network.
    ///
    /// # Errors
    ///
    /// [`TunnelClosed`] once the [`Tunnel`](crate::mux::Tunnel) is gone.
    pub fn inject(&self, index: u32, datagram: Bytes) -> Result<(), TunnelClosed> {
        self.inbox.push(index, datagram)
    }
}

/// The tunnel is not registered any more: stop feeding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel is closed")]
pub struct TunnelClosed;

/// The next tunnel number. Numbers are not used twice in the life of a socket, so a late datagram
/// for a closed tunnel cannot end up in another one.
#[derive(Debug, Default)]
pub(crate) struct Numbers(AtomicU64);

impl Numbers {
    /// `None` after 2^32 tunnels.
    pub(crate) fn next(&self) -> Option<u32> {
        u32::try_from(self.0.fetch_add(1, Ordering::Relaxed)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Inbox {
        Inbox::new(7, Arc::default(), Arc::default())
    }

    fn datagram(number: u32) -> Bytes {
        let mut bytes = vec![0x40; 32];
        bytes[1..5].copy_from_slice(&number.to_be_bytes());
        Bytes::from(bytes)
    }

    fn take(inbox: &Inbox, slots: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut storage = vec![[0_u8; 64]; slots];
        let mut bufs: Vec<_> = storage.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut meta = vec![RecvMeta::default(); slots];
        let count = inbox.drain(&mut bufs, &mut meta);
        (0..count)
            .map(|i| (meta[i].addr, bufs[i][..meta[i].len].to_vec()))
            .collect()
    }

    use std::net::SocketAddr;

    #[test]
    fn the_oldest_goes_first_when_full() {
        let inbox = inbox();
        let total = INBOX_DATAGRAMS as u32 + 3;
        for number in 0..total {
            inbox.push(number, datagram(number)).expect("open");
        }
        assert_eq!(inbox.counters.snapshot().recv_tunnel_overflow, 3);
        let mut seen = Vec::new();
        loop {
            let batch = take(&inbox, 32);
            if batch.is_empty() {
                break;
            }
            seen.extend(batch);
        }
        assert_eq!(seen.len(), INBOX_DATAGRAMS);
        for (offset, (addr, bytes)) in seen.iter().enumerate() {
            let number = offset as u32 + 3;
            assert_eq!(*addr, SyntheticAddr::new(7, number).socket_addr());
            assert_eq!(*bytes, datagram(number));
        }
    }

    #[test]
    fn junk_and_what_fits_no_buffer_is_counted() {
        let inbox = inbox();
        inbox.push(0, Bytes::new()).expect("open");
        inbox.push(0, Bytes::from_static(&[0x40])).expect("open");
        inbox.push(0, Bytes::from(vec![0x40; 65])).expect("open");
        inbox.push(0, datagram(1)).expect("open");
        assert_eq!(take(&inbox, 4).len(), 1);
        let counted = inbox.counters.snapshot();
        assert_eq!(
            (
                counted.junk_empty,
                counted.junk_runt,
                counted.recv_tunnel_overflow
            ),
            (1, 1, 1)
        );
    }

    #[test]
    fn a_closed_inbox_is_empty_and_says_so() {
        let inbox = inbox();
        inbox.push(0, datagram(1)).expect("open");
        inbox.close();
        assert_eq!(inbox.push(0, datagram(2)), Err(TunnelClosed));
        assert!(take(&inbox, 4).is_empty());
    }
}
