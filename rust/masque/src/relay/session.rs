//! One tunnel from the client's side: what comes out of it goes to the network here.
//!
//! Nothing in a session is shared with another one but the policy, which is read without a lock,
//! and the quotas, which are a few atomic numbers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyreach_wire::capsule::Capsule;
use bytes::{BufMut, Bytes, BytesMut};
use noq_udp::Transmit;

use super::{
    batch::{Batches, Run},
    policy::Scope,
    quota::{Account, Direction, OverQuota, Quotas},
    rules::{Gate, Rules},
    sockets::Sockets,
    stats::{DropReason, SessionInfo, Traffic},
};
use crate::{
    carrier::{CapsuleError, Client, Close, ProtocolViolation, TunnelOut},
    contexts::{DropReason as Unread, EarlyDatagrams, Incoming, ProxyContexts},
};

/// What a client may use, and how much it has.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) account: Arc<Account>,
    /// When time began for the quotas.
    pub(crate) epoch: Instant,
}

impl Meter {
    /// Whether `bytes` may pass; they are counted if they may.
    pub(crate) fn admits(
        &self,
        direction: Direction,
        bytes: usize,
        now: Instant,
    ) -> Result<(), DropReason> {
        if self.quotas.is_unlimited() {
            return Ok(());
        }
        let nanos = now.saturating_duration_since(self.epoch).as_nanos();
        // Enough for five hundred years.
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        self.quotas
            .take(&self.account, direction, bytes, nanos)
            .map_err(|over| match over {
                OverQuota::Client => DropReason::ClientQuota,
                OverQuota::Total => DropReason::TotalQuota,
            })
    }
}

/// What a session is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: u64,
    pub(crate) client: Client,
    pub(crate) out: Arc<dyn TunnelOut>,
    /// Weak, so that they are closed when they are given up, whoever still holds the session.
    pub(crate) sockets: Weak<Sockets>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) scope: Scope,
    pub(crate) meter: Meter,
    pub(crate) traffic: Arc<Traffic>,
    /// The addresses lent; none for a tunnel to one target.
    pub(crate) bound: Vec<SocketAddr>,
    /// Meaning of context 0.
    pub(crate) target: Option<SocketAddr>,
    /// Where packets to IPv4 and to IPv6 remotes come from; `None` leaves it to the system.
    pub(crate) sources: [Option<IpAddr>; 2],
}

/// One tunnel.
#[derive(Debug)]
pub(crate) struct Session {
    parts: Parts,
    contexts: Mutex<ProxyContexts>,
    /// Used by the carrier's one task.
    uplink: Mutex<Uplink>,
    since: Instant,
    ended: AtomicBool,
}

/// What the way from the client needs.
#[derive(Debug)]
struct Uplink {
    gate: Gate,
    batches: Batches,
    early: EarlyDatagrams,
    /// Most datagrams per system call, as of the last flush.
    segments: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic the session is as good as its last packet; it must not take the relay along.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(crate) fn new(parts: Parts, contexts: ProxyContexts) -> Self {
        let gate = Gate::new(parts.rules.clone(), parts.scope);
        let session = Self {
            contexts: Mutex::new(contexts),
            uplink: Mutex::new(Uplink {
                gate,
                batches: Batches::default(),
                early: EarlyDatagrams::default(),
                segments: 1,
            }),
            since: Instant::now(),
            ended: AtomicBool::new(false),
            parts,
        };
        lock(&session.uplink).segments = session.max_segments();
        session
    }

    /// An HTTP Datagram from the client.
    pub(crate) fn datagram(&self, datagram: Bytes) -> Result<(), ProtocolViolation> {
        if self.has_ended() {
            return Ok(());
        }
        self.on_datagram(&mut lock(&self.uplink), datagram, Instant::now())
    }

    fn on_datagram(
        &self,
        uplink: &mut Uplink,
        datagram: Bytes,
        now: Instant,
    ) -> Result<(), ProtocolViolation> {
        let incoming = lock(&self.contexts).on_datagram(datagram, now)?;
        match (incoming, self.parts.target) {
            (
                Incoming::Remote {
                    remote, payload, ..
                },
                _,
            )
            | (Incoming::Target(payload), Some(remote)) => self.send(uplink, remote, payload, now),
            (Incoming::Target(_), None) => self.parts.traffic.dropped(DropReason::Context, 1),
            (Incoming::Early { context, payload }, _) => {
                let dropped = uplink.early.push(context, &payload, now);
                self.parts.traffic.dropped(DropReason::Context, dropped);
            }
            (Incoming::Dropped(reason), _) => {
                let reason = match reason {
                    Unread::ClosedContext | Unread::UnknownContext => DropReason::Context,
                    Unread::Unreadable(_) | Unread::TooLong => DropReason::Malformed,
                };
                self.parts.traffic.dropped(reason, 1);
            }
        }
        Ok(())
    }

    /// A UDP payload for `remote`, if everything admits it.
    fn send(&self, uplink: &mut Uplink, remote: SocketAddr, payload: Bytes, now: Instant) {
        let admitted = if !self.has_family(remote) {
            Err(DropReason::Family)
        } else if uplink.gate.check(remote).is_err() {
            Err(DropReason::Target)
        } else {
            let direction = Direction::FromClient;
            self.parts.meter.admits(direction, payload.len(), now)
        };
        match admitted {
            Ok(()) => {
                let segments = uplink.segments;
                let mut emit = |run: Run<'_>| self.transmit(run);
                uplink.batches.push(remote, payload, segments, &mut emit);
            }
            Err(reason) => self.parts.traffic.dropped(reason, 1),
        }
    }

