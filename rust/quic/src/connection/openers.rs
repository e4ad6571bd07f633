//! Openers of a connection: what its two ends send each other besides QUIC to open NATs.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyreach_net::{MuxError, canonical};

use super::Connection;
use crate::{
    DialError,
    events::Journal,
    openers::{Desk, Line, Pool, Spray},
    traversal::MAX_CANDIDATES,
};

impl Connection {
    /// Sends an opener to each address, in this order, the first 32 of them; how many were sent.
    /// Left out is what is refused as a candidate of the peer would be, and what the peer has not
    /// paid for. `hops`: how many routers they may pass, 0 for as many as usual.
    pub fn openers(&self, addresses: &[SocketAddr], hops: u8) -> usize {
        let first = &addresses[..addresses.len().min(MAX_CANDIDATES)];
        self.0
            .line
            .as_ref()
            .map_or(0, |line| line.open(first, hops))
    }

    /// Openers to `count` random ports of `host`, none twice, evenly over `time`, until a way to the
    /// host opens; at most [`MAX_SPRAY`](crate::MAX_SPRAY), and not more than a thousand a second.
    ///
    /// # Errors
    /// [`DialError`] `protocol` if the peer does no NAT traversal.
    pub fn spray(&self, host: IpAddr, count: usize, time: Duration) -> Result<Spray, DialError> {
        let line = self.line_to_peer()?.clone();
        Ok(Spray::new(line, host, count, time))
    }

    /// Opens up to `count` sockets, at most [`MAX_POOL`](crate::MAX_POOL), each sending an opener to
    /// `towards`: as many as there are to be had and the peer has paid for. The first way that opens
    /// to one of them becomes the way to that address. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Why there is not even one socket; [`AddrInUse`](io::ErrorKind::AddrInUse) if a path leads there
    /// already.
    pub fn pool(&self, towards: SocketAddr, count: usize) -> io::Result<Pool> {
        let line = self.line_to_peer().map_err(io::Error::other)?.clone();
        if self.has_path_to(canonical(towards)) {
            // Whatever goes there would leave by another socket from one packet to the next.
            let error = format!("a path leads to {towards} already");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, error));
        }
        Pool::open(line, self.downgrade(), towards, count).map_err(|error| match error {
            MuxError::Io(error) => error,
            other => io::Error::other(other),
        })
    }

    /// To be called just before a round: sends openers to the peer's addresses in ascending order,
    /// which pass so many routers (0: none are sent; 255: as many as usual), and holds back what the
    /// engine sends to them for this long, or until something comes from there. Addresses a path
    /// leads to are left alone.
    ///
    /// Has to be called within a tokio runtime.
    pub(crate) fn open_round(&self, remotes: &[SocketAddr], hops: u8, hold: Duration) {
        let Some(line) = &self.0.line else { return };
        let new: Vec<SocketAddr> = remotes
            .iter()
            .copied()
            .map(canonical)
            .filter(|remote| !self.has_path_to(*remote))
            .collect();
        match hops {
            0 => 0,
            u8::MAX => line.open_round(&new, 0),
            few => line.open_round(&new, few),
        };
        // Fails when the socket is closed: then nothing is sent anyway.
        let _ = line.socket().hold(&new, hold);
    }

    fn line_to_peer(&self) -> Result<&Arc<Line>, DialError> {
        let line = self.0.line.as_ref();
        line.ok_or_else(|| DialError::new("protocol", "the peer does no NAT traversal"))
    }

    /// Openers sent, authentic ones received, forged ones and repeated ones.
    pub(super) fn opener_stats(&self) -> Vec<(&'static str, u64)> {
        let stats = self.0.line.as_ref().map(|line| line.stats());
        stats.map_or_else(Vec::new, |stats| stats.by_name().to_vec())
    }

    /// An address of the peer an opener has come from, as soon as there is one; `None` if the peer
    /// does no NAT traversal.
    pub(crate) async fn heard_at(&self) -> Option<SocketAddr> {
        Some(self.0.line.as_ref()?.way().await)
    }

    /// The connection is established: its openers mean something from now on.
    pub(crate) fn take_openers(&self, desk: &Desk, journal: &Arc<Journal>) {
        if let Some(line) = &self.0.line {
            line.belongs_to(self.id(), self.downgrade(), journal);
            desk.add(line);
        }
    }

    /// The connection has ended.
    pub(crate) fn refuse_openers(&self, desk: &Desk) {
        if let Some(line) = &self.0.line {
            desk.remove(line);
        }
    }
}
