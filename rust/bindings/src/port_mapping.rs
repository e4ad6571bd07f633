//! A port of a router that leads to the endpoint's socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use anyreach_net::MappingState;
use pyo3::prelude::*;

use crate::bridge::Bridge;
use crate::endpoint::{Endpoint, host_and_port};
use crate::errors::Failure;
use crate::runtime::{self, Deferred, PerProcess};
use crate::wake::Operation;

/// A port of a router that leads here, kept up until it is closed or dropped.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct PortMapping(PerProcess<Deferred<Inner>>);

struct Inner {
    mapping: anyreach_net::PortMapping,
    news: Arc<News>,
}

/// Counts the changes of the mapping.
struct News {
    changes: AtomicU64,
    changed: Operation,
}

#[pymethods]
impl Endpoint {
    /// Asks the routers for a port that leads to this endpoint's socket.
    fn map_port(&self, py: Python<'_>) -> Result<PortMapping, Failure> {
        let endpoint = self.core()?;
        py.detach(|| {
            let runtime = runtime::handle()?;
            let _entered = runtime.enter();
            let mapping = anyreach_net::PortMapping::start(endpoint.local_addr());
            let news = Arc::new(News {
                changes: AtomicU64::new(0),
                changed: Operation::new(),
            });
            let (mut states, told) = (mapping.subscribe(), Arc::clone(&news));
            runtime.spawn(async move {
                while states.changed().await.is_ok() {
                    told.changes.fetch_add(1, Ordering::AcqRel);
                    told.changed.wake();
                }
            });
            let inner = Inner { mapping, news };
            Ok(PortMapping(PerProcess::deferred(inner)))
        })
    }
}

#[pymethods]
impl PortMapping {
    /// The router's side of it, while there is one.
    #[getter]
    fn external(&self) -> Result<Option<(String, u16)>, Failure> {
        Ok(self.state()?.external.map(host_and_port))
    }

    /// "pcp", "nat-pmp" or "upnp", while there is a mapping.
    #[getter]
    fn protocol(&self) -> Result<Option<&'static str>, Failure> {
        let protocol = self.state()?.protocol;
        Ok(protocol.map(|protocol| protocol.as_str()))
    }

    /// Why there is none.
    #[getter]
    fn error(&self) -> Result<Option<String>, Failure> {
        Ok(self.state()?.error)
    }

    /// How often it has changed.
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

    /// Takes the mapping back, in the background; a last change tells when that is done.
    fn close(&self) -> Result<(), Failure> {
        self.0.get()?.mapping.close();
        Ok(())
    }
}

impl PortMapping {
    fn state(&self) -> Result<MappingState, Failure> {
        Ok(self.0.get()?.mapping.state())
    }
}
