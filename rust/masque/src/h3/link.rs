//! What the tunnels of one HTTP/3 connection share: the datagrams of all of them arrive in one
//! place, and the settings of the peer say what may be sent.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h3::{ConnectionState, SharedState, error::Code};
use noq::{ConnectionError, PathId};

use super::{
    adapter,
    dispatch::{Dispatch, split},
    tunnel::Tunnel,
};

/// Datagrams read at once: what one system call with receive offload delivers at most.
const BATCH: usize = 64;

/// Paths that are looked at for their round-trip time. The engine keeps the good ones of a carrier
/// among the first few numbers.
const PATHS: u32 = 16;

/// Bytes of datagrams that may wait for the line: 10 ms of 100 Mbit/s. Congestion control inside
/// must see loss, not delay.
const MAX_QUEUED: usize = 128 << 10;

/// What becomes of a datagram that is sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// It waits its turn.
    Free,
    /// It takes the place of the oldest.
    DropsOldest,
    /// There is no place.
    Full,
}

/// One HTTP/3 connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) engine: noq::Connection,
    http: Arc<SharedState>,
    tunnels: Mutex<Dispatch<Arc<Tunnel>>>,
    /// Room for datagrams in the engine when none is waiting.
    room: usize,
}

impl Link {
    pub(super) fn new(engine: noq::Connection, http: Arc<SharedState>) -> Self {
        Self {
            room: engine.datagram_send_buffer_space(),
            engine,
            http,
            tunnels: Mutex::default(),
        }
    }

    /// Whether QUIC DATAGRAM frames may be sent: we have said that we take HTTP/3 Datagrams, and
    /// so has the peer (RFC 9297, section 2.1.1).
    pub(super) fn sends_datagrams(&self) -> bool {
        self.http.settings().enable_datagram()
    }

    /// Whether the peer takes extended CONNECT (RFC 9220, section 3).
    pub(super) fn takes_extended_connect(&self) -> bool {
        self.http.settings().enable_extended_connect()
    }

    /// The settings of the peer contradict its transport parameters: it takes HTTP/3 Datagrams,
    /// but no QUIC DATAGRAM frames to put them in. The connection is closed for that.
    pub(super) fn settings_contradict(&self) -> bool {
        let contradict = self.sends_datagrams()
            && self.engine.max_datagram_size().is_none()
            && self.engine.close_reason().is_none();
        if contradict {
            self.close(
                Code::H3_SETTINGS_ERROR,
                "H3_DATAGRAM without max_datagram_frame_size",
            );
        }
        contradict
    }

    /// What would become of a datagram of this length. The queue of the engine serves connections
    /// between nodes as well, and may be longer than is good here.
    pub(super) fn queue(&self, length: usize) -> Queue {
        let queued = self
            .room
            .saturating_sub(self.engine.datagram_send_buffer_space());
        // The engine counts its own expense for each, but does not tell how many there are: as
        // many as if all had this length, which for bulk they have.
        let used = queued + queued / length.max(1) * size_of::<Bytes>();
        if used + length > self.room + size_of::<Bytes>() {
            Queue::DropsOldest
        } else if queued + length > MAX_QUEUED {
            Queue::Full
        } else {
            Queue::Free
        }
    }

    /// Closes the connection.
    pub(super) fn close(&self, error: Code, reason: &str) {
        adapter::close(&self.engine, error, reason.as_bytes());
    }

    /// A request has been made.
    pub(super) fn announce(self: &Arc<Self>, id: u64) -> Request {
        self.tunnels().announce(id);
        Request {
            link: self.clone(),
            id,
        }
    }

    /// The connection is to end when it has nothing to do: the peer sent GOAWAY.
    pub(super) fn is_done(&self) -> bool {
        self.http.is_closing() && self.tunnels().is_empty()
    }

    /// Smallest smoothed round-trip time of the open paths.
    pub(super) fn rtt(&self) -> Option<Duration> {
        paths(&self.engine).map(|path| path.stats().rtt).min()
    }

