//! Openers: what a node sends besides QUIC to open NATs, and to see what they do.

use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use anyreach_quic::{Reflected, Sprayed};
use pyo3::prelude::*;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::bridge::Bridge;
use crate::connection::Connection;
use crate::endpoint::{Endpoint, host_and_port, seconds, socket_address};
use crate::errors::Failure;
use crate::find::{PyAddresses, addresses};
use crate::runtime::{self, Deferred, PerProcess};
use crate::tunnel::Tunnel;
use crate::wake::Slot;

/// The source a reflection arrived with, and the number of the tunnel it came through.
type PyReflected = (Option<(String, u16)>, Option<u32>);

/// A local address and who was met there.
type PyAdoption = ((String, u16), (String, u16));

/// Something that goes on by itself until it is done or given up.
struct Task<T> {
    abort: AbortHandle,
    outcome: Slot<T>,
}

impl<T: Default + Send + 'static> Task<T> {
    fn spawn(runtime: &Handle, work: impl Future<Output = T> + Send + 'static) -> Self {
        let task = runtime.spawn(work);
        let abort = task.abort_handle();
        Self {
            abort,
            outcome: Slot::with(Box::pin(async move { task.await.unwrap_or_default() })),
        }
    }

    fn poll(&self, bridge: &Bridge, token: u64, py: Python<'_>) -> Result<Option<T>, Failure> {
        let queue = bridge.queue()?;
        py.detach(|| {
            self.outcome
                .poll(queue, token, || Box::pin(std::future::ready(T::default())))
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// A datagram to ourselves on its way. Dropping it gives up.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Reflection {
    local_port: u16,
    task: PerProcess<Deferred<Task<Option<Reflected>>>>,
}

#[pymethods]
impl Reflection {
    /// Port of the socket it was sent from.
    #[getter]
    fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Where from and through which tunnel it came; no source if it did not arrive in time.
    fn poll(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<PyReflected>, Failure> {
        let arrived = self.task.get()?.poll(bridge, token, py)?;
        Ok(arrived.map(|arrived| match arrived {
            Some(Reflected { source, tunnel }) => (Some(host_and_port(source)), tunnel),
            None => (None, None),
        }))
    }
}

/// Openers being sent to random ports. Dropping it ends that.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Spray(PerProcess<Deferred<Task<Sprayed>>>);

#[pymethods]
impl Spray {
    /// How many were sent, and whether a way opened, once it is over.
    fn poll(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<(usize, bool)>, Failure> {
        let sprayed = self.0.get()?.poll(bridge, token, py)?;
        Ok(sprayed.map(|sprayed| (sprayed.sent, sprayed.hit)))
    }

    /// Ends it.
    fn cancel(&self) -> Result<(), Failure> {
        self.0.get()?.abort.abort();
        Ok(())
    }
}

/// Sockets towards one address. Closing or dropping it closes those that no path uses.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Pool(PerProcess<Deferred<anyreach_quic::Pool>>);

#[pymethods]
impl Pool {
    /// Sockets that are open.
    #[getter]
    fn size(&self, py: Python<'_>) -> Result<usize, Failure> {
        let pool = self.0.get()?;
        Ok(py.detach(|| pool.size()))
    }

    /// Which sockets were found, and by whom: local and remote address.
    #[getter]
    fn adopted(&self, py: Python<'_>) -> Result<Vec<PyAdoption>, Failure> {
        let pool = self.0.get()?;
        let adopted = py.detach(|| pool.adopted());
        let adoption = |(local, remote)| (host_and_port(local), host_and_port(remote));
        Ok(adopted.into_iter().map(adoption).collect())
    }

    /// Sends the openers once more.
    fn refresh(&self, py: Python<'_>) -> Result<(), Failure> {
        let pool = self.0.get()?;
        py.detach(|| pool.refresh());
        Ok(())
    }

    /// Closes the sockets no path uses.
    fn close(&self, py: Python<'_>) -> Result<(), Failure> {
        let pool = self.0.get()?;
        py.detach(|| pool.close());
        Ok(())
    }
}

#[pymethods]
impl Endpoint {
    /// Sends a datagram to one of our own addresses, to see where from and where it arrives.
    #[pyo3(signature = (ip, port, timeout, *, via = None, fresh = false))]
    fn reflect(
        &self,
        py: Python<'_>,
        ip: &str,
        port: u16,
        timeout: f64,
        via: Option<&Tunnel>,
        fresh: bool,
    ) -> Result<Reflection, Failure> {
        let (to, timeout) = (socket_address(ip, port)?, seconds(timeout)?);
        let endpoint = self.core()?;
        if fresh && via.is_some() {
            let text = "what goes through a tunnel leaves from no socket of its own";
            return Err(Failure::Value(text.to_owned()));
        }
        let tunnelled = via.map(|tunnel| tunnel.address_of(to)).transpose()?;
        py.detach(|| {
            let runtime = runtime::handle()?;
            let _entered = runtime.enter();
            let reflection = match tunnelled {
                Some(address) => endpoint.reflect_through(address),
                None => endpoint.reflect(to, fresh),
            };
            let reflection = reflection.map_err(|error| Failure::Socket(error.into()))?;
            let timeout = timeout.min(LONGEST);
            Ok(Reflection {
                local_port: reflection.local_port(),
                task: PerProcess::deferred(Task::spawn(&runtime, async move {
                    reflection.arrive(timeout).await
                })),
            })
        })
    }
}

#[pymethods]
impl Endpoint {
    /// Opens our own NATs for these addresses, with packets that end so many routers away; how many.
    fn prime(
        &self,
        py: Python<'_>,
        addresses: PyAddresses,
        ttl: NonZeroU8,
    ) -> Result<usize, Failure> {
        let addresses: Vec<SocketAddr> = self::addresses(addresses)?;
        let endpoint = self.core()?;
        Ok(py.detach(|| endpoint.prime(&addresses, ttl)))
    }
}

#[pymethods]
impl Connection {
    /// Openers to that many random ports, evenly over so many seconds, until a way opens.
    fn spray(
        &self,
        py: Python<'_>,
        ip: &str,
        count: usize,
        seconds: f64,
    ) -> Result<Spray, Failure> {
        let host = socket_address(ip, 0)?.ip();
        let time = self::seconds(seconds)?.min(LONGEST);
        let connection = self.core()?;
        py.detach(|| {
            let spray = connection.spray(host, count, time).map_err(Failure::Dial)?;
            let task = Task::spawn(&runtime::handle()?, spray.run());
            Ok(Spray(PerProcess::deferred(task)))
        })
    }

    /// Opens so many sockets, each sending an opener to the address.
    fn pool(&self, py: Python<'_>, ip: &str, port: u16, count: usize) -> Result<Pool, Failure> {
        let towards = socket_address(ip, port)?;
        let connection = self.core()?;
        py.detach(|| {
            let _runtime = runtime::enter()?;
            let pool = connection.pool(towards, count).map_err(Failure::Socket)?;
            Ok(Pool(PerProcess::deferred(pool)))
        })
    }

    /// Sends an opener to each of these addresses, in this order; how many.
    fn openers(&self, py: Python<'_>, addresses: PyAddresses, ttl: u8) -> Result<usize, Failure> {
        let addresses: Vec<SocketAddr> = self::addresses(addresses)?;
        let connection = self.core()?;
        // As in start_round: 255 is as many routers as usual.
        let hops = if ttl == u8::MAX { 0 } else { ttl };
        Ok(py.detach(|| connection.openers(&addresses, hops)))
    }
}

/// Longest time anything here may take: a deadline must be a point in time.
const LONGEST: Duration = Duration::from_secs(3600);
