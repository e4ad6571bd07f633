//! What the tunnels of one HTTP/2 connection know about it: whether it is alive, how far away the
//! peer is, and why it ended.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// State of a connection shared by its tasks.
#[derive(Debug)]
pub(super) struct Link {
    epoch: Instant,
    /// When bytes were last received, in milliseconds after the epoch.
    received: AtomicU64,
    /// Smoothed round-trip time in microseconds; 0 is unknown.
    rtt: AtomicU64,
    /// Somebody wants to know whether the peer still answers.
    probe: Notify,
    reason: OnceLock<String>,
}

impl Link {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            received: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            probe: Notify::new(),
            reason: OnceLock::new(),
        })
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        match self.rtt.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Adds a sample, smoothed as TCP does (RFC 6298).
    pub(super) fn sample_rtt(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX);
        let smoothed = match self.rtt.load(Ordering::Relaxed) {
            0 => sample,
            before => before - before / 8 + sample / 8,
        };
        self.rtt.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// When the last bytes came.
    pub(super) fn last_received(&self) -> Instant {
        self.epoch + Duration::from_millis(self.received.load(Ordering::Relaxed))
    }

    fn mark_received(&self) {
        let now = self.epoch.elapsed().as_millis();
        self.received
            .store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Asks the health check to look at once.
    pub(super) fn request_probe(&self) {
        self.probe.notify_one();
    }

    pub(super) async fn probe_requested(&self) {
        self.probe.notified().await;
    }

    /// Says why the connection ends. The first reason counts.
    pub(super) fn ended(&self, reason: String) {
        let _ = self.reason.set(reason);
    }

    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}

/// A stream that notes when bytes come in.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    link: Arc<Link>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, link: Arc<Link>) -> Self {
        Self { stream, link }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.link.mark_received();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
