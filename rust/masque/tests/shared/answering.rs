//! A service that answers every registration, as a relay does: for the tests of each carrier.

use std::sync::Arc;

use anyreach_masque::carrier::{
    Accepted, BoxFuture, Client, Decision, ProtocolViolation, Service, TunnelIn, TunnelOut,
};
use anyreach_wire::{capsule::Capsule, context::ContextId};
use bytes::Bytes;
use http::{HeaderMap, Request};

/// As many as a relay keeps, and twice what a carrier queues.
const REGISTRATIONS: u32 = 128;

/// Answers every registration, as a relay does.
pub(crate) struct Answering;

struct Answer(Arc<dyn TunnelOut>);

impl Service for Answering {
    fn open<'a>(
        &'a self,
        _: &'a Client,
        _: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            let headers = HeaderMap::new();
            let input: Arc<dyn TunnelIn> = Arc::new(Answer(out));
            Ok((Accepted { headers }, input))
        })
    }
}

impl TunnelIn for Answer {
    fn datagram(&self, _: Bytes) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        let answer = Capsule::CompressionAck(capsule.context());
        let sent = self.0.send_capsule(answer.to_bytes());
        sent.map_err(|error| ProtocolViolation(error.to_string()))
    }

    fn closed(&self, _: String) {}
}

/// Registrations, and as many bytes as the answers to them have.
pub(crate) fn registrations() -> (Vec<u8>, usize) {
    let ids = (1..=REGISTRATIONS).map(|n| ContextId::from_u32(2 * n));
    let (mut asked, mut answered) = (Vec::new(), 0);
    for context in ids {
        let target = Some(([192, 0, 2, 1], 4433).into());
        Capsule::CompressionAssign { context, target }.encode(&mut asked);
        answered += Capsule::CompressionAck(context).to_bytes().len();
    }
    (asked, answered)
}
