//! Noticing that this host's network has changed: addresses come and go, the default route moves.
//!
//! On Linux the kernel says when to look (rtnetlink), elsewhere the watch looks now and then; what
//! it looks at is the same everywhere. It reports facts; what follows from them (telling the
//! engine, gathering candidates again) is for its user.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout};

use crate::interfaces::{InterfaceAddress, interface_addresses};

/// Time between two looks where the system gives no sign, and between two glances at the clock where
/// it does. Half of the two seconds within which a roaming node is to transfer again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time between two looks where the system does give a sign: a safety net.
const LOOK_ANYWAY_EVERY: Duration = Duration::from_secs(10);

/// Sleep shorter than this is not worth telling: no NAT forgets and no peer gives up so fast.
const SLEEP_GRAIN: Duration = Duration::from_secs(2);

/// Shortest time between two looks. Routers with a full table announce changes by the thousand.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(100);

/// Global addresses to ask the routing table about; nothing is ever sent there. The first root
/// name server's, because it is certain to be routed by default and not to be anybody's own.
const SOMEWHERE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)), 53);
const SOMEWHERE_V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)),
    53,
);

/// What the network of this host looks like at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// Addresses of the interfaces that are up, sorted.
    pub addresses: Vec<InterfaceAddress>,
    /// The address IPv4 datagrams to the internet leave from; `None` without a default route.
    pub source_v4: Option<Ipv4Addr>,
    /// The address IPv6 datagrams to the internet leave from; `None` without a default route.
    pub source_v6: Option<Ipv6Addr>,
    /// How long the host was suspended since it was started, as far as its watch has noticed: after a
    /// sleep the network is another one, even if it looks the same. Zero where the system does not
    /// tell.
    pub suspended: Duration,
}

impl NetworkState {
    /// Looks.
    ///
    /// # Errors
    ///
    /// What the system reports if it cannot list its interfaces.
    pub fn now() -> io::Result<Self> {
        let mut addresses = interface_addresses()?;
        addresses.sort_by(|a, b| (&a.name, a.addr).cmp(&(&b.name, b.addr)));
        let source_v4 = match source_towards(SOMEWHERE_V4) {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        };
        let source_v6 = match source_towards(SOMEWHERE_V6) {
            Some(IpAddr::V6(ip)) => Some(ip),
            _ => None,
        };
        Ok(Self {
            addresses,
            source_v4,
            source_v6,
            suspended: suspended(),
        })
    }

    /// Takes a change of the time asleep that is none for no change.
    fn forget_naps(&mut self, before: &Self) {
        if self.suspended.abs_diff(before.suspended) < SLEEP_GRAIN {
            self.suspended = before.suspended;
        }
    }
}

/// What the clock that counts sleep is ahead of the one that does not.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspended() -> Duration {
    let now = |clock| {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is to a live timespec; a clock that does not exist leaves it zero.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        Duration::new(
            time.tv_sec.try_into().unwrap_or_default(),
            time.tv_nsec.try_into().unwrap_or_default(),
        )
    };
    let awake = now(libc::CLOCK_MONOTONIC);
    now(libc::CLOCK_BOOTTIME).saturating_sub(awake)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn suspended() -> Duration {
    Duration::ZERO
}

/// The source address the routing table chooses; connecting a UDP socket sends nothing.
fn source_towards(destination: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(destination).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
}

/// Waits for the network of this host to change.
#[derive(Debug)]
pub struct NetworkWatch {
    state: NetworkState,
    looked: Instant,
    /// Whether there is reason to look; survives a cancelled wait, unlike the sign.
    due: bool,
    sign: sign::Sign,
}

impl NetworkWatch {
    /// Begins to watch. Must be called within a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    ///
    /// What the system reports if it cannot list its interfaces.
    pub fn new() -> io::Result<Self> {
        // The sign first: what changes after the look is then announced.
        let sign = sign::Sign::new();
        Ok(Self {
            state: NetworkState::now()?,
            looked: Instant::now(),
            due: false,
            sign,
        })
    }

    /// The state found last.
    pub fn state(&self) -> &NetworkState {
        &self.state
    }

