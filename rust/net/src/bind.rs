//! Creating the node's socket: which family, which fallback, which buffers.
//!
//! The decision (`plan`) is a pure function; what the system then says about IPv6 and IPv4 is
//! found out by trying, never assumed. The address is never shared: no `SO_REUSEADDR`, no
//! `SO_REUSEPORT`, so a second node on the same port gets an error instead of half the datagrams.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    str::FromStr,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    addr::{SocketFamily, canonical},
    counters::is_family_error,
    interfaces::interface_addresses,
};

/// Default of [`BindOptions::buffer_bytes`].
///
/// With the kernel's default of 208 KiB, three of eighteen bulk runs of the engine died with "too
/// many gaps in stream buffer": one burst overflowed the socket while the reader was not scheduled.
/// 8 MiB hold about 65 ms of 1 Gbit/s. Rivals ask for 7 MiB (quic-go, Tailscale's magicsock).
pub const DEFAULT_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// IP families of a node: what was asked for, or what can really be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IpMode {
    /// IPv6 and IPv4 on one socket.
    #[default]
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl IpMode {
    /// `dual`, `v4` or `v6`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dual => "dual",
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// Whether IPv4 peers can be talked to.
    pub const fn has_v4(self) -> bool {
        matches!(self, Self::Dual | Self::V4)
    }

    /// Whether IPv6 peers can be talked to.
    pub const fn has_v6(self) -> bool {
        matches!(self, Self::Dual | Self::V6)
    }
}

impl fmt::Display for IpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is none of `dual`, `v4`, `v6`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown IP mode {0:?}: use dual, v4 or v6")]
pub struct ParseIpModeError(String);

impl FromStr for IpMode {
    type Err = ParseIpModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "dual" => Ok(Self::Dual),
            "v4" => Ok(Self::V4),
            "v6" => Ok(Self::V6),
            _ => Err(ParseIpModeError(text.to_owned())),
        }
    }
}

/// What to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindOptions {
    /// Local address; `[::]:port` means "all I have", port 0 a free one. A specific address or
    /// `0.0.0.0` selects its own family.
    pub addr: SocketAddr,
    /// Families to use. [`IpMode::Dual`] takes what there is.
    pub ip_mode: IpMode,
    /// Whether an IPv6 socket may carry IPv4 as mapped addresses. Without it `[::]` is IPv6 only.
    pub allow_ipv4_mapped: bool,
    /// Receive and send buffer to ask the system for, in bytes. Fewer may be granted; see
    /// [`BoundSocket::buffers`].
    pub buffer_bytes: usize,
}

impl BindOptions {
    /// Dual-stack on `addr` with the default buffers.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            ip_mode: IpMode::Dual,
            allow_ipv4_mapped: true,
            buffer_bytes: DEFAULT_BUFFER_BYTES,
        }
    }
}

/// Why the node has no socket, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has the port. Choose another port, port 0, or stop the other program.
    #[error(
        "UDP port {} is already in use ({addr}): stop the program that has it, or bind another \
         port (port 0 picks a free one)",
        addr.port()
    )]
    PortInUse {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The system forbids it, mostly a port below 1024 without privilege.
    #[error(
        "not permitted to bind {addr}: use a port from 1024 up, or grant CAP_NET_BIND_SERVICE \
         (or the local equivalent)"
    )]
    PermissionDenied {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// No interface of this host has the address.
    #[error(
        "{addr} is not an address of this host: bind one an interface has, or [::] for all of them"
    )]
    AddressNotAvailable {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// IPv6 was required, by mode or address, and this host has none.
    #[error(
        "IPv6 is not available on this host, so {addr} cannot be bound: enable it, use IP mode \
         dual (which falls back to IPv4), or bind 0.0.0.0"
    )]
    Ipv6Unavailable {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The address belongs to a family the mode excludes.
    #[error("IP mode {ip_mode} contradicts the bind address {addr}: {remedy}")]
    Contradiction {
        /// The mode asked for.
        ip_mode: IpMode,
        /// The address asked for.
        addr: SocketAddr,
        /// What to change.
        remedy: &'static str,
    },
    /// Anything else the system reported.
    #[error("cannot bind a UDP socket to {addr}: {source}")]
    Io {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system reported.
        source: io::Error,
    },
}

