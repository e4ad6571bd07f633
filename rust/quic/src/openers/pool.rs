//! A pool: many sockets towards one address, each with an opener.
//!
//! The other half of a birthday attempt, for the end behind a NAT with random ports: every socket
//! has a port of its own there. The socket that is found adopts who has found it, and stays for as
//! long as a path uses it; the others go with the pool.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyreach_net::{ExtraOptions, ExtraSocket, Hops, MuxError, canonical};
use tokio::runtime::Handle;

use super::line::{Line, Sending};
use crate::connection::WeakConnection;

/// Sockets of one pool: what a birthday attempt needs for 99.6 % with 1,400 ports, and a quarter of
/// the descriptors a process usually has. Two pools fit what one node may have
/// ([`MAX_EXTRA_SOCKETS`](anyreach_net::mux::MAX_EXTRA_SOCKETS)).
pub const MAX_POOL: usize = 256;

/// How often it is looked whether a path still uses a socket.
const KEPT_LOOK: Duration = Duration::from_secs(1);

/// How long a socket that was found waits for its path, once the pool is closed: a few attempts to
/// open one on a long line.
const KEPT_AT_LEAST: Duration = Duration::from_secs(10);

/// Sockets towards one address. Closing or dropping it closes those no path uses.
pub struct Pool {
    line: Arc<Line>,
    connection: WeakConnection,
    towards: SocketAddr,
    sockets: Mutex<Vec<ExtraSocket>>,
    /// On which sockets are kept when the pool has gone.
    runtime: Handle,
}

impl Pool {
    /// Opens up to `count` sockets, as many as there are to be had and paid for. To be called
    /// within a tokio runtime.
    pub(crate) fn open(
        line: Arc<Line>,
        connection: WeakConnection,
        towards: SocketAddr,
        count: usize,
    ) -> Result<Self, MuxError> {
        let towards = canonical(towards);
        let options = ExtraOptions {
            expect: Some(towards.ip()),
            adoptions: None,
        };
        let mut sockets = Vec::new();
        for _ in 0..count.min(MAX_POOL) {
            let spare = line.socket().spare_socket(towards);
            let added = spare.and_then(|spare| {
                let socket = spare.into_socket();
                line.socket().add_socket(socket, options.clone())
            });
            let socket = match added {
                Ok(socket) => socket,
                Err(error) if sockets.is_empty() => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, sockets = sockets.len(), "the pool stays small");
                    break;
                }
            };
            match send(&line, &socket, towards) {
                Sending::Sent | Sending::Full | Sending::Failed => sockets.push(socket),
                // A socket without an opener has no port at the NAT.
                Sending::Refused | Sending::Unpaid => break,
            }
        }
        Ok(Self {
            line,
            connection,
            towards,
            sockets: Mutex::new(sockets),
            runtime: Handle::current(),
        })
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<ExtraSocket>> {
        // A list is whole between any two operations.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sockets that are open.
    pub fn size(&self) -> usize {
        self.sockets().len()
    }

    /// Which sockets were found: their local address, and by whom.
    pub fn adopted(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let found = |socket: &ExtraSocket| {
            let local = socket.local_addr();
            let adopted = socket.adopted().into_iter();
            adopted
                .map(move |remote| (local, remote))
                .collect::<Vec<_>>()
        };
        self.sockets().iter().flat_map(found).collect()
    }

    /// Sends an opener from every socket once more, as far as the peer has paid for it.
    pub fn refresh(&self) {
        for socket in self.sockets().iter() {
            if send(&self.line, socket, self.towards) == Sending::Unpaid {
                return;
            }
        }
    }

    /// Closes the sockets no path uses; the others when no path uses them any more.
    pub fn close(&self) {
        let mut found = std::mem::take(&mut *self.sockets());
        found.retain(|socket| !socket.adopted().is_empty());
        if !found.is_empty() {
            self.runtime.spawn(keep(found, self.connection.clone()));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

fn send(line: &Line, socket: &ExtraSocket, to: SocketAddr) -> Sending {
    line.send(to, |datagram| {
        Ok(socket.send_raw(datagram, to, Hops::None)?)
    })
}

/// Holds sockets for as long as paths of the connection use them.
async fn keep(mut sockets: Vec<ExtraSocket>, connection: WeakConnection) {
    let since = Instant::now();
    while !sockets.is_empty() {
        tokio::time::sleep(KEPT_LOOK).await;
        let Some(connection) = connection.upgrade() else {
            return;
        };
        if connection.close_reason().is_some() {
            return;
        }
        let young = since.elapsed() < KEPT_AT_LEAST;
        sockets.retain(|socket| {
            let mut adopted = socket.adopted().into_iter();
            young || adopted.any(|remote| connection.has_path_to(remote))
        });
    }
}