    /// Whether to look without a sign.
    fn is_suspicious(&self) -> bool {
        !self.sign.is_given()
            || self.looked.elapsed() >= LOOK_ANYWAY_EVERY
            || suspended().abs_diff(self.state.suspended) >= SLEEP_GRAIN
    }

    /// Waits until the network differs from [`NetworkWatch::state`], and returns how it is now. A
    /// change that comes in steps (old address gone, new address, new route) is several changes.
    /// Cancelling loses nothing.
    pub async fn changed(&mut self) -> &NetworkState {
        loop {
            while !self.due {
                let sign = timeout(LOOK_EVERY, self.sign.wait()).await;
                self.due = sign.is_ok() || self.is_suspicious();
            }
            sleep_until(self.looked + LOOK_AT_MOST_EVERY).await;
            self.due = false;
            self.looked = Instant::now();
            match NetworkState::now() {
                Ok(mut state) => {
                    state.forget_naps(&self.state);
                    if state != self.state {
                        self.state = state;
                        return &self.state;
                    }
                }
                Err(error) => tracing::debug!(%error, "interfaces cannot be listed"),
            }
        }
    }
}

/// The kernel's announcements.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod sign {
    use std::{
        future::pending,
        io,
        os::fd::{AsRawFd, OwnedFd},
    };

    use socket2::{Domain, Socket, Type};
    use tokio::io::{Interest, unix::AsyncFd};

    use crate::inherit::NotInherited;

    /// A netlink socket subscribed to changes of addresses, links and routes. `None` where netlink
    /// is forbidden, as in some sandboxes; there it never gives a sign.
    #[derive(Debug)]
    pub(super) struct Sign(Option<(NotInherited, AsyncFd<OwnedFd>)>);

    impl Sign {
        pub(super) fn new() -> Self {
            match subscribe() {
                Ok(socket) => Self(Some((NotInherited::new(&socket), socket))),
                Err(error) => {
                    tracing::debug!(%error, "no announcements of network changes, polling");
                    Self(None)
                }
            }
        }

        /// Whether there are announcements at all.
        pub(super) fn is_given(&self) -> bool {
            self.0.is_some()
        }

        /// Waits for an announcement and forgets all that have piled up.
        pub(super) async fn wait(&self) {
            let Some((_, socket)) = &self.0 else {
                return pending().await;
            };
            let Ok(mut ready) = socket.readable().await else {
                // The runtime is shutting down.
                return pending().await;
            };
            // What the messages say does not matter; the state is looked up. One that is cut off
            // or lost (ENOBUFS) is as good as one that was read.
            let _ = ready.try_io(|socket| drain(socket.get_ref()));
        }
    }

    fn subscribe() -> io::Result<AsyncFd<OwnedFd>> {
        const GROUPS: libc::c_int = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        // socket2 sets close-on-exec.
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(libc::NETLINK_ROUTE.into()),
        )?;
        socket.set_nonblocking(true)?;
        let socket = OwnedFd::from(socket);
        // SAFETY: all-zero is a valid sockaddr_nl.
        let mut addr: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        addr.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        addr.nl_groups = GROUPS as u32;
        // SAFETY: the descriptor is open, and pointer and length describe the live `addr`.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const addr).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an `OwnedFd` is an open descriptor, always the same, and open until dropped.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        registered.map_err(io::Error::from)
    }

    /// Reads until nothing is left; always ends in an error, `WouldBlock` if all is well.
    fn drain(socket: &OwnedFd) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            // SAFETY: the descriptor is open, and pointer and length describe the live buffer.
            let count = unsafe {
                libc::recv(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            if count < 0 {
                let error = io::Error::last_os_error();
                // An overflow is reported once; the rest can still be read.
                let overflow = error.raw_os_error() == Some(libc::ENOBUFS);
                if !overflow && error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod sign {
    /// No announcements here: the watch polls.
    #[derive(Debug)]
    pub(super) struct Sign;

    impl Sign {
        pub(super) fn new() -> Self {
            Self
        }

        pub(super) fn is_given(&self) -> bool {
            false
        }

        pub(super) async fn wait(&self) {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_twice_at_the_same_network_sees_the_same() {
        let first = NetworkState::now().expect("listed");
        let mut second = NetworkState::now().expect("listed");
        second.forget_naps(&first);
        assert_eq!(first, second);
    }
}