/// What the system granted of [`BindOptions::buffer_bytes`], as it reports it.
///
/// Linux reports twice the payload budget: its own bookkeeping is charged to the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufferSizes {
    /// `SO_RCVBUF` in bytes.
    pub receive: usize,
    /// `SO_SNDBUF` in bytes.
    pub send: usize,
}

/// A bound UDP socket and what is known about it; [`NodeSocket::new`](crate::NodeSocket::new)
/// takes it.
#[derive(Debug)]
pub struct BoundSocket {
    pub(crate) socket: UdpSocket,
    pub(crate) family: SocketFamily,
    local_addr: SocketAddr,
    mode: IpMode,
    buffers: BufferSizes,
}

impl BoundSocket {
    /// The address the socket really has, canonical, with the port the system chose if 0 was
    /// asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The families that can really be used: what was asked for, minus what this host lacks.
    pub fn mode(&self) -> IpMode {
        self.mode
    }

    /// The buffer sizes in effect.
    pub fn buffers(&self) -> BufferSizes {
        self.buffers
    }
}

/// Binds the node's UDP socket.
///
/// `[::]` in [`IpMode::Dual`] degrades to `0.0.0.0` where IPv6 does not exist or is switched off;
/// every other combination binds exactly what it says or fails.
///
/// # Errors
///
/// [`BindError`]; its text says what to do.
pub fn bind(options: &BindOptions) -> Result<BoundSocket, BindError> {
    bind_on(&System, options)
}

/// The system calls of binding, so that tests can stand in for hosts without IPv6.
trait Host {
    /// Creates a socket of `family` bound to `addr`.
    fn open(&self, family: SocketFamily, addr: SocketAddr) -> io::Result<Socket>;
    /// Whether any interface that is up has an (IPv4, IPv6) address; `None` if that is unknown.
    fn families(&self) -> Option<(bool, bool)>;
}

struct System;

