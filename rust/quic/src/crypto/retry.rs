//! Integrity of Retry packets (RFC 9001, section 5.8), for QUIC version 1.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use noq_proto::ConnectionId;

/// RFC 9001, section 5.8: the fixed key of the Retry integrity tag.
const KEY_V1: [u8; 16] = [
    0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8, 0x4e,
];
/// RFC 9001, section 5.8: the fixed nonce of the Retry integrity tag.
const NONCE_V1: [u8; 12] = [
    0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb,
];
const TAG_LEN: usize = 16;

/// Whether `payload`, a Retry token followed by its tag, belongs to `header` and to the
/// connection id this side chose for its first Initial.
pub(super) fn is_valid(orig_dst_cid: ConnectionId, header: &[u8], payload: &[u8]) -> bool {
    let Some((token, tag)) = payload.split_last_chunk::<TAG_LEN>() else {
        return false;
    };
    // A connection id is at most 20 bytes, so its length fits one byte.
    let mut pseudo_packet = vec![orig_dst_cid.len() as u8];
    pseudo_packet.extend_from_slice(&orig_dst_cid);
    pseudo_packet.extend_from_slice(header);
    pseudo_packet.extend_from_slice(token);
    let Ok(key) = UnboundKey::new(&AES_128_GCM, &KEY_V1) else {
        return false;
    };
    LessSafeKey::new(key)
        .open_in_place(
            Nonce::assume_unique_for_key(NONCE_V1),
            Aad::from(pseudo_packet),
            &mut tag.clone(),
        )
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9001, appendix A.4.
    #[test]
    fn the_sample_of_rfc_9001() {
        let cid = ConnectionId::new(&[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08]);
        let header = [
            0xff, 0x00, 0x00, 0x00, 0x01, 0x00, 0x08, 0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62,
            0xb5,
        ];
        let payload = [
            0x74, 0x6f, 0x6b, 0x65, 0x6e, 0x04, 0xa2, 0x65, 0xba, 0x2e, 0xff, 0x4d, 0x82, 0x90,
            0x58, 0xfb, 0x3f, 0x0f, 0x24, 0x96, 0xba,
        ];
        assert!(is_valid(cid, &header, &payload));
        for i in 0..payload.len() {
            let mut bad = payload;
            bad[i] ^= 1;
            assert!(!is_valid(cid, &header, &bad), "byte {i}");
        }
        assert!(!is_valid(cid, &header, &payload[..15]));
    }
}
