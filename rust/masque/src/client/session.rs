//! One request on one carrier, from the request to its end.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use anyreach_wire::capsule::Capsule;
use bytes::Bytes;
use tokio::sync::watch;

use super::{bridge::Bridge, request::TunnelRequest, target::RelayTarget};
use crate::{
    carrier::{CarrierError, ClientCarrier, Close, ProtocolViolation, TunnelIn, TunnelOut},
    contexts::Mode,
};

/// What arrives on a request stream, brought to the tunnel while it uses this session.
#[derive(Debug)]
pub(super) struct Session {
    /// Tells the sessions of one tunnel apart: what a replaced one still delivers is dropped.
    pub(super) id: u64,
    bridge: Weak<Bridge>,
    ended: watch::Sender<Option<String>>,
}

impl Session {
    fn new(bridge: Weak<Bridge>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            bridge,
            ended: watch::Sender::new(None),
        }
    }

    /// Waits for the end of the request stream, and says why it came.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender is in `self`.
            Err(_) => String::new(),
        }
    }

    /// The session is of no use any more. The first reason stands.
    pub(super) fn end(&self, reason: impl Into<String>) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason.into());
            }
            first
        });
    }
}

impl TunnelIn for Session {
    fn datagram(&self, datagram: Bytes) -> Result<(), ProtocolViolation> {
        match self.bridge.upgrade() {
            Some(bridge) => bridge.datagram(self.id, datagram),
            None => Ok(()),
        }
    }

    fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        match self.bridge.upgrade() {
            Some(bridge) => bridge.capsule(self.id, capsule),
            None => Ok(()),
        }
    }

    fn closed(&self, reason: String) {
        self.end(reason);
    }
}

/// A request that was answered with 2xx.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) session: Arc<Session>,
    pub(super) out: Arc<dyn TunnelOut>,
    pub(super) mode: Mode,
    pub(super) public: Vec<SocketAddr>,
    pub(super) node: Vec<SocketAddr>,
}

/// Makes the request and reads the answer.
pub(super) async fn open(
    bridge: Weak<Bridge>,
    carrier: Arc<dyn ClientCarrier>,
    target: &RelayTarget,
    request: &TunnelRequest,
) -> Result<Opened, CarrierError> {
    let session = Arc::new(Session::new(bridge));
    let http = request.to_http(target, &*carrier)?;
    let (response, out) = carrier.open(http, session.clone()).await?;
    let answer = request
        .answer(&response)
        .inspect_err(|_| out.close(Close::Done))?;
    Ok(Opened {
        session,
        out,
        mode: answer.mode,
        public: answer.public,
        node: answer.node,
    })
}
