//! NAT traversal of a connection: what is offered, and rounds of probing.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_net::{Prefix, canonical};
use anyreach_wire::address::Address;
use noq::PathId;
use noq_proto::n0_nat_traversal;

use super::{Connection, path_number};
use crate::{
    DialError,
    reach::sayable,
    traversal::{Layer, MAX_CANDIDATES, News, NoRound},
};

/// By how much a peer may delay acknowledgements (RFC 9000, section 18.2: 25 ms), and the grain of
/// timers (RFC 9002, section 6.1.2).
const ACK_DELAY: Duration = Duration::from_millis(26);

/// The probe timeout of RFC 9002, section 6.2.1, is the round trip and four times its variation. The
/// engine does not show the latter, which settles at a fraction of the round trip: this many more.
const RTTS: u32 = 2;

impl Connection {
    /// Whether both ends do NAT traversal (draft-seemann-quic-nat-traversal-02).
    pub fn can_punch(&self) -> bool {
        let engine = self.engine();
        // Its PUNCH_ME_NOW frames travel in place of datagrams.
        self.0.layer.is_some()
            && engine.get_local_nat_traversal_addresses().is_ok()
            && (!self.outbound() || engine.max_datagram_size().is_some())
    }

    /// Addresses under which this node may be reached by the peer, best first; beyond 32 they are
    /// left out. The accepting side tells the peer at once what is new and what is gone, the dialing
    /// side names them in the next [round](Self::start_round). Without effect if the peer does no
    /// NAT traversal.
    pub fn set_candidates(&self, candidates: &[SocketAddr]) {
        if let Some(layer) = &self.0.layer {
            // Fails where nothing is negotiated, or the connection has ended.
            let _ = self.offer(layer, candidates);
        }
    }

    fn offer(
        &self,
        layer: &Layer,
        candidates: &[SocketAddr],
    ) -> Result<(), n0_nat_traversal::Error> {
        let mut wanted: Vec<SocketAddr> = Vec::new();
        for candidate in candidates.iter().copied().filter_map(sayable) {
            if wanted.len() < MAX_CANDIDATES && !wanted.contains(&candidate) {
                wanted.push(candidate);
            }
        }
        let engine = self.engine();
        let offered = engine.get_local_nat_traversal_addresses()?;
        // Before the engine has something to say.
        layer.arm();
        for gone in offered.iter().filter(|old| !wanted.contains(old)) {
            engine.remove_nat_traversal_address(*gone)?;
        }
        for new in wanted.iter().filter(|new| !offered.contains(new)) {
            engine.add_nat_traversal_address(*new)?;
        }
        Ok(())
    }

    /// Addresses the peer has offered and not taken back, those that are refused left out. Only the
    /// dialing side is offered any.
    pub fn peer_candidates(&self) -> Vec<SocketAddr> {
        let layer = self.0.layer.as_ref();
        layer.map_or_else(Vec::new, |layer| layer.candidates())
    }

    /// More networks in which addresses of this peer are not refused, besides those of
    /// [`Endpoint::set_near`](crate::Endpoint::set_near), in place of those given before.
    pub fn allow_near(&self, prefixes: impl IntoIterator<Item = Prefix>) {
        if let Some(layer) = &self.0.layer {
            layer.set_near(prefixes);
            self.near_changed();
        }
    }

    pub(crate) fn near_changed(&self) {
        if let Some(layer) = &self.0.layer {
            layer.judge_again();
        }
    }

    /// Has the peer send something, if that is needed for the engine to be told something. When to
    /// look again.
    fn nudge(&self, layer: &Layer, now: Instant) -> Option<Instant> {
        if !layer.is_correcting() {
            return None;
        }
        let path = *self.path_ids().first()?;
        match layer.nudge(now, self.probe_timeout(path_number(path))) {
            Ok(()) => {
                // Fails for a path that was closed just now.
                let _ = self.engine().path(path).map(|path| path.ping());
                Some(now)
            }
            Err(due) => due,
        }
    }

    /// Begins a round: the peer is told the addresses of ours in `pairs`, and both ends probe each
    /// other's; a path to an address that answers is opened without further ado. The pairs, of an
    /// address of ours and one of the peer's, are in order of preference; without any, the addresses
    /// of [`set_candidates`](Self::set_candidates) are told. Returns the number of the round, which
    /// takes the place of the one before.
    ///
    /// # Errors
    /// [`DialError`]: `not-dialed` on the accepting side, `protocol` if the peer does no NAT
    /// traversal, `limit` within a second of the last round or if the peer has not sent a third of
    /// what would be sent, `unreachable` if there is no address to tell, `closed`.
    pub fn start_round(&self, pairs: &[(SocketAddr, SocketAddr)]) -> Result<u64, DialError> {
        self.start_round_after_openers(pairs, 0, Duration::ZERO)
    }

