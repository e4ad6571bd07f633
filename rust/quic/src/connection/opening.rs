//! Opening further paths of a connection, and closing them.

use std::{net::SocketAddr, time::Duration};

use anyreach_net::{SyntheticAddr, canonical, is_possible_peer, is_synthetic};
use noq::{PathError, PathId, PathStatus};

use super::{Connection, RelayHint, path_number};
use crate::{DialError, config::MAX_PATHS};

/// Between two attempts while the peer has not provided for another path yet: it does so within a
/// round trip after the handshake, and after a path has ended.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// What a path is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathOptions {
    /// What is known of the address.
    pub hint: RelayHint,
    /// Use it only if there is no other path.
    pub standby: bool,
}

impl Connection {
    /// Opens a further path of this connection, to `remote`, and waits until it is validated;
    /// returns its number. If there is one to that address, it is taken, with the options given.
    ///
    /// Only the side that dialed can do so. Dropping the future, or a timeout, ends the attempt.
    ///
    /// For addresses at which the peer is known to answer: the number of a path the peer has never
    /// seen is lost, and there are eight. For all others there is
    /// [`Endpoint::open_path`](crate::Endpoint::open_path).
    ///
    /// # Errors
    /// [`DialError`]: `not-dialed` on the accepting side, `limit` if there are as many paths as may
    /// be, `unreachable`, `handshake-timeout` when `timeout` has passed, `closed` with the
    /// connection, `protocol` if the peer does not do multipath.
    pub async fn open_path(
        &self,
        remote: SocketAddr,
        options: PathOptions,
        timeout: Duration,
    ) -> Result<u32, DialError> {
        let remote = canonical(remote);
        // An address a user or a peer supplied must never choose a tunnel.
        if !is_possible_peer(remote) || is_synthetic(remote.ip()) {
            let detail = format!("{remote} is not the address of a host");
            return Err(DialError::new("unreachable", detail));
        }
        self.open_engine_path(remote, options, timeout).await
    }

    /// Opens a further path through a tunnel of this node, as [`open_path`](Self::open_path) does
    /// to an address of the network.
    ///
    /// # Errors
    /// As [`open_path`](Self::open_path).
    pub async fn open_path_through(
        &self,
        tunnelled: SyntheticAddr,
        options: PathOptions,
        timeout: Duration,
    ) -> Result<u32, DialError> {
        self.open_engine_path(tunnelled.socket_addr(), options, timeout)
            .await
    }

