//! Datagrams of the node's own making, beside those of the engine: out of any of its sockets, with
//! any time to live, now or not at all.
//!
//! A datagram with a small time to live opens the NATs near the sender and dies before it reaches
//! those of the receiver. Where the system takes it with the datagram (Linux) it concerns nothing
//! else. Elsewhere it is set on the socket for the moment of sending, so that a packet of the engine
//! that another thread sends in that moment may die as well: QUIC makes up for it as for any loss.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    num::NonZeroU8,
};

use noq_udp::Transmit;
use socket2::SockRef;

use crate::{
    addr::{SocketFamily, canonical},
    inherit::NotInherited,
    mux::{ExtraSocket, MuxError, MuxHandle},
    sender::is_possible_peer,
    synthetic::is_synthetic,
};

/// How many routers a datagram may pass, as IPv4 TTL or IPv6 hop limit. `None`: as usual.
pub type Hops = Option<NonZeroU8>;

impl MuxHandle {
    /// Sends one datagram by the way its destination has: a tunnel for a synthetic address, the
    /// extra socket that has adopted it, else the primary socket. Never waits. A tunnel knows no
    /// hops: its relay sends as usual.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`]; [`MuxError::Io`] with what the system reports for this datagram:
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if the socket is full,
    /// [`Unsupported`](io::ErrorKind::Unsupported) if it cannot address that family,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if no host can have the address.
    pub fn send_raw(&self, datagram: &[u8], to: SocketAddr, hops: Hops) -> Result<(), MuxError> {
        let shared = self.shared()?;
        let routes = shared.current();
        let to = canonical(to);
        if is_synthetic(to.ip()) {
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: datagram,
                segment_size: None,
                src_ip: None,
            };
            routes.send_to_tunnel(&transmit, &shared.counters);
            return Ok(());
        }
        let adopted = routes.overrides.get(&to).and_then(|extra| extra.port.get());
        let port = adopted.or_else(|| shared.primary(&routes));
        let port = port.ok_or(MuxError::Closed)?;
        send(SockRef::from(&**port.io), port.family, datagram, to, hops)?;
        Ok(())
    }

    /// A socket beside the node's: a port the system chooses, on the address the node's is bound
    /// to, for sending to addresses of the family of `towards`.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`]; [`MuxError::Io`] if the system has none to give, with
    /// [`Unsupported`](io::ErrorKind::Unsupported) if the node's address is of the other family.
    pub fn spare_socket(&self, towards: SocketAddr) -> Result<SpareSocket, MuxError> {
        let local = self.local_addr()?.ip();
        let unspecified = match canonical(towards) {
            SocketAddr::V4(_) => IpAddr::from([0; 4]),
            SocketAddr::V6(_) => IpAddr::from([0_u16; 8]),
        };
        let ip = if local.is_unspecified() {
            unspecified
        } else {
            local
        };
        if ip.is_ipv4() != unspecified.is_ipv4() {
            return Err(MuxError::Io(io::ErrorKind::Unsupported.into()));
        }
        let socket = UdpSocket::bind((ip, 0))?;
        socket.set_nonblocking(true)?;
        Ok(SpareSocket {
            _not_inherited: NotInherited::new(&socket),
            family: SocketFamily::of(&socket)?,
            socket,
        })
    }
}

/// A socket of its own that nobody receives from: to be thrown away, or given to
/// [`MuxHandle::add_socket`].
#[derive(Debug)]
pub struct SpareSocket {
    // Before the socket, so that it is dropped first.
    _not_inherited: NotInherited,
    family: SocketFamily,
    socket: UdpSocket,
}

impl SpareSocket {
    /// Its local address, canonical.
    ///
    /// # Errors
    ///
    /// What the system reports.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr().map(canonical)
    }

    /// Sends one datagram, as [`MuxHandle::send_raw`].
    ///
    /// # Errors
    ///
    /// Those of [`MuxHandle::send_raw`].
    pub fn send_raw(&self, datagram: &[u8], to: SocketAddr, hops: Hops) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        send(socket, self.family, datagram, canonical(to), hops)
    }

    /// The socket itself.
    pub fn into_socket(self) -> UdpSocket {
        self.socket
    }
}

impl ExtraSocket {
    /// Sends one datagram from this socket, as [`MuxHandle::send_raw`]. Does not adopt `to`.
    ///
    /// # Errors
    ///
    /// Those of [`MuxHandle::send_raw`].
    pub fn send_raw(&self, datagram: &[u8], to: SocketAddr, hops: Hops) -> io::Result<()> {
        let port = self.extra().port.get().ok_or(io::ErrorKind::NotConnected)?;
        let socket = SockRef::from(&**port.io);
        send(socket, port.family, datagram, canonical(to), hops)
    }
}