impl Host for System {
    fn open(&self, family: SocketFamily, addr: SocketAddr) -> io::Result<Socket> {
        let domain = match family {
            SocketFamily::V4 => Domain::IPV4,
            SocketFamily::V6Only | SocketFamily::Dual => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if domain == Domain::IPV6 {
            // Never left to the default, which is the administrator's (net.ipv6.bindv6only) on
            // Linux and "only" on Windows.
            socket.set_only_v6(family == SocketFamily::V6Only)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    }

    fn families(&self) -> Option<(bool, bool)> {
        let all = interface_addresses().ok()?;
        let v4 = all.iter().any(|entry| entry.addr.is_ipv4());
        let v6 = all.iter().any(|entry| entry.addr.is_ipv6());
        // Neither: interfaces are not up yet. That says nothing about what will be.
        (v4 || v6).then_some((v4, v6))
    }
}

/// What to try for a set of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    family: SocketFamily,
    addr: SocketAddr,
    /// Whether `0.0.0.0` may stand in for `[::]`.
    may_degrade: bool,
}

/// Decides socket family and address; pure.
fn plan(options: &BindOptions) -> Result<Plan, BindError> {
    let addr = canonical(options.addr);
    let contradiction = |remedy| BindError::Contradiction {
        ip_mode: options.ip_mode,
        addr: options.addr,
        remedy,
    };
    let exactly = |family| Plan {
        family,
        addr,
        may_degrade: false,
    };
    match (options.ip_mode, addr.ip()) {
        (IpMode::Dual | IpMode::V4, IpAddr::V4(_)) => Ok(exactly(SocketFamily::V4)),
        (IpMode::V6, IpAddr::V4(_)) => Err(contradiction(
            "bind [::] or another IPv6 address, or use IP mode v4 or dual",
        )),
        (IpMode::Dual, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) if options.allow_ipv4_mapped => {
            Ok(Plan {
                may_degrade: true,
                ..exactly(SocketFamily::Dual)
            })
        }
        (IpMode::Dual | IpMode::V6, IpAddr::V6(_)) => Ok(exactly(SocketFamily::V6Only)),
        (IpMode::V4, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Ok(Plan {
            addr: any_v4(addr.port()),
            ..exactly(SocketFamily::V4)
        }),
        (IpMode::V4, IpAddr::V6(_)) => Err(contradiction(
            "bind 0.0.0.0 or another IPv4 address, or use IP mode v6 or dual",
        )),
    }
}

fn any_v4(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

fn bind_on(host: &impl Host, options: &BindOptions) -> Result<BoundSocket, BindError> {
    let plan = plan(options)?;
    let families = host.families();
    // IPv6 that is switched off by sysctl still lets `[::]` be bound, and then serves IPv4 alone
    // under an address that says otherwise. Every host with IPv6 has at least ::1.
    let ipv6_off = matches!(families, Some((_, false)));
    if ipv6_off && plan.family == SocketFamily::V6Only {
        return Err(BindError::Ipv6Unavailable { addr: options.addr });
    }
    let plan_b = any_v4(plan.addr.port());
    let (family, opened) = if plan.may_degrade && ipv6_off {
        (SocketFamily::V4, host.open(SocketFamily::V4, plan_b))
    } else {
        match host.open(plan.family, plan.addr) {
            Err(error) if plan.may_degrade && is_ipv6_missing(&error) => {
                tracing::info!(%error, "no IPv6 on this host, binding IPv4 only");
                (SocketFamily::V4, host.open(SocketFamily::V4, plan_b))
            }
            opened => (plan.family, opened),
        }
    };
    let socket = opened.map_err(|source| typed(options.addr, family, source))?;
    let buffers = raise_buffers(&socket, options.buffer_bytes);
    let socket = UdpSocket::from(socket);
    let local_addr = socket
        .local_addr()
        .map_err(|source| typed(options.addr, family, source))?;
    let mode = match (family, families) {
        (SocketFamily::V4, _) => IpMode::V4,
        (SocketFamily::V6Only, _) | (SocketFamily::Dual, Some((false, true))) => IpMode::V6,
        (SocketFamily::Dual, _) => IpMode::Dual,
    };
    Ok(BoundSocket {
        socket,
        family,
        local_addr: canonical(local_addr),
        mode,
        buffers,
    })
}

/// Whether opening an IPv6 socket failed because this host has no IPv6.
fn is_ipv6_missing(error: &io::Error) -> bool {
    is_family_error(error)
        || matches!(
            error.kind(),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
        )
}

fn typed(addr: SocketAddr, family: SocketFamily, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::PortInUse { addr },
        io::ErrorKind::PermissionDenied => BindError::PermissionDenied { addr },
        _ if family != SocketFamily::V4 && is_family_error(&source) => {
            BindError::Ipv6Unavailable { addr }
        }
        io::ErrorKind::AddrNotAvailable => BindError::AddressNotAvailable { addr },
        _ => BindError::Io { addr, source },
    }
}

/// Asks for both buffers and reports what is in effect. A refusal is not an error: the node works
/// with small buffers, only worse, and the sizes are there to be shown.
pub(crate) fn raise_buffers(socket: &Socket, bytes: usize) -> BufferSizes {
    if let Err(error) = socket.set_recv_buffer_size(bytes) {
        tracing::debug!(%error, bytes, "SO_RCVBUF not raised");
    }
    if let Err(error) = socket.set_send_buffer_size(bytes) {
        tracing::debug!(%error, bytes, "SO_SNDBUF not raised");
    }
    force_buffers(socket, bytes);
    BufferSizes {
        receive: socket.recv_buffer_size().unwrap_or_default(),
        send: socket.send_buffer_size().unwrap_or_default(),
    }
}

/// Goes past `net.core.rmem_max` and `wmem_max`, which needs `CAP_NET_ADMIN`; without it the
/// capped sizes just set stay.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn force_buffers(socket: &Socket, bytes: usize) {
    use std::os::fd::AsRawFd;

    // The kernel keeps the doubled value in a signed int.
    let bytes = libc::c_int::try_from(bytes)
        .unwrap_or(libc::c_int::MAX)
        .min(libc::c_int::MAX / 2);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the descriptor is open for the duration of the borrow, and the pointer and
        // length describe one live c_int, which is what both options take.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            tracing::trace!(option, "no privilege to exceed the system's buffer limit");
            return;
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn force_buffers(_socket: &Socket, _bytes: usize) {}

#[cfg(test)]
mod tests;
