//! Congestion control that does not pace the first flights.
//!
//! The engine derives its pacing from the round-trip time, and before there is a measurement from
//! 333 ms (RFC 9002, section 6.2.2): one packet every 27 ms. Post-quantum handshakes have several
//! packets in each flight, two of them in the client's first, so on every line longer than a
//! loopback interface that costs two round trips. The initial window may be sent at once
//! (RFC 9002, section 7.7); it is what bounds a sender that knows nothing. The second flight of a
//! client, with its key and signature, is another such window.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use noq_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig},
};

/// Bytes per second until an initial window was acknowledged: no line is faster, so that the initial window
/// alone decides.
const UNPACED: u64 = 1 << 30;

/// CUBIC (RFC 9438) as the engine has it, that paces only once it has seen a window get through.
#[derive(Debug, Default)]
pub(crate) struct FirstFlight(Arc<CubicConfig>);

impl ControllerFactory for FirstFlight {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Opening {
            inner: self.0.clone().build(now, current_mtu),
            acknowledged: 0,
        })
    }
}

#[derive(Debug)]
struct Opening {
    inner: Box<dyn Controller>,
    /// Bytes that arrived.
    acknowledged: u64,
}

impl Controller for Opening {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.inner.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.inner.on_packet_sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.inner.on_cwnd_limited();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        pn: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acknowledged = self.acknowledged.saturating_add(bytes);
        self.inner.on_ack(now, sent, bytes, pn, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest_lost_pn: u64,
    ) {
        self.inner.on_congestion_event(
            now,
            sent,
            is_persistent_congestion,
            is_ecn,
            lost_bytes,
            largest_lost_pn,
        );
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        self.inner.on_packet_lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.inner.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(
        &mut self,
        ack_eliciting_threshold: u64,
        requested_max_ack_delay: Duration,
    ) {
        self.inner
            .on_ack_frequency_update(ack_eliciting_threshold, requested_max_ack_delay);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        if self.acknowledged < self.inner.initial_window() {
            metrics.pacing_rate = Some(UNPACED);
        }
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            acknowledged: self.acknowledged,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_window_is_sent_at_once() {
        let factory = Arc::new(FirstFlight::default());
        let controller = factory.build(Instant::now(), 1200);
        let metrics = controller.metrics();
        assert_eq!(metrics.congestion_window, controller.initial_window());
        assert_eq!(metrics.pacing_rate, Some(UNPACED));
        assert_eq!(controller.clone_box().metrics().pacing_rate, Some(UNPACED));
    }
}