    /// Why the connection ended, or that it did not.
    pub(super) fn end(&self) -> String {
        match self.engine.close_reason() {
            Some(error) => describe(&error),
            None => "the request stream was lost".into(),
        }
    }

    /// Reads the datagrams of all tunnels to the end of the connection. Should a tunnel panic, the
    /// connection ends with this task, for without it no other tunnel would work.
    pub(super) async fn receive_or_close(self: Arc<Self>) {
        struct Guard(Arc<Link>);
        impl Drop for Guard {
            fn drop(&mut self) {
                // It has ended already, as a rule.
                self.0
                    .close(Code::H3_INTERNAL_ERROR, "no reader of datagrams");
            }
        }
        Guard(self).0.receive().await;
    }

    async fn receive(&self) {
        let mut batch = vec![Bytes::new(); BATCH];
        // The tunnels of one batch, the last one used at the end.
        let mut touched: Vec<(u64, Arc<Tunnel>)> = Vec::new();
        while let Ok(count) = self.engine.read_many_datagrams(&mut batch).await {
            for datagram in &mut batch[..count] {
                if !self.deliver(std::mem::take(datagram), &mut touched) {
                    return;
                }
            }
            for (_, tunnel) in touched.drain(..) {
                tunnel.flush();
            }
            if count == BATCH {
                // Others want to run, too, however much arrives.
                tokio::task::yield_now().await;
            }
        }
    }

    /// False if the connection was closed because of this datagram.
    fn deliver(&self, datagram: Bytes, touched: &mut Vec<(u64, Arc<Tunnel>)>) -> bool {
        let (id, payload) = match split(datagram) {
            Ok(parts) => parts,
            Err(error) => {
                self.close(Code::H3_DATAGRAM_ERROR, &error.to_string());
                return false;
            }
        };
        // Most datagrams of a batch belong to the same tunnel.
        match touched.iter().rposition(|(known, _)| *known == id) {
            Some(index) => {
                let last = touched.len() - 1;
                touched.swap(index, last);
            }
            None => {
                let found = self.tunnels().route(id, &payload, Instant::now()).cloned();
                match found {
                    Some(tunnel) => touched.push((id, tunnel)),
                    None => return true,
                }
            }
        }
        if let Some((_, tunnel)) = touched.last() {
            tunnel.datagram(payload);
        }
        true
    }

    fn tunnels(&self) -> MutexGuard<'_, Dispatch<Arc<Tunnel>>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one request in the table of its connection, given up with the value.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) link: Arc<Link>,
    pub(super) id: u64,
}

impl Request {
    /// Datagrams go to `tunnel` from now on, those that came before first.
    pub(super) fn open(&self, tunnel: &Arc<Tunnel>) {
        let kept = self
            .link
            .tunnels()
            .open(self.id, tunnel.clone(), Instant::now());
        if kept.is_empty() {
            return;
        }
        for datagram in kept {
            tunnel.datagram(datagram);
        }
        tunnel.flush();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.link.tunnels().close(self.id);
        if self.link.is_done() {
            self.link.close(Code::H3_NO_ERROR, "nothing left to do");
        }
    }
}

/// The open paths of a connection.
pub(super) fn paths(engine: &noq::Connection) -> impl Iterator<Item = noq::Path> + '_ {
    (0..PATHS).filter_map(|id| engine.path(PathId::from(id)))
}

/// The end of a connection for people.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = Code::from(close.error_code.into_inner());
            let reason = String::from_utf8_lossy(&close.reason);
            let colon = if reason.is_empty() { "" } else { ": " };
            format!("the peer closed the HTTP/3 connection ({code}){colon}{reason}")
        }
        ConnectionError::TimedOut => {
            "nothing was heard from the peer within the idle timeout".into()
        }
        ConnectionError::LocallyClosed => "the HTTP/3 connection was closed by this side".into(),
        ConnectionError::Reset => "the peer was restarted".into(),
        other => format!("the QUIC connection failed: {other}"),
    }
}
