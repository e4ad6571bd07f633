//! The other half of a tunnel: what arrives at its socket goes to the client.
//!
//! A task per socket. It holds no buffers: those belong to the thread it happens to run on, since
//! between receiving a batch and passing it on nothing waits.

use std::{
    cell::RefCell,
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyreach_net::UdpPort;
use noq_udp::{BATCH_SIZE, RecvMeta};

use super::{
    quota::Direction,
    rules::Gate,
    session::Session,
    stats::{DropReason, Ledger, Traffic},
};
use crate::carrier::{CapsuleError, Close, DatagramError};

/// Most bytes of one buffer: what the system coalesces at most.
const BUFFER_BYTES: usize = 1 << 16;

/// Batches in a row before other tasks get their turn, so that a flood of one session does not
/// hold up the others.
const BATCHES_PER_TURN: usize = 4;

/// Errors in a row after which the task pauses. Those queued by ICMP come one per call; more mean
/// that the error stays.
const ERRORS_IN_A_ROW: u32 = 64;

/// How long it pauses then: short for people, long for a processor.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// How often what arrives for an absent client is thrown away. What is younger than this when the
/// client comes back is delivered, so that moving to another connection loses less.
const DISCARD_EVERY: Duration = Duration::from_millis(250);

/// Turns after which throwing away stops for this time: several times what the socket's buffer
/// holds, so that only a flood gets there.
const DISCARD_TURNS: usize = 8;

/// Where batches are received.
struct Buffers {
    storage: Vec<u8>,
    meta: [RecvMeta; BATCH_SIZE],
}

thread_local! {
    /// 2 MiB of addresses per thread that has received something; memory only as far as it was
    /// ever filled.
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        storage: vec![0; BATCH_SIZE * BUFFER_BYTES],
        meta: [RecvMeta::default(); BATCH_SIZE],
    });
}

/// Receives one batch without waiting, and hands on each source with what came from it in one
/// buffer, and the size of all datagrams in there but the last.
fn receive(port: &UdpPort, mut take: impl FnMut(SocketAddr, &[u8], usize)) -> io::Result<()> {
    BUFFERS.with_borrow_mut(|Buffers { storage, meta }| {
        let mut chunks = storage.chunks_exact_mut(BUFFER_BYTES);
        let mut bufs: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let count = port.try_recv(&mut bufs, meta)?;
        for (buf, entry) in bufs.iter().zip(meta.iter()).take(count) {
            let contents = &buf[..entry.len.min(buf.len())];
            take(entry.addr, contents, entry.stride);
        }
        Ok(())
    })
}

/// The datagrams in one buffer. An empty one is a datagram, too.
fn datagrams(contents: &[u8], stride: usize) -> impl Iterator<Item = &[u8]> {
    let empty = contents.is_empty().then_some(contents);
    let stride = if stride == 0 { contents.len() } else { stride };
    empty.into_iter().chain(contents.chunks(stride.max(1)))
}

/// What a turn came to.
enum Turn {
    /// There may be more.
    More,
    /// There is nothing now.
    Done,
    /// An error of one datagram, or one that stays.
    Failed,
}

fn turn(port: &UdpPort, mut take: impl FnMut(SocketAddr, &[u8], usize)) -> Turn {
    for _ in 0..BATCHES_PER_TURN {
        match receive(port, &mut take) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Done,
            Err(error) => {
                tracing::trace!(%error, "receive error on a relayed address");
                return Turn::Failed;
            }
        }
    }
    Turn::More
}

/// Brings the client what arrives at `port`, until the session ends or the task is aborted.
pub(crate) async fn run(session: Arc<Session>, port: Arc<UdpPort>) {
    let mut gate = session.gate();
    let mut errors = 0;
    // An error here is the end of the runtime.
    while port.readable().await.is_ok() && !session.has_ended() {
        let now = Instant::now();
        let done = turn(&port, |source, contents, stride| {
            deliver(&session, &mut gate, now, source, contents, stride);
        });
        match done {
            Turn::Done => errors = 0,
            Turn::More => {
                errors = 0;
                tokio::task::yield_now().await;
            }
            Turn::Failed => errors += 1,
        }
        if errors >= ERRORS_IN_A_ROW {
            errors = 0;
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

/// What came from one source goes into the tunnel.
fn deliver(
    session: &Session,
    gate: &mut Gate,
    now: Instant,
    source: SocketAddr,
    contents: &[u8],
    stride: usize,
) {
    let all = datagrams(contents, stride);
    // Whom the client could not answer cannot be a peer. It also would get a context, and with it
    // be answered unchecked.
    if gate.check(source).is_err() {
        session.traffic().dropped(DropReason::Source, all.count());
        return;
    }
    let Some(routed) = session.contexts().route(source, now) else {
        session
            .traffic()
            .dropped(DropReason::Unsolicited, all.count());
        return;
    };
    for capsule in &routed.capsules {
        match session.tell(capsule) {
            Ok(()) | Err(CapsuleError::Closed) => {}
            Err(CapsuleError::QueueFull) => {
                session.end(Close::DatagramError);
                return;
            }
        }
    }
    let (mut packets, mut bytes) = (0, 0);
    for payload in all {
        match pass(session, &routed.head, payload, now) {
            Ok(()) => {
                packets += 1;
                bytes += payload.len();
            }
            Err(reason) => session.traffic().dropped(reason, 1),
        }
    }
    session.traffic().add_to_client(packets, bytes);
}

fn pass(session: &Session, head: &[u8], payload: &[u8], now: Instant) -> Result<(), DropReason> {
    let meter = session.meter();
    meter.admits(Direction::ToClient, payload.len(), now)?;
    let sent = session.out().send_datagram(head, payload);
    sent.map_err(|error| match error {
        DatagramError::Full => DropReason::CarrierFull,
        DatagramError::TooLarge => DropReason::CarrierTooLarge,
        DatagramError::Closed => DropReason::CarrierClosed,
    })
}

/// Throws away what arrives at `port` while nobody is attached. A flood costs a few dozen batches
/// four times a second; the system drops the rest.
pub(crate) async fn discard(port: Arc<UdpPort>, ledger: Arc<Ledger>) {
    let traffic: &Traffic = &ledger.own;
    while port.readable().await.is_ok() {
        tokio::time::sleep(DISCARD_EVERY).await;
        for _ in 0..DISCARD_TURNS {
            let done = turn(&port, |_, contents, stride| {
                let count = datagrams(contents, stride).count();
                traffic.dropped(DropReason::Unattached, count);
            });
            match done {
                Turn::More => tokio::task::yield_now().await,
                Turn::Done | Turn::Failed => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_cut_into_its_datagrams() {
        let cut = |contents: &'static [u8], stride| datagrams(contents, stride).collect::<Vec<_>>();
        assert_eq!(cut(b"", 0), [b""]);
        assert_eq!(cut(b"", 9), [b""]);
        assert_eq!(cut(b"abcde", 0), [b"abcde"]);
        assert_eq!(cut(b"abcde", 2), [&b"ab"[..], b"cd", b"e"]);
        assert_eq!(cut(b"abcd", 2), [b"ab", b"cd"]);
    }
}
