//! Steps of a punch, as one node asks them of another. Addresses are what a peer claims: canonical,
//! and possible for a host, but proved by nothing.

use std::net::SocketAddr;

pub use anyreach_wire::control::PrepareMethod;
use anyreach_wire::control::{Prepare, Prepared};

use crate::reach::{addresses_from_wire, addresses_to_wire};

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
