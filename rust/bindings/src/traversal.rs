//! NAT traversal of a connection: what is offered to the peer, and rounds of punching.

use anyreach_quic::Prefix;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::connection::Connection;
use crate::endpoint::{Endpoint, host_and_port, seconds, socket_address};
use crate::errors::Failure;
use crate::find::{PyAddresses, addresses};
use crate::runtime;

/// Pairs of an address of ours and one of the peer's.
type PyPairs = Vec<((String, u16), (String, u16))>;

#[pymethods]
impl Endpoint {
    /// Networks of ours: addresses peers offer inside them are not refused.
    fn set_near(&self, py: Python<'_>, prefixes: Vec<String>) -> Result<(), Failure> {
        let prefixes = read_prefixes(&prefixes)?;
        let endpoint = self.core()?;
        py.detach(|| endpoint.set_near(prefixes));
        Ok(())
    }
}

#[pymethods]
impl Connection {
    /// Whether both ends do NAT traversal.
    #[getter]
    fn can_punch(&self, py: Python<'_>) -> Result<bool, Failure> {
        let connection = self.core()?;
        Ok(py.detach(|| connection.can_punch()))
    }

    /// What the peer offers, without what is refused.
    #[getter]
    fn peer_candidates(&self, py: Python<'_>) -> Result<PyAddresses, Failure> {
        let connection = self.core()?;
        let candidates = py.detach(|| connection.peer_candidates());
        Ok(candidates.into_iter().map(host_and_port).collect())
    }

    /// Our addresses for this peer, best first.
    fn set_candidates(&self, py: Python<'_>, candidates: PyAddresses) -> Result<(), Failure> {
        let candidates = addresses(candidates)?;
        let connection = self.core()?;
        py.detach(|| connection.set_candidates(&candidates));
        Ok(())
    }

    /// More networks in which addresses of this peer are not refused.
    fn allow_near(&self, py: Python<'_>, prefixes: Vec<String>) -> Result<(), Failure> {
        let prefixes = read_prefixes(&prefixes)?;
        let connection = self.core()?;
        py.detach(|| connection.allow_near(prefixes));
        Ok(())
    }

    /// Keeps the open paths that are not relayed alive by a packet after so many seconds of silence;
    /// 0 stops that.
    fn set_keep_alive(&self, py: Python<'_>, interval: f64) -> Result<(), Failure> {
        let interval = Some(seconds(interval)?).filter(|interval| !interval.is_zero());
        let connection = self.core()?;
        py.detach(|| connection.set_keep_alive(interval));
        Ok(())
    }

    /// Begins a round of punching; its number.
    #[pyo3(signature = (pairs, *, opener_ttl = 0, hold = 0.0))]
    fn start_round(
        &self,
        py: Python<'_>,
        pairs: PyPairs,
        opener_ttl: u8,
        hold: f64,
    ) -> Result<u64, Failure> {
        let address = |(ip, port): (String, u16)| socket_address(&ip, port);
        let pairs: Vec<_> = pairs
            .into_iter()
            .map(|(ours, theirs)| Ok((address(ours)?, address(theirs)?)))
            .collect::<Result<_, Failure>>()?;
        let hold = seconds(hold)?;
        let connection = self.core()?;
        py.detach(|| {
            let _runtime = runtime::enter()?;
            connection
                .start_round_after_openers(&pairs, opener_ttl, hold)
                .map_err(Failure::Dial)
        })
    }

    /// What has come of NAT traversal so far.
    fn punch_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let connection = self.core()?;
        let dict = PyDict::new(py);
        for (name, value) in connection.punch_stats() {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }
}

fn read_prefixes(texts: &[String]) -> Result<Vec<Prefix>, Failure> {
    let read = |text: &String| {
        text.parse()
            .map_err(|_| Failure::Value(format!("{text:?} is not a prefix")))
    };
    texts.iter().map(read).collect()
}