    async fn open_engine_path(
        &self,
        remote: SocketAddr,
        options: PathOptions,
        timeout: Duration,
    ) -> Result<u32, DialError> {
        self.can_open_paths()?;
        let attempt = async {
            loop {
                match self.try_path(remote, options).await {
                    Ok(id) => return Ok(path_number(id)),
                    Err(error) if self.may_come(&error) => {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    Err(error) => return Err(self.path_error(error)),
                }
            }
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(timeout, attempt) => opened,
            reason = self.closed() => return Err(DialError::new("closed", reason.message)),
        };
        opened.unwrap_or_else(|_| {
            let detail = "no answer: nothing listens there, or a firewall or NAT drops the packets";
            Err(DialError::new("handshake-timeout", detail))
        })
    }

    /// Refuses on the side that cannot.
    pub(crate) fn can_open_paths(&self) -> Result<(), DialError> {
        if !self.outbound() {
            let detail = "only the side that dialed a connection can open further paths of it";
            return Err(DialError::new("not-dialed", detail));
        }
        Ok(())
    }

    /// The open path to an address, as the engine has it.
    fn path_to(&self, remote: SocketAddr) -> Option<PathId> {
        let remote_of = |id| self.engine().path(id)?.remote_address().ok();
        let same = |id: &PathId| remote_of(*id).map(canonical) == Some(remote);
        self.path_ids().into_iter().find(same)
    }

    pub(crate) fn has_path_to(&self, remote: SocketAddr) -> bool {
        self.path_to(remote).is_some()
    }

    async fn try_path(
        &self,
        remote: SocketAddr,
        options: PathOptions,
    ) -> Result<PathId, PathError> {
        let engine = self.engine();
        if let Some(id) = self.path_to(remote) {
            self.path_hint(id, remote, options.hint);
            self.path_wanted(id, options.standby);
            return Ok(id);
        }
        let opening = engine.open_path_ensure(remote, PathStatus::Available);
        if let Some(id) = opening.path_id() {
            self.path_opening(id, remote, options.hint, options.standby);
            // Until the steward has chosen. Set and not opened with, because so the peer is told.
            if let Some(path) = engine.path(id) {
                let _ = path.set_status(PathStatus::Backup);
            }
        }
        let attempt = Attempt {
            connection: self,
            id: opening.path_id(),
        };
        let path = opening.await?;
        std::mem::forget(attempt);
        self.path_established(path.id());
        self.path_wanted(path.id(), options.standby);
        Ok(path.id())
    }

    /// Whether waiting helps: the peer provides for further paths as others end.
    fn may_come(&self, error: &PathError) -> bool {
        let provided = !matches!(
            error,
            PathError::MaxPathIdReached | PathError::RemoteCidsExhausted
        );
        !provided && self.path_ids().len() < MAX_PATHS as usize
    }

    fn path_error(&self, error: PathError) -> DialError {
        match error {
            PathError::MultipathNotNegotiated => {
                DialError::new("protocol", "the peer does not do multipath")
            }
            PathError::ServerSideNotAllowed => DialError::new("not-dialed", error.to_string()),
            PathError::MaxPathIdReached | PathError::RemoteCidsExhausted => {
                let detail = format!("there are {} paths already", self.path_ids().len());
                DialError::new("limit", detail)
            }
            PathError::ValidationFailed => {
                DialError::new("closed", "the path ended before it was validated")
            }
            PathError::InvalidRemoteAddress(_) => DialError::new(
                "unreachable",
                "the address cannot be reached from this socket",
            ),
        }
    }

    /// Has the engine use a path for data, or not.
    pub(crate) fn set_path_status(&self, id: PathId, status: PathStatus) {
        // Asked first, because telling the engine wakes it up.
        if let Some(path) = self.engine().path(id)
            && path.status().is_ok_and(|current| current != status)
        {
            // Fails for a path that was closed just now.
            let _ = path.set_status(status);
        }
    }

    /// Closes a path that is dead. False if it was closed already, or is the last one.
    pub(crate) fn close_dead_path(&self, id: PathId) -> bool {
        let Some(path) = self.engine().path(id) else {
            return false;
        };
        // First, so that not one acknowledgement slips through.
        self.0.activity.hushed.add(path_number(id));
        let closed = path.close().is_ok();
        if !closed {
            self.path_discarded(id);
        }
        closed
    }

    /// Nothing has come by a path for a while: what came before is not acknowledged any more.
    pub(crate) fn path_stale(&self, id: PathId) {
        self.0.activity.hushed.add_until_heard(path_number(id));
    }

    /// The engine has forgotten a path.
    pub(crate) fn path_discarded(&self, id: PathId) {
        self.0.activity.hushed.remove(path_number(id));
    }

    /// Closes a path; what was under way on it comes again on another one. False if there is no such
    /// path, or no other.
    pub fn close_path(&self, id: u32) -> bool {
        let path = self.engine().path(PathId::from(id));
        path.is_some_and(|path| path.close().is_ok())
    }
}

/// Closes a path that was not validated, when nobody waits for it any more.
struct Attempt<'a> {
    connection: &'a Connection,
    id: Option<PathId>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            if let Some(path) = self.connection.engine().path(id) {
                // Fails if it was closed already.
                let _ = path.close();
            }
            self.connection.path_abandoned(id);
        }
    }
}
