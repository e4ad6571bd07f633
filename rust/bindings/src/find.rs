//! Asking a peer where another node is, and what peers say about where they are themselves.

use std::net::SocketAddr;

use anyreach_quic::{AddressKind, BoundAt, DirectAddress, FindError, Found, PeerId, Reach};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bridge::Bridge;
use crate::endpoint::{host_and_port, socket_address};
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::tunnel::hosts_and_ports;
use crate::wake::Slot;

/// A question to a peer. Dropping it withdraws the question.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Find(PerProcess<Deferred<Slot<Result<Found, FindError>>>>);

/// Addresses as Python has them.
pub(crate) type PyAddresses = Vec<(String, u16)>;

/// A relay and the addresses there.
type PyBound<'py> = (Bound<'py, PyBytes>, PyAddresses);

/// Direct addresses, and those at relays.
pub(crate) type PyReach<'py> = (PyAddresses, Vec<PyBound<'py>>);

/// Status, where the peer asked sees the other one, and how that one says it can be reached.
type PyFound<'py> = (
    String,
    Option<(String, u16)>,
    PyAddresses,
    Vec<PyBound<'py>>,
);

#[pymethods]
impl Find {
    /// The answer.
    fn poll<'py>(
        &self,
        py: Python<'py>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<PyFound<'py>>, Failure> {
        let slot = self.0.get()?;
        let queue = bridge.queue()?;
        let answer = py.detach(|| {
            slot.poll(queue, token, || {
                Box::pin(std::future::ready(Err(FindError::Silent)))
            })
        })?;
        let Some(answer) = answer else {
            return Ok(None);
        };
        let nothing = |status: &str| (status.to_owned(), None, Vec::new(), Vec::new());
        Ok(Some(match answer {
            Ok(found) => (
                "ok".to_owned(),
                found.observed.first().copied().map(host_and_port),
                direct(&found.direct),
                bound(py, &found.bound),
            ),
            Err(FindError::Unknown) => nothing("unknown"),
            Err(FindError::NotFindable) => nothing("not-findable"),
            Err(FindError::Limit) => nothing("limit"),
            Err(FindError::Closed(reason)) => return Err(Failure::Lost(reason)),
            Err(other) => nothing(&other.to_string()),
        }))
    }
}

impl Find {
    pub(crate) fn new(connection: anyreach_quic::Connection, peer: PeerId) -> Self {
        let asking = async move { connection.find(peer).await };
        Self(PerProcess::deferred(Slot::with(Box::pin(asking))))
    }
}

/// What a node says of itself, as Python has it.
pub(crate) fn reach_to_python<'py>(py: Python<'py>, reach: &Reach) -> PyReach<'py> {
    (direct(&reach.direct), bound(py, &reach.bound))
}

/// What this node is to say of itself.
pub(crate) fn reach_from_python(
    direct: Vec<(String, u16)>,
    relayed: Vec<([u8; 32], PyAddresses)>,
    findable: bool,
    load: Option<u8>,
) -> Result<Reach, Failure> {
    let direct = addresses(direct)?.into_iter().map(|address| DirectAddress {
        address,
        kind: AddressKind::Unspecified,
    });
    let bound = relayed
        .into_iter()
        .map(|(relay, bound)| {
            Ok(BoundAt {
                relay: PeerId(relay),
                addresses: addresses(bound)?,
            })
        })
        .collect::<Result<_, Failure>>()?;
    Ok(Reach {
        direct: direct.collect(),
        bound,
        findable,
        load,
    })
}

pub(crate) fn addresses(given: PyAddresses) -> Result<Vec<SocketAddr>, Failure> {
    given
        .into_iter()
        .map(|(ip, port)| socket_address(&ip, port))
        .collect()
}

fn direct(direct: &[DirectAddress]) -> PyAddresses {
    hosts_and_ports(direct.iter().map(|direct| direct.address).collect())
}

fn bound<'py>(py: Python<'py>, bound: &[BoundAt]) -> Vec<PyBound<'py>> {
    bound
        .iter()
        .map(|bound| {
            let relay = PyBytes::new(py, &bound.relay.0);
            (relay, hosts_and_ports(bound.addresses.clone()))
        })
        .collect()
}
