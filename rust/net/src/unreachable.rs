//! Tells a dial that the system has no route to where it sends.
//!
//! A datagram that cannot be sent concerns nobody but its sender, and the engine, which would
//! retransmit, is not told. A dial, though, should fail at once, as a TCP connect does, and not
//! wait out its handshake.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The remote addresses being dialed. Looked at only when a send has failed.
#[derive(Debug, Default)]
pub(crate) struct Dialed(Mutex<Vec<(SocketAddr, Arc<Notify>)>>);

impl Dialed {
    fn lock(&self) -> MutexGuard<'_, Vec<(SocketAddr, Arc<Notify>)>> {
        // Nothing panics while holding the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `remote` is canonical.
    pub(crate) fn add(self: &Arc<Self>, remote: SocketAddr) -> Unreachable {
        let signal = Arc::new(Notify::new());
        self.lock().push((remote, signal.clone()));
        Unreachable {
            dialed: self.clone(),
            signal,
        }
    }

    /// A datagram for `remote`, which is canonical, met no route.
    pub(crate) fn failed(&self, remote: SocketAddr) {
        for (address, signal) in self.lock().iter() {
            if *address == remote {
                signal.notify_one();
            }
        }
    }
}

/// Watches one remote address; see
/// [`MuxHandle::watch_unreachable`](crate::MuxHandle::watch_unreachable).
#[derive(Debug)]
pub struct Unreachable {
    dialed: Arc<Dialed>,
    signal: Arc<Notify>,
}

impl Unreachable {
    /// Waits until the system has refused to send to the address. For one waiter.
    pub async fn reported(&self) {
        self.signal.notified().await;
    }
}

impl Drop for Unreachable {
    fn drop(&mut self) {
        let mut dialed = self.dialed.lock();
        dialed.retain(|(_, signal)| !Arc::ptr_eq(signal, &self.signal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_dials_to_that_address_are_told() {
        let dialed = Arc::new(Dialed::default());
        let address: SocketAddr = "192.0.2.1:9".parse().expect("literal");
        let other: SocketAddr = "192.0.2.2:9".parse().expect("literal");
        let (first, second, third) = (dialed.add(address), dialed.add(address), dialed.add(other));
        dialed.failed(address);
        first.reported().await;
        second.reported().await;
        let silent = tokio::time::timeout(std::time::Duration::ZERO, third.reported());
        assert!(silent.await.is_err());
        drop((first, second, third));
        assert!(dialed.lock().is_empty());
    }
}
