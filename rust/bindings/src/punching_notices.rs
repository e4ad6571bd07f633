//! What nodes tell each other about their NATs, and the steps of a punch they ask of each other.

use anyreach_quic::{Nat, NatBehaviour, PortAllocation, PrepareMethod, Step, StepResult};
use anyreach_wire::control::MAX_PORT_STEP;
use pyo3::prelude::*;

use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::errors::Failure;
use crate::find::{PyAddresses, addresses};

/// Mapping, filtering, ports and step, in the words of `anyreach.nat`.
type PyNat = (&'static str, &'static str, &'static str, i32);

const BEHAVIOURS: [(NatBehaviour, &str); 5] = [
    (NatBehaviour::Unknown, "unknown"),
    (NatBehaviour::None, "none"),
    (NatBehaviour::EndpointIndependent, "endpoint-independent"),
    (NatBehaviour::AddressDependent, "address-dependent"),
    (
        NatBehaviour::AddressAndPortDependent,
        "address-and-port-dependent",
    ),
];

const ALLOCATIONS: [(PortAllocation, &str); 4] = [
    (PortAllocation::Unknown, "unknown"),
    (PortAllocation::Preserving, "preserving"),
    (PortAllocation::Sequential, "sequential"),
    (PortAllocation::Random, "random"),
];

const METHODS: [(PrepareMethod, &str); 3] = [
    (PrepareMethod::Predict, "predict"),
    (PrepareMethod::Pool, "pool"),
    (PrepareMethod::Spray, "spray"),
];

#[pymethods]
impl Endpoint {
    /// Tells all peers, those there are and those to come, what our NAT does.
    fn announce_nat(
        &self,
        py: Python<'_>,
        mapping: &str,
        filtering: &str,
        ports: &str,
        step: i32,
    ) -> Result<(), Failure> {
        if step.abs() > MAX_PORT_STEP {
            return Err(Failure::Value(format!("{step} is no distance of ports")));
        }
        let nat = Nat {
            mapping: value_of(&BEHAVIOURS, mapping)?,
            filtering: value_of(&BEHAVIOURS, filtering)?,
            ports: value_of(&ALLOCATIONS, ports)?,
            step,
        };
        let endpoint = self.core()?;
        py.detach(|| endpoint.announce_nat(nat));
        Ok(())
    }
}

#[pymethods]
impl Connection {
    /// What the peer says its NAT does.
    #[getter]
    fn peer_nat(&self) -> Result<Option<PyNat>, Failure> {
        let nat = self.core()?.peer_nat();
        Ok(nat.map(|nat| {
            (
                word_for(&BEHAVIOURS, nat.mapping),
                word_for(&BEHAVIOURS, nat.filtering),
                word_for(&ALLOCATIONS, nat.ports),
                nat.step,
            )
        }))
    }

    /// Asks the peer for a step of a punch; the number of the question.
    fn prepare(
        &self,
        py: Python<'_>,
        method: &str,
        addresses: PyAddresses,
        count: u16,
    ) -> Result<u64, Failure> {
        let step = Step {
            method: value_of(&METHODS, method)?,
            addresses: self::addresses(addresses)?,
            count,
        };
        let connection = self.core()?;
        Ok(py.detach(|| connection.prepare(&step)))
    }

    /// Answers a step the peer has asked for.
    fn prepared(
        &self,
        py: Python<'_>,
        id: u64,
        ok: bool,
        addresses: PyAddresses,
    ) -> Result<(), Failure> {
        let result = StepResult {
            done: ok,
            addresses: self::addresses(addresses)?,
        };
        let connection = self.core()?;
        py.detach(|| connection.prepared(id, &result));
        Ok(())
    }
}

/// The name of a method Python was asked for.
pub(crate) fn method_name(method: PrepareMethod) -> &'static str {
    word_for(&METHODS, method)
}

fn value_of<T: Copy>(words: &[(T, &str)], given: &str) -> Result<T, Failure> {
    let found = words.iter().find(|(_, word)| *word == given);
    found.map(|(value, _)| *value).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(_, word)| *word).collect();
        Failure::Value(format!("{given:?} is none of {}", known.join(", ")))
    })
}

fn word_for<T: PartialEq>(words: &[(T, &'static str)], value: T) -> &'static str {
    let found = words.iter().find(|(known, _)| *known == value);
    // What a later version may have said is turned into `Unknown`, or refused, when it arrives.
    found.map_or("unknown", |(_, word)| word)
}
