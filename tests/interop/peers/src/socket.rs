//! UDP sockets with large buffers.

use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Failure;

/// Asked of the kernel for either direction, which may grant less (net.core.rmem_max): the same as
/// our nodes ask, since smaller ones lose whole bursts.
pub const BUFFER_BYTES: usize = 8 << 20;

/// A bound socket of the address's family.
///
/// # Errors
/// The address cannot be bound.
pub fn bind(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // Best effort: the limits of the machine apply.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
