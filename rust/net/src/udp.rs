//! A UDP socket of its own, beside the node's: what a relay binds for its clients.
//!
//! The same dual-stack binding, offloads and recovery as [`NodeSocket`](crate::NodeSocket), without
//! the engine on top: every datagram is passed on as it is, every error is the caller's to count.
//! All addresses are canonical, in both directions.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use noq_udp::{RecvMeta, Transmit};

use crate::{
    addr::{canonical, canonical_ip},
    bind::{BoundSocket, IpMode},
    port::{Port, SendFailure},
    routes::Slot,
};

/// A bound UDP socket. All methods take `&self` and may be called from any thread.
#[derive(Debug)]
pub struct UdpPort {
    /// The offload state of sending changes, that of receiving does not.
    receiving: Arc<Port>,
    sending: Slot<Port>,
    local_addr: SocketAddr,
    mode: IpMode,
}

impl UdpPort {
    /// Takes over a bound socket, and waits until the runtime knows it as writable: before that
    /// every send would seem to block. Must be called within a tokio runtime with I/O enabled.
    ///
    /// # Errors
    ///
    /// What the system reports if the socket refuses the options it needs, or if it cannot be
    /// registered with the runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn new(bound: BoundSocket) -> io::Result<Self> {
        let (local_addr, mode) = (bound.local_addr(), bound.mode());
        let port = Arc::new(Port::new(bound.socket, bound.family)?);
        port.io.writable().await?;
        Ok(Self {
            sending: Slot::new(port.clone()),
            receiving: port,
            local_addr,
            mode,
        })
    }

    /// The address it is bound to, canonical; mostly an unspecified one with a port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The families it can be used for.
    pub fn mode(&self) -> IpMode {
        self.mode
    }

    /// Whether datagrams can be sent to an address of this family.
    pub fn reaches(&self, ip: IpAddr) -> bool {
        match canonical_ip(ip) {
            IpAddr::V4(_) => self.mode.has_v4(),
            IpAddr::V6(_) => self.mode.has_v6(),
        }
    }

    /// Waits until there may be something to receive.
    ///
    /// # Errors
    ///
    /// Only when the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        self.receiving.io.readable().await
    }

    /// Receives a batch without waiting, up to [`noq_udp::BATCH_SIZE`] buffers. A buffer may hold
    /// several datagrams of the same source ([`RecvMeta::stride`]), so each should take 64 KiB.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing is there. Any other error concerns one
    /// datagram sent earlier, such as one answered by ICMP.
    pub fn try_recv(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let count = self.receiving.try_recv(bufs, meta)?;
        for entry in &mut meta[..count] {
            entry.addr = canonical(entry.addr);
            entry.dst_ip = entry.dst_ip.map(canonical_ip);
        }
        Ok(count)
    }

    /// The number of datagrams of one size that one transmit may hold now.
    pub fn max_segments(&self) -> usize {
        self.sending
            .get()
            .map_or(1, |port| port.max_transmit_segments().get())
    }

    /// Sends a transmit, without waiting. A source address of another family than the destination
    /// is left to the system to choose.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if the socket's buffer is full,
    /// [`Unsupported`](io::ErrorKind::Unsupported) if it cannot address the destination's family.
    /// No error says anything about the next transmit.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let port = self.sending.get().ok_or_else(unsupported)?;
        let destination = canonical(transmit.destination);
        let source = transmit
            .src_ip
            .map(canonical_ip)
            .filter(|ip| ip.is_ipv4() == destination.is_ipv4());
        let wire = Transmit {
            destination: port
                .family
                .destination(destination)
                .ok_or_else(unsupported)?,
            src_ip: source.map(|ip| port.family.source(ip)),
            ..transmit.clone()
        };
        match port.try_send(&wire) {
            Ok(()) => Ok(()),
            Err(SendFailure::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(SendFailure::Datagram(error)) => Err(error),
            Err(SendFailure::Renewed(error, renewed)) => {
                if let Some(renewed) = renewed {
                    // Somebody who was faster has renewed it as well.
                    let _ = self.sending.replace(&port, Arc::from(renewed));
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::{BindOptions, bind};

    async fn port() -> UdpPort {
        let bound = bind(&BindOptions::new("[::]:0".parse().expect("literal"))).expect("free port");
        UdpPort::new(bound).await.expect("within a runtime")
    }

    async fn receive(port: &UdpPort) -> (SocketAddr, Vec<Vec<u8>>) {
        let mut storage = vec![0; 1 << 16];
        let mut meta = [RecvMeta::default()];
        loop {
            port.readable().await.expect("runtime is up");
            let mut bufs = [IoSliceMut::new(&mut storage)];
            match port.try_recv(&mut bufs, &mut meta) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        let datagrams = storage[..meta[0].len].chunks(meta[0].stride.max(1));
        (meta[0].addr, datagrams.map(<[u8]>::to_vec).collect())
    }

    #[tokio::test]
    async fn addresses_are_canonical_both_ways() {
        let (one, two) = (port().await, port().await);
        let to = SocketAddr::from(([127, 0, 0, 1], two.local_addr().port()));
        one.try_send(&Transmit {
            destination: to,
            ecn: None,
            contents: b"hello",
            segment_size: None,
            src_ip: Some(to.ip()),
        })
        .expect("loopback");
        let (from, datagrams) = receive(&two).await;
        assert_eq!(
            from,
            SocketAddr::from(([127, 0, 0, 1], one.local_addr().port()))
        );
        assert_eq!(datagrams, [b"hello".to_vec()]);
    }

    #[tokio::test]
    async fn a_failure_concerns_its_transmit_alone() {
        let (one, two) = (port().await, port().await);
        let port = two.local_addr().port();
        let transmit = |ip: [u8; 4], src_ip: Option<[u8; 4]>| Transmit {
            destination: SocketAddr::from((ip, port)),
            ecn: None,
            contents: b"0123456789",
            segment_size: Some(4),
            src_ip: src_ip.map(IpAddr::from),
        };
        // A source this host does not have: EINVAL, which looks like missing offloads.
        assert!(
            one.try_send(&transmit([127, 0, 0, 1], Some([192, 0, 2, 7])))
                .is_err()
        );
        let segments = one.max_segments();
        one.try_send(&transmit([127, 0, 0, 1], None))
            .expect("loopback");
        let mut seen = Vec::new();
        while seen.len() < 3 {
            seen.extend(receive(&two).await.1);
        }
        assert_eq!(seen, [b"0123".to_vec(), b"4567".to_vec(), b"89".to_vec()]);
        assert_eq!(one.max_segments(), segments, "offloads stay on");
    }
}
