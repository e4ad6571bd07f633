//! What openers may be sent where, and those that precede the probes of a round.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
};

use anyreach_wire::address::Address;

use super::{Counts, Layer, filter};
use crate::openers::{Guard, Line};

impl Layer {
    /// Says what sends the openers of this connection. Once.
    pub(crate) fn set_line(&self, line: &Arc<Line>) {
        // It holds us.
        self.line.get_or_init(|| Arc::downgrade(line));
    }

    /// Sends openers to what the client has asked to be probed, before the engine does. Called with
    /// locks of the engine held, and none of ours.
    pub(super) fn open_round(&self, asked: &[SocketAddr]) {
        if asked.is_empty() {
            return;
        }
        if let Some(line) = self.line.get().and_then(Weak::upgrade) {
            line.open_round(asked, 0);
        }
    }
}

impl Guard for Layer {
    fn allows(&self, address: SocketAddr) -> bool {
        let address = Address::from(address);
        let judged = filter::check(address, &[&self.near.get(), &self.state().near]);
        if let Err(refusal) = judged {
            self.counts.address(refusal);
        }
        judged.is_ok()
    }

    fn take(&self, bytes: u64) -> bool {
        let paid = self.budget.take(bytes);
        if !paid {
            Counts::bump(&self.counts.budget);
        }
        paid
    }

    fn give_back(&self, bytes: u64) {
        self.budget.give_back(bytes);
    }

    fn met(&self, address: SocketAddr) {
        self.met(address.into());
    }
}
