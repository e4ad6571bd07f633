//! Where 1-RTT payloads are in clear: just before they are sealed and just after they were opened.
//!
//! Here the engine's NAT traversal becomes that of the draft (the [`Layer`]), made-up addresses
//! become real ones, and acknowledgements that would do harm go. A [`PacketTap`] sees what is left
//! of that, as it is on the wire, and may rewrite it: for tests and for looking at what is said.

use std::sync::Arc;

use anyreach_wire::observed;
use bytes::BytesMut;
use noq_proto::{
    PathId, Side,
    crypto::{CryptoError, PacketKey},
};

use super::activity::Activity;
use crate::{directory::DirectorySlot, traversal::Layer};

/// Sees, and may rewrite, the packets of one connection. It must be cheap.
pub trait PacketTap: Send + Sync + 'static {
    /// Called with the encoded transport parameters this side is about to send.
    fn outgoing_parameters(&self, _encoded: &mut Vec<u8>) {}

    /// Called with the encoded transport parameters of the peer, before the engine reads them.
    ///
    /// # Errors
    /// A sentence for the peer; the connection ends with TRANSPORT_PARAMETER_ERROR.
    fn incoming_parameters(&self, _encoded: &mut Vec<u8>) -> Result<(), String> {
        Ok(())
    }

    /// Called with the payload of a 1-RTT packet before it is sealed. Its length is fixed.
    fn sealing(&self, path: PathId, packet: u64, payload: &mut [u8]);

    /// Called with the payload of a 1-RTT packet after it was opened, before the engine checks
    /// for duplicates. It may shrink, never grow.
    fn opened(&self, path: PathId, packet: u64, payload: &mut BytesMut);
}

/// Makes the tap of a new connection, given the role of this side.
pub type TapFactory = Arc<dyn Fn(Side) -> Arc<dyn PacketTap> + Send + Sync>;

/// The key of 1-RTT packets, with what happens to them in clear.
pub(super) struct OneRttKey {
    pub(super) key: Box<dyn PacketKey>,
    pub(super) layer: Option<Arc<Layer>>,
    pub(super) tap: Option<Arc<dyn PacketTap>>,
    pub(super) directory: DirectorySlot,
    pub(super) activity: Arc<Activity>,
}

impl PacketKey for OneRttKey {
    fn encrypt(&self, path_id: PathId, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - self.key.tag_len();
        let payload = &mut buf[header_len..end];
        self.activity.hushed.apply(payload);
        observed::correct(payload, |address| self.directory.correction(address));
        if let Some(layer) = &self.layer {
            layer.sealing(path_id, packet, payload);
        }
        if let Some(tap) = &self.tap {
            tap.sealing(path_id, packet, payload);
        }
        self.activity.last_words.sealing(path_id, payload);
        self.key.encrypt(path_id, packet, buf, header_len);
        self.activity.stir();
    }

    fn decrypt(
        &self,
        path_id: PathId,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.key.decrypt(path_id, packet, header, payload)?;
        self.activity.hushed.heard(path_id);
        self.activity.last_words.opened(payload);
        self.activity.stir();
        if let Some(tap) = &self.tap {
            tap.opened(path_id, packet, payload);
        }
        self.activity.statuses.admit(payload);
        let refused = self.activity.responses.admit(payload, self.layer.is_some());
        if let Some(layer) = &self.layer {
            if refused {
                layer.response_refused();
            }
            layer.opened(payload);
        }
        Ok(())
    }

    fn tag_len(&self) -> usize {
        self.key.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key.integrity_limit()
    }
}
