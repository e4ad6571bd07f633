//! Counters of what the socket dropped, refused or could not send.
//!
//! Lock-free: each is one relaxed atomic, written where the thing happens and read by
//! [`Counters::snapshot`]. Nothing here is on the path of a datagram that is simply delivered.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::junk::Junk;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Live counters of one [`NodeSocket`](crate::NodeSocket), shared by everything it does.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(pub(crate) $name: AtomicU64,)+
        }

        /// The values of [`Counters`] at one moment. Each only grows.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct CounterSnapshot {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Counters {
            /// The current values. They are read one after the other, not as one atomic whole.
            pub fn snapshot(&self) -> CounterSnapshot {
                CounterSnapshot { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl CounterSnapshot {
            /// Every counter with its name, in the order of declaration, for an exposition format.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Received without payload, dropped.
    junk_empty,
    /// Received shorter than any QUIC datagram, dropped.
    junk_runt,
    /// Received, looks like STUN, dropped.
    junk_stun,
    /// Received, looks like ZRTP, dropped.
    junk_zrtp,
    /// Received, looks like DTLS, dropped.
    junk_dtls,
    /// Received, not QUIC for another reason (no fixed bit: RTP, DNS, noise), dropped.
    junk_other,
    /// Received openers, authentic or not. They are none of the engine's business.
    recv_openers,
    /// Receive calls that failed, mostly ICMP errors some systems report there.
    recv_errors,
    /// Received from the network under a synthetic source address: a forgery, dropped.
    recv_synthetic_source,
    /// Received from a tunnel, dropped because the engine had not taken older ones in time, or
    /// because it fits no buffer.
    recv_tunnel_overflow,
    /// Received by an extra socket from somebody it does not expect, dropped.
    recv_extra_unexpected,
    /// Not sent: no route to the network or host, or the interface is down.
    send_unreachable,
    /// Not sent: the destination had refused an earlier datagram (ICMP port unreachable).
    send_refused,
    /// Not sent: larger than the path allows. MTU probing causes these by design.
    send_too_large,
    /// Not sent: the system had no buffer for it.
    send_no_buffers,
    /// Not sent: forbidden by a firewall or policy.
    send_not_permitted,
    /// Not sent: the destination's family cannot be addressed by this socket.
    send_wrong_family,
    /// Not sent: the source address is gone from this host, as after roaming. See
    /// [`MuxHandle::source_gone`](crate::MuxHandle::source_gone).
    send_source_gone,
    /// Not sent: a destination no QUIC peer can have (port 0, unspecified, multicast, broadcast).
    send_bad_destination,
    /// Not sent: a synthetic address whose tunnel, or whose remote in the tunnel, is gone.
    send_no_tunnel,
    /// Not sent: the tunnel's own queue is full.
    send_tunnel_full,
    /// Not sent: larger than the tunnel carries. MTU probing causes these by design.
    send_tunnel_too_large,
    /// Not sent: the address is on hold until something comes from there. See
    /// [`MuxHandle::hold`](crate::MuxHandle::hold).
    send_held,
    /// Not sent for any other reason.
    send_other,
    /// Times the offload state was rebuilt after the kernel had rejected a datagram's arguments.
    offload_renewed,
}

impl Counters {
    pub(crate) fn bump(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn junk(&self, kind: Junk) {
        Self::bump(match kind {
            Junk::Empty => &self.junk_empty,
            Junk::Runt => &self.junk_runt,
            Junk::Stun => &self.junk_stun,
            Junk::Zrtp => &self.junk_zrtp,
            Junk::Dtls => &self.junk_dtls,
            Junk::Other => &self.junk_other,
            Junk::Opener => &self.recv_openers,
        });
    }

    /// Counts a failed send under the reason the system gave. Returns nothing to act upon: an
    /// error of one datagram is never an error of the socket.
    pub(crate) fn send_error(&self, error: &io::Error) {
        use io::ErrorKind as Kind;
        Self::bump(match error.kind() {
            _ if noq_udp::is_msg_size_err(error) => &self.send_too_large,
            _ if is_no_buffers(error) => &self.send_no_buffers,
            _ if is_family_error(error) => &self.send_wrong_family,
            _ if is_host_down(error) => &self.send_unreachable,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
                &self.send_unreachable
            }
            Kind::ConnectionRefused | Kind::ConnectionReset => &self.send_refused,
            Kind::PermissionDenied => &self.send_not_permitted,
            Kind::AddrNotAvailable => &self.send_source_gone,
            Kind::OutOfMemory => &self.send_no_buffers,
            _ => &self.send_other,
        });
    }
}

#[cfg(unix)]
fn is_no_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

#[cfg(unix)]
pub(crate) fn is_family_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(unix)]
fn is_host_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EHOSTDOWN)
}

/// Numbers of the Windows Sockets errors that have no [`io::ErrorKind`].
#[cfg(windows)]
mod winsock {
    pub(super) const WSAEAFNOSUPPORT: i32 = 10047;
    pub(super) const WSAENOBUFS: i32 = 10055;
    pub(super) const WSAEHOSTDOWN: i32 = 10064;
}

#[cfg(windows)]
fn is_no_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(winsock::WSAENOBUFS)
}

#[cfg(windows)]
pub(crate) fn is_family_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(winsock::WSAEAFNOSUPPORT)
}

#[cfg(windows)]
fn is_host_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(winsock::WSAEHOSTDOWN)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn every_errno_of_one_datagram_has_its_counter() {
        let cases = [
            (libc::EHOSTUNREACH, "send_unreachable"),
            (libc::ENETUNREACH, "send_unreachable"),
            (libc::ENETDOWN, "send_unreachable"),
            (libc::EHOSTDOWN, "send_unreachable"),
            (libc::ECONNREFUSED, "send_refused"),
            (libc::ECONNRESET, "send_refused"),
            (libc::EMSGSIZE, "send_too_large"),
            (libc::ENOBUFS, "send_no_buffers"),
            (libc::ENOMEM, "send_no_buffers"),
            (libc::EPERM, "send_not_permitted"),
            (libc::EACCES, "send_not_permitted"),
            (libc::EAFNOSUPPORT, "send_wrong_family"),
            (libc::EADDRNOTAVAIL, "send_source_gone"),
            (libc::EIO, "send_other"),
        ];
        for (errno, name) in cases {
            let counters = Counters::default();
            counters.send_error(&io::Error::from_raw_os_error(errno));
            let moved: Vec<_> = counters
                .snapshot()
                .iter()
                .filter(|(_, value)| *value != 0)
                .collect();
            assert_eq!(moved, [(name, 1)], "errno {errno}");
        }
    }
}
