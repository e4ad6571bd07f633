//! Payloads of the uncompressed context (draft-ietf-masque-connect-udp-listen, section 4): a remote
//! address and port before every UDP payload.
//!
//! An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) is taken for the IPv4 address it stands for,
//! here and in COMPRESSION_ASSIGN. The system would send to that IPv4 address whatever we call it,
//! and report answers as coming from it; so a table with the mapped form would hold one remote
//! twice, and a rule against 127.0.0.1 would be walked around with `::ffff:127.0.0.1`. Behind this
//! module every rule sees the address packets really go to. Refusing the mapped form would be as
//! safe, but peers whose sockets are dual-stack do send it, and mean just this.
//!
//! Whether an address may be contacted is not decided here.

use std::net::SocketAddr;

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::address::{Address, Family};
use crate::capsule::ip_version;
use crate::context::{ContextId, Head};
use crate::varint::UnexpectedEnd;

/// Why a payload of the uncompressed context cannot be read. It is to be dropped; unlike a
/// malformed capsule, it does not end the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BoundError {
    /// It ends before the UDP payload begins.
    #[error("payload of the uncompressed context is cut short")]
    Truncated,
    /// Neither 4 nor 6.
    #[error("payload of the uncompressed context with IP version {0}")]
    IpVersion(u8),
}

/// Takes a payload of the uncompressed context apart, without its context ID: the remote in
/// canonical form, and the UDP payload, which shares its memory.
///
/// # Errors
/// [`BoundError`].
pub fn split_bound(mut payload: Bytes) -> Result<(SocketAddr, Bytes), BoundError> {
    let (version, mut rest) = payload.split_first().ok_or(BoundError::Truncated)?;
    let family = match version {
        4 => Family::V4,
        6 => Family::V6,
        other => return Err(BoundError::IpVersion(*other)),
    };
    let remote = Address::decode(&mut rest, family)
        .map_err(|UnexpectedEnd| BoundError::Truncated)?
        .into();
    payload.advance(payload.len() - rest.len());
    Ok((remote, payload))
}

/// What comes before the UDP payload in a datagram of the uncompressed context: the context's ID,
/// and the remote.
pub fn bound_head(context: ContextId, remote: SocketAddr) -> Head {
    let remote = Address::from(remote);
    let mut head = context.head();
    head.put(1, |out| out[0] = ip_version(remote));
    head.put(remote.encoded_len(), |mut out| remote.encode(&mut out));
    head
}
