//! What the two ends of a connection tell each other about where nodes can be reached.

use std::{net::SocketAddr, sync::Arc};

use anyreach_wire::control::{MAX_OBSERVED_ADDRESSES, Nat};

use super::Connection;
use crate::{
    PeerId,
    control::Notices,
    reach::{FindError, Found, Reach, sayable},
    steps::{Pay, Step, StepResult},
};

impl Connection {
    /// Tells the peer how this node can be reached, in place of what it was told before. Returns at
    /// once; of several announcements the peer has no time for, only the last is sent.
    ///
    /// An endpoint announces what it was given by [`set_reach`](crate::Endpoint::set_reach) on all
    /// its connections; this is for telling one peer something else.
    pub fn announce(&self, reach: &Reach) {
        self.notices().outbox.announce(reach.to_wire());
    }

    /// How the peer says it can be reached; `None` before it has.
    pub fn reach(&self) -> Option<Arc<Reach>> {
        self.notices().theirs()
    }

    /// Asks the peer where another node is. One peer is asked a limited number of questions at
    /// once; further ones wait for their turn. Nothing but the end of the connection ends the
    /// wait for an answer: limit it, and drop the future to give up.
    ///
    /// # Errors
    /// [`FindError`]; a peer that knows nothing of the node says `Unknown`.
    pub async fn find(&self, peer: PeerId) -> Result<Found, FindError> {
        let answer = tokio::select! {
            biased;
            answer = self.notices().find(peer) => answer,
            reason = self.closed() => Err(FindError::Closed(reason)),
        };
        match (answer, self.close_reason()) {
            (Err(FindError::Silent), Some(reason)) => Err(FindError::Closed(reason)),
            (answer, _) => answer,
        }
    }

    /// What the peer says its NAT does; `None` before it has.
    pub fn peer_nat(&self) -> Option<Nat> {
        self.notices().their_nat()
    }

    /// Asks the peer for a step of a punch and returns the number of the question. The answer, if
    /// the peer gives one, comes as [`Event::Prepared`](crate::Event::Prepared) with that number.
    pub fn prepare(&self, step: &Step) -> u64 {
        let request = self.notices().steps.ask();
        let outbox = &self.notices().outbox;
        outbox.prepare(step.to_wire(request), step.pay());
        request
    }

    /// Answers a step the peer has asked for by [`Event::Prepare`](crate::Event::Prepare). Each is
    /// answered once; one that was not asked, or is long forgotten, not at all.
    pub fn prepared(&self, request: u64, result: &StepResult) {
        if let Some(method) = self.notices().steps.answer(request) {
            let pay = match result.done {
                true => Pay::to_answer(method),
                false => Pay::default(),
            };
            let outbox = &self.notices().outbox;
            outbox.prepared(result.to_wire(request), pay);
        }
    }

    pub(crate) fn notices(&self) -> &Notices {
        &self.0.notices
    }

    /// Under which addresses the peer is seen from here, those at relays left out.
    pub(crate) fn observed_peer(&self) -> Vec<SocketAddr> {
        let bound = |address| self.notices().relay_of(address).is_some();
        let mut observed = Vec::new();
        for path in self.paths() {
            // Through a tunnel of ours the peer may be seen itself, or a relay of its own.
            let of_relay = path.method == "relayed" && !path.tunnelled;
            if let Some(address) = sayable(path.remote)
                && !of_relay
                && !bound(address)
                && !observed.contains(&address)
            {
                observed.push(address);
            }
        }
        observed.truncate(MAX_OBSERVED_ADDRESSES);
        observed
    }
}
