//! The sockets behind a bound address or a tunnel: one for both families, or one for each where a
//! system does not let one socket have both.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyreach_net::{BindError, BindOptions, IpMode, UdpPort, bind};

/// Buffers of each socket, in bytes: 8 ms of 1 Gbit/s, within which the task that reads it gets its
/// turn. All reservations together then pin 128 MiB of the kernel's memory at worst.
const BUFFER_BYTES: usize = 1 << 20;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the socket cannot be used: {0}")]
    Use(#[from] io::Error),
}

/// One or two sockets; closed with the last reference.
#[derive(Debug)]
pub(crate) struct Sockets {
    ports: Vec<Arc<UdpPort>>,
}

impl Sockets {
    /// Binds on a free port, for every family this host has.
    pub(crate) async fn open() -> Result<Self, OpenError> {
        let dual = bind_free(IpMode::Dual, Ipv6Addr::UNSPECIFIED.into(), 0);
        let sockets = match dual {
            Ok(dual) => vec![dual],
            Err(error) => separate().map_err(|_| error)?,
        };
        let mut ports = Vec::with_capacity(sockets.len());
        for socket in sockets {
            ports.push(Arc::new(UdpPort::new(socket).await?));
        }
        Ok(Self { ports })
    }

    /// The socket that can send to this address.
    pub(crate) fn towards(&self, ip: IpAddr) -> Option<&Arc<UdpPort>> {
        self.ports.iter().find(|port| port.reaches(ip))
    }

    /// All of them.
    pub(crate) fn ports(&self) -> &[Arc<UdpPort>] {
        &self.ports
    }

    /// The addresses that these IP addresses make with the ports bound.
    pub(crate) fn reached_at(&self, ips: &[IpAddr]) -> Vec<SocketAddr> {
        ips.iter()
            .filter_map(|ip| Some((*ip, self.towards(*ip)?.local_addr().port()).into()))
            .collect()
    }
}

fn bind_free(
    ip_mode: IpMode,
    ip: IpAddr,
    port: u16,
) -> Result<anyreach_net::BoundSocket, BindError> {
    bind(&BindOptions {
        ip_mode,
        buffer_bytes: BUFFER_BYTES,
        ..BindOptions::new((ip, port).into())
    })
}

/// A socket per family, with the same port if that is free in both.
fn separate() -> Result<Vec<anyreach_net::BoundSocket>, BindError> {
    let v6 = bind_free(IpMode::V6, Ipv6Addr::UNSPECIFIED.into(), 0);
    let port = v6.as_ref().map_or(0, |socket| socket.local_addr().port());
    let any_v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let v4 = bind_free(IpMode::V4, any_v4, port).or_else(|_| bind_free(IpMode::V4, any_v4, 0));
    match (v6, v4) {
        (Err(_), Err(error)) => Err(error),
        (v6, v4) => Ok(v6.into_iter().chain(v4).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_families_on_one_port() {
        let sockets = Sockets::open().await.expect("a free port");
        let ips = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let reached = sockets.reached_at(&ips);
        assert_eq!(reached.len(), 2);
        assert_eq!(reached[0].port(), reached[1].port());
        assert_ne!(reached[0].port(), 0);
        assert_eq!(sockets.ports().len(), 1);
    }

    #[tokio::test]
    async fn one_for_each_reaches_both_as_well() {
        let mut ports = Vec::new();
        for socket in separate().expect("free ports") {
            ports.push(Arc::new(UdpPort::new(socket).await.expect("usable")));
        }
        let sockets = Sockets { ports };
        let v4 = sockets.towards(Ipv4Addr::LOCALHOST.into()).expect("bound");
        let v6 = sockets.towards(Ipv6Addr::LOCALHOST.into()).expect("bound");
        assert!(!Arc::ptr_eq(v4, v6));
    }
}
