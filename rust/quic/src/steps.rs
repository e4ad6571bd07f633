//! Steps of a punch, as one node asks them of another. Addresses are what a peer claims: canonical,
//! and possible for a host, but proved by nothing.

use std::net::SocketAddr;

pub use anyreach_wire::control::PrepareMethod;
use anyreach_wire::control::{Prepare, Prepared};

use anyreach_wire::opener::OPENER_LEN;

use crate::{
    openers::{MAX_POOL, MAX_SPRAY},
    reach::{addresses_from_wire, addresses_to_wire},
};

/// How often each socket of a pool sends while it is open.
const VOLLEYS: usize = 3;

/// What who asks for openers, or announces them, sends the other end for them: a third of their
/// bytes, so that they are paid for on a connection that has carried nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pay {
    /// Bytes before the message itself: what is asked for happens all at once.
    pub(crate) before: u16,
    /// Bytes behind it: what is asked for takes a while, and should begin.
    pub(crate) behind: u16,
}

impl Pay {
    /// For an answer that says that such a step was taken: the asker sends now as well.
    pub(crate) fn to_answer(method: PrepareMethod) -> Self {
        let openers = match method {
            PrepareMethod::Pool => MAX_SPRAY,
            PrepareMethod::Spray => MAX_POOL * VOLLEYS,
            PrepareMethod::Predict | PrepareMethod::Other(_) => 0,
        };
        Self {
            before: 0,
            behind: price(openers),
        }
    }
}

/// Bytes to send for so many openers to be allowed.
fn price(openers: usize) -> u16 {
    u16::try_from((openers * OPENER_LEN).div_ceil(3)).unwrap_or(u16::MAX)
}

/// A step of a punch that one end asks of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is to be done.
    pub method: PrepareMethod,
    /// Towards which addresses, those of the asker. Sent are at most
    /// [`MAX_STEP_ADDRESSES`](anyreach_wire::control::MAX_STEP_ADDRESSES).
    pub addresses: Vec<SocketAddr>,
    /// How many candidates, sockets or ports.
    pub count: u16,
}

impl Step {
    pub(crate) fn from_wire(prepare: &Prepare) -> Self {
        Self {
            method: prepare.method,
            addresses: addresses_from_wire(&prepare.addresses),
            count: prepare.count,
        }
    }

    /// What to pay when asking for it.
    pub(crate) fn pay(&self) -> Pay {
        let count = usize::from(self.count);
        match self.method {
            PrepareMethod::Pool => Pay {
                before: price(count.min(MAX_POOL) * VOLLEYS),
                behind: 0,
            },
            PrepareMethod::Spray => Pay {
                before: 0,
                behind: price(count.min(MAX_SPRAY)),
            },
            PrepareMethod::Predict | PrepareMethod::Other(_) => Pay::default(),
        }
    }

    pub(crate) fn to_wire(&self, request: u64) -> Prepare {
        Prepare {
            request,
            method: self.method,
            addresses: addresses_to_wire(&self.addresses),
            count: self.count,
        }
    }
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepResult {
    /// Whether it was done.
    pub done: bool,
    /// Where the one that was asked is to be expected now, if that is news. As many as in a step.
    pub addresses: Vec<SocketAddr>,
}

impl StepResult {
    pub(crate) fn from_wire(prepared: &Prepared) -> Self {
        Self {
            done: prepared.done,
            addresses: addresses_from_wire(&prepared.addresses),
        }
    }

    pub(crate) fn to_wire(&self, request: u64) -> Prepared {
        Prepared {
            request,
            done: self.done,
            addresses: addresses_to_wire(&self.addresses),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(method: PrepareMethod, count: u16) -> Step {
        Step {
            method,
            addresses: Vec::new(),
            count,
        }
    }

    #[test]
    fn what_is_asked_for_is_paid_for() {
        let three_for_one = |bytes: u16| 3 * usize::from(bytes) / OPENER_LEN;
        let pool = step(PrepareMethod::Pool, 256).pay();
        assert_eq!(three_for_one(pool.before), 256 * VOLLEYS);
        let spray = step(PrepareMethod::Spray, 1400).pay();
        assert_eq!((spray.before, three_for_one(spray.behind)), (0, 1400));
        let answer = |method| three_for_one(Pay::to_answer(method).behind);
        assert_eq!(answer(PrepareMethod::Pool), MAX_SPRAY);
        assert_eq!(answer(PrepareMethod::Spray), MAX_POOL * VOLLEYS);
        // Nobody is made to pay for more than anybody sends.
        assert_eq!(
            step(PrepareMethod::Spray, u16::MAX).pay(),
            step(PrepareMethod::Spray, 2048).pay()
        );
        assert_eq!(step(PrepareMethod::Predict, 16).pay(), Pay::default());
        assert_eq!(Pay::to_answer(PrepareMethod::Other(9)), Pay::default());
    }
}
