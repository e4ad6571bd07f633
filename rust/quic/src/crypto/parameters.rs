//! What our transport parameters say otherwise than the engine's.

use anyreach_wire::{transport_parameters::Parameters, varint::VarInt};

/// `active_connection_id_limit` (RFC 9000, section 18.2).
const ACTIVE_CONNECTION_ID_LIMIT: VarInt = VarInt::from_u32(0x0e);

/// Connection IDs the peer shall hold ready for each path: the one in use and one to change to,
/// the least that is allowed. The engine asks for five, on every path there may ever be: most of
/// what a fresh connection sends, stores and computes (a reset token each) would be for them.
///
/// draft-seemann-quic-nat-traversal-02, section 4.4.1, wants one for each validation at a time. With
/// multipath every path number has IDs of its own, and the engine probes with the ID of a path it
/// has, so that this limits nothing there; `tests/connection_ids.rs` holds it to that.
const CONNECTION_IDS: u32 = 2;

/// Asks for fewer connection IDs than the engine, which takes as many as it asked for.
pub(super) fn fewer_connection_ids(encoded: Vec<u8>) -> Vec<u8> {
    let mut value = Vec::new();
    VarInt::from_u32(CONNECTION_IDS).encode(&mut value);
    let id = ACTIVE_CONNECTION_ID_LIMIT;
    let Ok(mut parameters) = Parameters::parse(&encoded) else {
        return encoded;
    };
    // Without the parameter the number is the same (RFC 9000, section 18.2).
    match parameters.rewrite(id, id, value) {
        Ok(true) => parameters.encode(),
        _ => encoded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_limit_changes() {
        // max_idle_timeout, the limit, initial_max_data.
        let encoded = vec![0x01, 0x01, 0x1e, 0x0e, 0x01, 0x05, 0x04, 0x02, 0x40, 0x64];
        let mut expected = encoded.clone();
        expected[5] = 0x02;
        assert_eq!(fewer_connection_ids(encoded), expected);
        let without = vec![0x01, 0x01, 0x1e];
        assert_eq!(fewer_connection_ids(without.clone()), without);
    }
}
