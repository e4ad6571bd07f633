//! Extra UDP sockets: more source ports for punching, whose winner becomes a path.
//!
//! A node behind a NAT with random ports opens many sockets towards one peer, hoping that the peer
//! guesses one of the mappings. Through which socket an opener gets in is then known only when it
//! has arrived. If it is authentic, its source address is *adopted*: from then on everything for
//! that address leaves by that socket, so the engine can use the path without knowing of sockets.
//! Until then an extra socket lets nothing through to the engine.

use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;
use noq_udp::RecvMeta;
use socket2::SockRef;
use tokio::sync::mpsc;

use crate::{
    addr::canonical,
    bind::{DEFAULT_BUFFER_BYTES, raise_buffers},
    counters::Counters,
    opener::Entrance,
    port::Port,
    receive::{accept, retain},
    routes::{Routes, Shared, Slot},
};

/// Addresses one extra socket may adopt by itself. A peer has one address per mapping; a few more
/// allow for its NAT changing the port between probes, and bound what a forger can fill.
pub(crate) const ADOPTIONS_PER_SOCKET: usize = 8;

/// Batches in a row without anything for the engine before the socket yields.
const FRUITLESS_BATCHES: usize = 2;

/// Receive errors in a row after which an extra socket is given up. It is expendable, unlike the
/// primary one, so there is no pausing.
const ERRORS_IN_A_ROW: u32 = 64;

/// An address was adopted: datagrams for it leave by that socket from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adoption {
    /// The local address of the extra socket, canonical.
    pub local: SocketAddr,
    /// The adopted remote address, canonical.
    pub remote: SocketAddr,
}

/// What an extra socket is for.
#[derive(Debug, Clone, Default)]
pub struct ExtraOptions {
    /// The host whose addresses are adopted when an authentic opener comes from them. Everything
    /// else is dropped. `None`: nothing is adopted but by
    /// [`ExtraSocket::adopt`](crate::mux::ExtraSocket::adopt).
    pub expect: Option<IpAddr>,
    /// Where adoptions are told; one receiver can serve a whole pool. If it is full or gone the
    /// adoption happens all the same.
    pub adoptions: Option<mpsc::Sender<Adoption>>,
}

/// An extra socket in the table of routes.
#[derive(Debug)]
pub(crate) struct Extra {
    pub(crate) port: Slot<Port>,
    pub(crate) local: SocketAddr,
    options: ExtraOptions,
    signal: Arc<Signal>,
    /// `signal` as the waker of this socket's readiness.
    waker: Waker,
    errors_in_a_row: AtomicU32,
    adopted: AtomicUsize,
}

/// Says that one extra socket has something, and wakes the engine's receive task.
///
/// With a waker per socket, a pool of hundreds costs the receive task one flag each instead of one
/// readiness check each.
#[derive(Debug)]
struct Signal {
    ready: AtomicBool,
    receiver: Arc<AtomicWaker>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.store(true, Ordering::Release);
        self.receiver.wake();
    }
}

impl Extra {
    pub(crate) fn new(
        port: Port,
        local: SocketAddr,
        options: ExtraOptions,
        receiver: Arc<AtomicWaker>,
    ) -> Self {
        let signal = Arc::new(Signal {
            // The first poll registers the waker.
            ready: AtomicBool::new(true),
            receiver,
        });
        Self {
            port: Slot::new(Arc::new(port)),
            local,
            options,
            waker: Waker::from(signal.clone()),
            signal,
            errors_in_a_row: AtomicU32::new(0),
            adopted: AtomicUsize::new(0),
        }
    }

    /// Receives a batch; 0 if there is nothing for the engine now. The receive task is woken when
    /// that changes.
    pub(crate) fn receive(
        self: &Arc<Self>,
        shared: &Shared,
        routes: &Routes,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        if !self.signal.ready.load(Ordering::Acquire) {
            return 0;
        }
        let Some(port) = self.port.get() else {
            return 0;
        };
        self.signal.ready.store(false, Ordering::Release);
        let mut cx = Context::from_waker(&self.waker);
        for _ in 0..FRUITLESS_BATCHES {
            match port.io.poll_recv_ready(&mut cx) {
                Poll::Ready(Ok(())) => {}
                // An error here is the runtime's end, which the primary socket reports.
                Poll::Pending | Poll::Ready(Err(_)) => return 0,
            }
            match port.try_recv(bufs, meta) {
                Ok(received) => {
                    self.errors_in_a_row.store(0, Ordering::Relaxed);
                    let quic = accept(&shared.counters, bufs, meta, received, |datagram, entry| {
                        shared.heard(routes, slice::from_ref(entry));
                        Entrance::Extra(self, &port).opener(shared, routes, datagram, entry);
                    });
                    let kept = retain(bufs, meta, quic, |entry| {
                        self.belongs_here(shared, routes, canonical(entry.addr))
                    });
                    shared.heard(routes, &meta[..kept]);
                    if kept > 0 {
                        self.signal.ready.store(true, Ordering::Release);
                        return kept;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    Counters::bump(&shared.counters.recv_errors);
                    let errors = self.errors_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                    if errors >= ERRORS_IN_A_ROW {
                        self.port.close();
                        return 0;
                    }
                }
            }
        }
        self.waker.wake_by_ref();
        0
    }

    /// Whether the engine may see datagrams from `remote` through this socket: if it has adopted
    /// that address.
    fn belongs_here(
        self: &Arc<Self>,
        shared: &Shared,
        routes: &Routes,
        remote: SocketAddr,
    ) -> bool {
        let owned = |routes: &Routes| {
            let owner = routes.overrides.get(&remote);
            owner.is_some_and(|owner| Arc::ptr_eq(owner, self))
        };
        // What adopted it may have come in the same batch as this.
        let known =
            owned(routes) || (self.adopted.load(Ordering::Relaxed) > 0 && owned(&shared.current()));
        if !known {
            Counters::bump(&shared.counters.recv_extra_unexpected);
        }
        known
    }

    /// Adopts the source of an authentic opener, if this socket expects its host; whether it is
    /// this socket's.
    pub(crate) fn adopt_expected(self: &Arc<Self>, shared: &Shared, remote: SocketAddr) -> bool {
        if self.options.expect != Some(remote.ip()) {
            return false;
        }
        if self.adopted.load(Ordering::Relaxed) < ADOPTIONS_PER_SOCKET {
            return self.adopt(shared, remote);
        }
        shared.current().adopted_by(self).contains(&remote)
    }

    /// Routes `remote` to this socket; `false` if another extra socket has it.
    pub(crate) fn adopt(self: &Arc<Self>, shared: &Shared, remote: SocketAddr) -> bool {
        let mut new = false;
        let mut ours = true;
        shared.update(|routes| {
            match routes.overrides.get(&remote) {
                Some(owner) => ours = Arc::ptr_eq(owner, self),
                None => {
                    routes.overrides.insert(remote, self.clone());
                    new = true;
                }
            }
            new
        });
        if new {
            self.adopted.fetch_add(1, Ordering::Relaxed);
            if let Some(port) = self.port.get() {
                // From now on it carries a path. All sockets of a pool with such buffers would be
                // more than some systems grant.
                raise_buffers(&SockRef::from(&**port.io), DEFAULT_BUFFER_BYTES);
            }
            if let Some(adoptions) = &self.options.adoptions {
                // The route stands whether or not anybody listens.
                let _ = adoptions.try_send(Adoption {
                    local: self.local,
                    remote,
                });
            }
        }
        ours
    }
}