    /// As [`start_round`](Self::start_round), but first sends openers to the peer's addresses in
    /// ascending order, which pass `hops` routers (0: none are sent; 255: as many as usual), and
    /// holds back the probes to each for the time `hold`, or until something comes from there. To be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`start_round`](Self::start_round).
    pub fn start_round_after_openers(
        &self,
        pairs: &[(SocketAddr, SocketAddr)],
        hops: u8,
        hold: Duration,
    ) -> Result<u64, DialError> {
        let layer = self.layer_for_rounds()?;
        if !pairs.is_empty() {
            let ours: Vec<SocketAddr> = pairs.iter().map(|(ours, _)| *ours).collect();
            self.offer(layer, &ours).map_err(round_error)?;
        }
        let told = self.told()?;
        let mut paired: Vec<(Address, Address)> = pairs
            .iter()
            .filter(|(ours, _)| told.contains(&canonical(*ours)))
            .map(|(ours, theirs)| ((*ours).into(), (*theirs).into()))
            .collect();
        for address in told {
            if !paired.iter().any(|(ours, _)| *ours == address.into()) {
                // Paired with whatever there is.
                paired.push((address.into(), address.into()));
            }
        }
        let now = Instant::now();
        let round = layer.begin_round(now, &paired).map_err(no_round)?;
        if hops > 0 || !hold.is_zero() {
            // All of them: the engine does not probe in pairs.
            self.open_round(&layer.candidates(), hops, hold);
        }
        self.probe_round(layer, now)?;
        Ok(round)
    }

    fn layer_for_rounds(&self) -> Result<&Layer, DialError> {
        self.can_open_paths()?;
        if let Some(reason) = self.close_reason() {
            return Err(DialError::new("closed", reason.message));
        }
        let layer = self.0.layer.as_deref().filter(|_| self.can_punch());
        layer.ok_or_else(|| DialError::new("protocol", "the peer does no NAT traversal"))
    }

    /// The addresses of ours the peer is told in a round.
    fn told(&self) -> Result<Vec<SocketAddr>, DialError> {
        let told = self.engine().get_local_nat_traversal_addresses();
        let told = told.map_err(round_error)?;
        if told.is_empty() {
            return Err(round_error(n0_nat_traversal::Error::NotEnoughAddresses));
        }
        Ok(told)
    }

    fn probe_round(&self, layer: &Layer, now: Instant) -> Result<(), DialError> {
        // First, so that they are in the first packet.
        self.send_carriers(layer, now);
        let probed = self.engine().initiate_nat_traversal_round();
        probed.map(drop).map_err(round_error)
    }

    /// What has come of NAT traversal so far, by name.
    pub fn punch_stats(&self) -> Vec<(&'static str, u64)> {
        let Some(layer) = &self.0.layer else {
            return Vec::new();
        };
        let mut stats = layer.counts.by_name().to_vec();
        stats.push(("probes_sent", layer.budget.probes_sent()));
        stats.push(("frames_resent", layer.resent()));
        stats.extend(self.opener_stats());
        stats
    }

    /// Has lost frames sent again and keeps the engine informed, until there is something to tell.
    /// Dropping the future loses nothing.
    pub(crate) async fn traverse(&self) -> News {
        let Some(layer) = &self.0.layer else {
            return std::future::pending().await;
        };
        loop {
            let due = layer.due(|path| self.probe_timeout(path));
            let due = due
                .into_iter()
                .chain(self.nudge(layer, Instant::now()))
                .min();
            tokio::select! {
                () = layer.stirred() => {}
                () = wait_until(due), if due.is_some() => {}
            }
            let now = Instant::now();
            layer.repeat(now, |path| self.probe_timeout(path));
            self.send_carriers(layer, now);
            if layer.is_correcting()
                && let Ok(known) = self.engine().get_remote_nat_traversal_addresses()
            {
                layer.confirm(&known);
            }
            if let Some(news) = layer.take_news() {
                return news;
            }
        }
    }

    fn send_carriers(&self, layer: &Layer, now: Instant) {
        for carrier in layer.carriers(now) {
            // What the engine does not take, or drops under congestion, is asked for again.
            let _ = self.engine().send_datagram(carrier);
        }
    }

    /// After what time a packet of a path is taken for lost. At once if the path is gone.
    fn probe_timeout(&self, path: u32) -> Duration {
        let path = self.engine().path(PathId::from(path));
        path.map_or(ACK_DELAY, |path| path.stats().rtt * RTTS + ACK_DELAY)
    }

    /// The two ends have agreed to open the way to an address: a path there is a punched one.
    pub(crate) fn coordinated(&self, address: SocketAddr) {
        if let Some(layer) = &self.0.layer {
            layer.met(canonical(address).into());
        }
    }

    /// Whether a path that has come up was made by NAT traversal.
    pub(super) fn is_punched(&self, id: PathId, ours: bool) -> bool {
        let Some(layer) = self.0.layer.as_ref().filter(|_| id != PathId::ZERO) else {
            return false;
        };
        let path = self.engine().path(id);
        path.and_then(|path| path.remote_address().ok())
            .is_some_and(|remote| layer.has_punched(Instant::now(), remote.into(), ours))
    }
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

fn no_round(why: NoRound) -> DialError {
    match why {
        NoRound::NotClient => {
            DialError::new("not-dialed", "only the side that dialed begins rounds")
        }
        NoRound::TooSoon => DialError::new("limit", "the last round began less than a second ago"),
        NoRound::Budget => DialError::new(
            "limit",
            "the peer has sent too little for that many probes to its addresses",
        ),
    }
}

fn round_error(error: n0_nat_traversal::Error) -> DialError {
    use n0_nat_traversal::Error;
    let reason = match error {
        Error::Closed => "closed",
        Error::NotEnoughAddresses => "unreachable",
        Error::WrongConnectionSide => "not-dialed",
        Error::ExtensionNotNegotiated => "protocol",
        Error::TooManyAddresses => "limit",
        Error::Multipath(_) => "internal",
    };
    DialError::new(reason, error.to_string())
}
