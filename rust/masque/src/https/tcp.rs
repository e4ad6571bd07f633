//! TCP sockets as a tunnel needs them: nothing held back, nothing piled up in the kernel, dead
//! peers noticed. Not here: TLS, HTTP, and which address to try.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::carrier::CarrierError;

/// Most unsent bytes in the kernel. Beyond, datagrams wait in our queue, where old ones can be
/// dropped; below, the line does not run dry between two wake-ups of a busy process (at 1 Gbit/s
/// this is a quarter of a millisecond; more was not measurably faster on loopback). What is sent and
/// not acknowledged comes on top, as it must.
const UNSENT_BYTES: u32 = 32 << 10;

/// Largest TCP segment, each way: what fits every IPv6 line (1,280 bytes, RFC 8200 section 5).
/// Networks that drop larger packets without a word are common where UDP is blocked as well, the
/// kernel does not look for such black holes unless told to by its administrator, and segmentation
/// offload makes the difference in cost small.
const MAX_SEGMENT: u32 = 1_280 - 40 - 20;

/// Silence before the first keep-alive probe. HTTP/2 PINGs notice a dead peer earlier; this is for
/// connections on which there is no HTTP yet, and keeps middleboxes' entries alive (RFC 5382, REQ-5
/// has them wait two hours, common ones wait five minutes).
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(45);

/// Between probes that are not answered.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long data may stay unacknowledged before the connection is given up (RFC 5482), instead of
/// the quarter of an hour that is the system's default.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections the kernel completes before we accept them: a burst of clients after a restart.
const BACKLOG: i32 = 1024;

/// Sets the options of a connected or accepted socket. A system that lacks one goes without.
pub fn configure(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_IDLE)
        .with_interval(KEEP_ALIVE_INTERVAL);
    for (option, result) in [
        ("TCP_NODELAY", stream.set_nodelay(true)),
        ("SO_KEEPALIVE", socket.set_tcp_keepalive(&keep_alive)),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        (
            "TCP_NOTSENT_LOWAT",
            socket.set_tcp_notsent_lowat(UNSENT_BYTES),
        ),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        (
            "TCP_USER_TIMEOUT",
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT)),
        ),
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        (
            "SO_SNDBUF",
            // The nearest thing: it bounds what is not acknowledged as well, so it is larger.
            socket.set_send_buffer_size(16 * UNSENT_BYTES as usize),
        ),
    ] {
        if let Err(error) = result {
            tracing::debug!(option, %error, "socket option not set");
        }
    }
}

/// Bounds the segments of a socket, before it is connected or listens. A system that does not allow
/// it goes without.
fn bound_segments(socket: &SockRef<'_>) {
    #[cfg(unix)]
    if let Err(error) = socket.set_tcp_mss(MAX_SEGMENT) {
        tracing::debug!(%error, "TCP_MAXSEG not set");
    }
    #[cfg(not(unix))]
    let _ = socket;
}

/// Listens on `addr`. With `dual` an IPv6 address takes IPv4 as well: pass what the node's UDP
/// socket on the same port does. Must be called within a tokio runtime with I/O enabled.
///
/// # Errors
/// What the system reports; the port may be in use by another program.
pub fn listen(addr: SocketAddr, dual: bool) -> io::Result<TcpListener> {
    let domain = Domain::for_address(addr);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(!dual)?;
    }
    // A restarted node must not wait for its former connections to leave TIME_WAIT. On Windows the
    // same option lets others take the port, and there is nothing to wait for.
    if cfg!(unix) {
        socket.set_reuse_address(true)?;
    }
    bound_segments(&SockRef::from(&socket));
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(StdListener::from(socket))
}

/// Connects to one address. How long to wait is the caller's.
///
/// # Errors
/// `refused`, `unreachable` or `handshake-timeout`.
pub async fn connect(addr: SocketAddr) -> Result<TcpStream, CarrierError> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(|error| connect_error(addr, &error))?;
    bound_segments(&SockRef::from(&socket));
    let stream = socket
        .connect(addr)
        .await
        .map_err(|error| connect_error(addr, &error))?;
    configure(&stream);
    Ok(stream)
}

fn connect_error(addr: SocketAddr, error: &io::Error) -> CarrierError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => CarrierError::new(
            "refused",
            format!("{addr} refuses TCP connections: nothing listens there, or a firewall rejects"),
        ),
        io::ErrorKind::TimedOut => {
            CarrierError::new("handshake-timeout", format!("{addr} does not answer TCP"))
        }
        _ => CarrierError::new("unreachable", format!("{addr} cannot be reached: {error}")),
    }
}