    /// Whether the client was told an address of the remote's family, or has it as its target. The
    /// draft, section 6: packets to others are dropped, since no answer could come back.
    fn has_family(&self, remote: SocketAddr) -> bool {
        let mut known = self.parts.bound.iter().chain(&self.parts.target);
        known.any(|known| known.is_ipv4() == remote.is_ipv4())
    }

    fn transmit(&self, run: Run<'_>) {
        let Some(sockets) = self.parts.sockets.upgrade() else {
            self.parts
                .traffic
                .dropped(DropReason::CarrierClosed, run.datagrams);
            return;
        };
        let Some(port) = sockets.towards(run.remote.ip()) else {
            self.parts
                .traffic
                .dropped(DropReason::Family, run.datagrams);
            return;
        };
        let sent = port.try_send(&Transmit {
            destination: run.remote,
            // What the client marked ends at its own connection.
            ecn: None,
            contents: run.contents,
            segment_size: (run.datagrams > 1).then_some(run.segment),
            src_ip: self.parts.sources[usize::from(run.remote.is_ipv6())],
        });
        match sent {
            Ok(()) => {
                let bytes = run.contents.len();
                self.parts.traffic.add_from_client(run.datagrams, bytes);
            }
            Err(error) => self.parts.traffic.dropped(reason(&error), run.datagrams),
        }
    }

    fn max_segments(&self) -> usize {
        let sockets = self.parts.sockets.upgrade();
        let ports = sockets.iter().flat_map(|sockets| sockets.ports());
        ports.map(|port| port.max_segments()).min().unwrap_or(1)
    }

    /// Sends what was collected.
    pub(crate) fn flush(&self) {
        let mut uplink = lock(&self.uplink);
        uplink.batches.flush(&mut |run| self.transmit(run));
        uplink.segments = self.max_segments();
    }

    /// A capsule from the client.
    pub(crate) fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        if self.has_ended() {
            return Ok(());
        }
        let now = Instant::now();
        let mut uplink = lock(&self.uplink);
        let gate = &mut uplink.gate;
        let admits = |remote| self.has_family(remote) && gate.check(remote).is_ok();
        let answers = lock(&self.contexts).on_capsule(capsule, now, admits)?;
        for answer in answers {
            if self.tell(&answer) == Err(CapsuleError::QueueFull) {
                // The draft, section 8: the limit of answers that wait ends the tunnel.
                let text = "the client does not take answers to its capsules";
                return Err(ProtocolViolation(text.to_owned()));
            }
        }
        if let Capsule::CompressionAssign { context, .. } = capsule {
            for payload in uplink.early.take(context, now) {
                let head = context.head();
                let mut datagram = BytesMut::with_capacity(head.len() + payload.len());
                datagram.put_slice(&head);
                datagram.put_slice(&payload);
                self.on_datagram(&mut uplink, datagram.freeze(), now)?;
            }
        }
        Ok(())
    }

    /// Sends a capsule to the client.
    pub(crate) fn tell(&self, capsule: &Capsule) -> Result<(), CapsuleError> {
        self.parts.out.send_capsule(capsule.to_bytes())
    }

    /// The addresses lent; none for a tunnel to one target.
    pub(crate) fn bound(&self) -> &[SocketAddr] {
        &self.parts.bound
    }

    pub(crate) fn out(&self) -> &dyn TunnelOut {
        &*self.parts.out
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.parts.meter
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.parts.traffic
    }

    pub(crate) fn contexts(&self) -> MutexGuard<'_, ProxyContexts> {
        lock(&self.contexts)
    }

    /// The policy, for one more task of this session.
    pub(crate) fn gate(&self) -> Gate {
        Gate::new(self.parts.rules.clone(), self.parts.scope)
    }

    /// Gives back memory that a burst has left, unless there is another one just now.
    pub(crate) fn shrink(&self) {
        if let Ok(mut uplink) = self.uplink.try_lock() {
            uplink.batches.shrink();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// From now on nothing passes.
    pub(crate) fn stop(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Nothing passes any more, and the client is told.
    pub(crate) fn end(&self, how: Close) {
        self.stop();
        self.parts.out.close(how);
    }

    pub(crate) fn info(&self, now: Instant) -> SessionInfo {
        let (from_client, to_client) = self.parts.traffic.flows();
        SessionInfo {
            id: self.parts.id,
            peer_id: self.parts.client.peer_id,
            carrier: self.parts.client.carrier,
            remote: self.parts.client.remote,
            bound: self.parts.bound.clone(),
            target: self.parts.target,
            age: now.saturating_duration_since(self.since),
            from_client,
            to_client,
        }
    }
}

/// Under which reason a failed send is counted.
fn reason(error: &io::Error) -> DropReason {
    use io::ErrorKind as Kind;
    match error.kind() {
        _ if noq_udp::is_msg_size_err(error) => DropReason::SendTooLarge,
        Kind::WouldBlock => DropReason::SendFull,
        Kind::Unsupported => DropReason::Family,
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
            DropReason::SendUnreachable
        }
        _ => DropReason::SendFailed,
    }
}
