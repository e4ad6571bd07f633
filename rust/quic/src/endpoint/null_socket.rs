//! A socket that leads nowhere: what a closed endpoint keeps instead of its own, so that the port
//! is free although connections still wait out their draining period (RFC 9000, section 10.2.2).

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use noq::{
    AsyncUdpSocket, UdpSender,
    udp::{RecvMeta, Transmit},
};

#[derive(Debug, Clone, Copy)]
pub(super) struct NullSocket {
    /// Told as our own address, since the engine asks.
    pub(super) local_addr: SocketAddr,
}

impl AsyncUdpSocket for NullSocket {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(*self)
    }

    fn poll_recv(
        &mut self,
        _cx: &mut Context<'_>,
        _bufs: &mut [IoSliceMut<'_>],
        _meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}

impl UdpSender for NullSocket {
    fn poll_send(
        self: Pin<&mut Self>,
        _transmit: &Transmit<'_>,
        _cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
