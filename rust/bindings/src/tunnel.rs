//! A tunnel to a relay, and how it fares.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use anyreach_masque::carrier::CarrierKind;
use anyreach_masque::client::{self, State};
use anyreach_net::SyntheticAddr;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tokio::runtime::Handle;

use crate::bridge::Bridge;
use crate::endpoint::{host_and_port, seconds};
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::wake::Operation;

/// A tunnel to a relay, with addresses there. It reconnects by itself until it is closed or
/// dropped.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Tunnel(PerProcess<Deferred<Inner>>);

struct Inner {
    tunnel: client::Tunnel,
    news: Arc<News>,
}

/// Counts the changes of a tunnel's state.
struct News {
    changes: AtomicU64,
    changed: Operation,
}

/// Carrier, address, reason, detail and seconds of a failed try.
type PyAttempt = (&'static str, String, &'static str, String, f64);

#[pymethods]
impl Tunnel {
    /// Unique within the endpoint.
    #[getter]
    fn number(&self) -> Result<u32, Failure> {
        Ok(self.0.get()?.tunnel.number())
    }

    /// "connecting", "up", "down" or "closed".
    #[getter]
    fn state(&self) -> Result<&'static str, Failure> {
        Ok(match self.0.get()?.tunnel.state() {
            State::Connecting => "connecting",
            State::Up(_) => "up",
            State::Down(_) => "down",
            State::Closed(_) => "closed",
        })
    }

    /// PeerId the relay proved.
    #[getter]
    fn relay<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyBytes>>, Failure> {
        let relay = self.0.get()?.tunnel.relay();
        Ok(relay.map(|peer| PyBytes::new(py, &peer.0)))
    }

    /// "h3", "h2" or "h2-proxy", while it is up.
    #[getter]
    fn carrier(&self) -> Result<Option<&'static str>, Failure> {
        let carrier = self.0.get()?.tunnel.carrier();
        Ok(carrier.map(|carrier| carrier.as_str()))
    }

    /// Where the relay, or the proxy on the way, is.
    #[getter]
    fn remote(&self) -> Result<Option<(String, u16)>, Failure> {
        let up = self.0.get()?.tunnel.up();
        Ok(up.and_then(|up| up.address).map(host_and_port))
    }

    /// Our addresses at the relay, while it is up.
    #[getter]
    fn public_addresses(&self) -> Result<Vec<(String, u16)>, Failure> {
        Ok(hosts_and_ports(self.0.get()?.tunnel.public_addresses()))
    }

    /// The relay's own addresses as a node, as they are seen from inside, while it is up.
    #[getter]
    fn node_addresses(&self) -> Result<Vec<(String, u16)>, Failure> {
        Ok(hosts_and_ports(self.0.get()?.tunnel.node_addresses()))
    }

    /// Seconds to the relay and back, as far as that is known.
    #[getter]
    fn rtt(&self, py: Python<'_>) -> Result<Option<f64>, Failure> {
        let tunnel = &self.0.get()?.tunnel;
        Ok(py.detach(|| tunnel.rtt()).map(|rtt| rtt.as_secs_f64()))
    }

    /// What was tried without success, the latest time.
    #[getter]
    fn attempts(&self) -> Result<Vec<PyAttempt>, Failure> {
        let attempts = match self.0.get()?.tunnel.state() {
            State::Connecting => self.0.get()?.tunnel.failing(),
            State::Up(up) => up.failed.clone(),
            State::Down(down) => down.attempts.clone(),
            State::Closed(closed) => closed.attempts.clone(),
        };
        Ok(attempts
            .into_iter()
            .map(|attempt| {
                (
                    attempt.carrier.as_str(),
                    attempt.address.map_or_else(String::new, |a| a.to_string()),
                    attempt.reason,
                    attempt.detail,
                    attempt.elapsed.as_secs_f64(),
                )
            })
            .collect())
    }

    /// Counters since the start, by name.
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = self.0.get()?.tunnel.counters();
        let dict = PyDict::new(py);
        for (name, value) in counters.iter() {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// How often its state has changed.
    #[getter]
    fn changes(&self) -> Result<u64, Failure> {
        Ok(self.0.get()?.news.changes.load(Ordering::Acquire))
    }

    /// The number of changes, once it is not `seen`.
    fn poll_change(
        &self,
        py: Python<'_>,
        seen: u64,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<u64>, Failure> {
        let news = &self.0.get()?.news;
        let queue = bridge.queue()?;
        Ok(py.detach(|| {
            news.changed.poll(queue, token, |_| {
                match news.changes.load(Ordering::Acquire) {
                    changes if changes == seen => Poll::Pending,
                    changes => Poll::Ready(changes),
                }
            })
        }))
    }

    /// Looks at once whether the carrier still works.
    fn probe(&self, py: Python<'_>) -> Result<(), Failure> {
        let tunnel = &self.0.get()?.tunnel;
        py.detach(|| -> Result<(), Failure> {
            let _runtime = crate::runtime::enter()?;
            tunnel.probe();
            Ok(())
        })
    }

    /// Looks for a better carrier by this plan while the present one goes on.
    fn improve(&self, py: Python<'_>, plan: Vec<(String, f64)>) -> Result<(), Failure> {
        let tunnel = &self.0.get()?.tunnel;
        let plan = carrier_plan(&plan)?;
        py.detach(|| tunnel.improve(plan));
        Ok(())
    }

    /// Ends it; the relay frees what it had bound.
    fn close(&self, py: Python<'_>) -> Result<(), Failure> {
        let tunnel = &self.0.get()?.tunnel;
        py.detach(|| tunnel.close());
        Ok(())
    }
}

impl Tunnel {
    pub(crate) fn new(runtime: &Handle, tunnel: client::Tunnel) -> Self {
        let news = Arc::new(News {
            changes: AtomicU64::new(0),
            changed: Operation::new(),
        });
        let mut states = tunnel.states();
        let told = Arc::clone(&news);
        runtime.spawn(async move {
            loop {
                let closed = matches!(*states.borrow_and_update(), State::Closed(_));
                told.changes.fetch_add(1, Ordering::AcqRel);
                told.changed.wake();
                if closed || states.changed().await.is_err() {
                    return;
                }
            }
        });
        Self(PerProcess::deferred(Inner { tunnel, news }))
    }

    /// Where to dial `remote` through it.
    pub(crate) fn address_of(&self, remote: SocketAddr) -> Result<SyntheticAddr, Failure> {
        let tunnel = &self.0.get()?.tunnel;
        tunnel
            .synthetic(remote)
            .map_err(|error| Failure::Unreachable(error.to_string()))
    }
}

/// Carriers and the seconds after which each starts.
pub(crate) fn carrier_plan(plan: &[(String, f64)]) -> Result<client::Plan, Failure> {
    plan.iter()
        .map(|(name, after)| {
            let kind = [CarrierKind::H3, CarrierKind::H2, CarrierKind::H2Proxy]
                .into_iter()
                .find(|kind| kind.as_str() == name)
                .ok_or_else(|| Failure::Value(format!("{name:?} is not a carrier")))?;
            Ok((kind, seconds(*after)?))
        })
        .collect()
}

pub(crate) fn hosts_and_ports(addresses: Vec<SocketAddr>) -> Vec<(String, u16)> {
    addresses.into_iter().map(host_and_port).collect()
}