/// Calls the system past the runtime, which believes a new socket full until it has looked.
fn send(
    socket: SockRef<'_>,
    family: SocketFamily,
    datagram: &[u8],
    to: SocketAddr,
    hops: Hops,
) -> io::Result<()> {
    // The last gate before the wire, as for packets of the engine.
    if !is_possible_peer(to) || is_synthetic(to.ip()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let wire = family.destination(to).ok_or(io::ErrorKind::Unsupported)?;
    match hops {
        None => socket.send_to(datagram, &wire.into())?,
        Some(hops) => hops::send_to(&socket, datagram, wire, to.is_ipv4(), hops)?,
    };
    Ok(())
}

/// The time to live goes with the datagram. Which of the two options counts is decided by the
/// family of the destination: Linux hands what an IPv6 socket sends to a mapped address to IPv4
/// whole, with its control messages.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod hops {
    use std::{
        io::{self, IoSlice},
        net::SocketAddr,
        num::NonZeroU8,
    };

    use socket2::{MsgHdr, SockRef};

    /// Room for one control message with one integer: 24 bytes on 64-bit systems.
    const ROOM: usize = 64;

    pub(super) fn send_to(
        socket: &SockRef<'_>,
        datagram: &[u8],
        wire: SocketAddr,
        ipv4: bool,
        hops: NonZeroU8,
    ) -> io::Result<usize> {
        let (level, option) = if ipv4 {
            (libc::IPPROTO_IP, libc::IP_TTL)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
        };
        let mut control = [0; ROOM];
        let used = message(&mut control, level, option, hops.get().into());
        let (to, contents) = (wire.into(), [IoSlice::new(datagram)]);
        let message = MsgHdr::new()
            .with_addr(&to)
            .with_buffers(&contents)
            .with_control(&control[..used]);
        socket.sendmsg(&message, 0)
    }

    /// Writes a control message with one integer; its length.
    fn message(control: &mut [u8; ROOM], level: i32, option: i32, value: libc::c_int) -> usize {
        const VALUE: u32 = size_of::<libc::c_int>() as u32;
        // SAFETY: pure arithmetic.
        let (start, len, space) = unsafe {
            (
                libc::CMSG_LEN(0) as usize,
                libc::CMSG_LEN(VALUE) as usize,
                libc::CMSG_SPACE(VALUE) as usize,
            )
        };
        assert!(space <= ROOM, "a header and an integer fit");
        // SAFETY: all-zero is a header: integers, and on some C libraries padding.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_len = len as _;
        header.cmsg_level = level;
        header.cmsg_type = option;
        // SAFETY: `start` is where the data of a message begins, not before the end of its header,
        // and `space` covers both, which was checked to be within `control`. Unaligned writes ask
        // for nothing else.
        unsafe {
            control
                .as_mut_ptr()
                .cast::<libc::cmsghdr>()
                .write_unaligned(header);
            control
                .as_mut_ptr()
                .add(start)
                .cast::<libc::c_int>()
                .write_unaligned(value);
        }
        space
    }
}

/// The time to live is one of the socket, changed for the moment of sending.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod hops {
    use std::{
        io,
        net::SocketAddr,
        num::NonZeroU8,
        sync::{Mutex, PoisonError},
    };

    use socket2::SockRef;

    /// One at a time: the second would take the first one's for the usual value.
    static CHANGING: Mutex<()> = Mutex::new(());

    pub(super) fn send_to(
        socket: &SockRef<'_>,
        datagram: &[u8],
        wire: SocketAddr,
        ipv4: bool,
        hops: NonZeroU8,
    ) -> io::Result<usize> {
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        let hops = u32::from(hops.get());
        // An IPv6 socket that refuses the option of IPv4 cannot send such datagrams there; the
        // caller is told.
        if ipv4 {
            let usual = socket.ttl_v4()?;
            socket.set_ttl_v4(hops)?;
            let sent = socket.send_to(datagram, &wire.into());
            socket.set_ttl_v4(usual)?;
            sent
        } else {
            let usual = socket.unicast_hops_v6()?;
            socket.set_unicast_hops_v6(hops)?;
            let sent = socket.send_to(datagram, &wire.into());
            socket.set_unicast_hops_v6(usual)?;
            sent
        }
    }
}
