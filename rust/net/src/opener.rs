//! Openers at the socket: told from other datagrams, handed to whoever can judge them, answered
//! out of the socket they came in by.
//!
//! What an opener is says [`anyreach_wire::opener`]. The socket knows neither secrets nor
//! connections: an [`OpenerSink`] does, which the rest of the node supplies. Until there is one,
//! openers are counted and dropped.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyreach_wire::opener::OPENER_LEN;
use noq_udp::{RecvMeta, Transmit};

use crate::{
    addr::canonical,
    counters::Counters,
    extra::Extra,
    mux::{MuxError, MuxHandle},
    port::Port,
    routes::{Routes, Shared},
    sender::send_now,
    tunnel::TunnelEntry,
};

/// Judges openers.
///
/// Called on the task that receives for the engine, which holds its own lock then: it must
/// neither wait nor call into the engine, and be quick to discard what is forged.
pub trait OpenerSink: Send + Sync + 'static {
    /// A datagram that looks like an opener has come in. Nothing of it is proved.
    fn received(&self, datagram: &[u8; OPENER_LEN], arrival: &Arrival<'_>);
}

/// The sink of a socket, once it has one.
#[derive(Default)]
pub(crate) struct SinkSlot(OnceLock<Arc<dyn OpenerSink>>);

impl fmt::Debug for SinkSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SinkSlot")
    }
}

/// By what an opener came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrivedBy {
    /// The node's own socket.
    Primary,
    /// An extra socket, with this local address.
    Extra(SocketAddr),
    /// The tunnel with this number.
    Tunnel(u32),
}

/// How an opener came in, and what can be done about it on the spot.
pub struct Arrival<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) routes: &'a Routes,
    pub(crate) entrance: Entrance<'a>,
    pub(crate) meta: &'a RecvMeta,
}

/// What an opener came in by.
#[derive(Clone, Copy)]
pub(crate) enum Entrance<'a> {
    Primary(&'a Port),
    Extra(&'a Arc<Extra>, &'a Port),
    Tunnel(&'a TunnelEntry),
}

impl Arrival<'_> {
    /// Where it came from: canonical, or synthetic if it came through a tunnel.
    pub fn from(&self) -> SocketAddr {
        canonical(self.meta.addr)
    }

    /// By what.
    pub fn by(&self) -> ArrivedBy {
        match self.entrance {
            Entrance::Primary(_) => ArrivedBy::Primary,
            Entrance::Extra(extra, _) => ArrivedBy::Extra(extra.local),
            Entrance::Tunnel(tunnel) => ArrivedBy::Tunnel(tunnel.number),
        }
    }

    /// To be called for an authentic opener: from now on what is for its source leaves by the
    /// socket it came in by. False if that cannot be, because the socket expects somebody else or
    /// another one has this source already: then nothing should come of the opener.
    pub fn adopt(&self) -> bool {
        match self.entrance {
            Entrance::Primary(_) => true,
            Entrance::Extra(extra, _) => {
                let adopted = extra.adopt_expected(self.shared, self.from());
                if !adopted {
                    Counters::bump(&self.shared.counters.recv_extra_unexpected);
                }
                adopted
            }
            Entrance::Tunnel(_) => true,
        }
    }

    /// Sends a datagram back to where this one came from, out of what it came in by and from the
    /// address it was sent to: now, or not at all.
    pub fn reply(&self, datagram: &[u8]) {
        let transmit = Transmit {
            destination: self.from(),
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: self.meta.dst_ip,
        };
        match self.entrance {
            Entrance::Primary(port) => send_now(self.shared, None, port, &transmit),
            Entrance::Extra(extra, port) => send_now(self.shared, Some(extra), port, &transmit),
            Entrance::Tunnel(_) => self.routes.send_to_tunnel(&transmit, &self.shared.counters),
        }
    }
}

impl fmt::Debug for Arrival<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival")
            .field("by", &self.by())
            .finish_non_exhaustive()
    }
}

impl<'a> Entrance<'a> {
    /// Hands an opener on.
    #[cold]
    pub(crate) fn opener(
        self,
        shared: &'a Shared,
        routes: &'a Routes,
        datagram: &[u8],
        meta: &'a RecvMeta,
    ) {
        Counters::bump(&shared.counters.recv_openers);
        let arrival = Arrival {
            shared,
            routes,
            entrance: self,
            meta,
        };
        if let (Some(sink), Ok(opener)) = (shared.openers.0.get(), datagram.try_into()) {
            sink.received(opener, &arrival);
        }
    }
}

impl MuxHandle {
    /// Says who judges openers from now on. Once in the life of a socket; later calls change nothing.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`].
    pub fn set_opener_sink(&self, sink: Arc<dyn OpenerSink>) -> Result<(), MuxError> {
        let shared = self.shared()?;
        shared.openers.0.get_or_init(|| sink);
        Ok(())
    }
}
