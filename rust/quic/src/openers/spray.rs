//! A spray: openers to random ports of a host, until one gets through.
//!
//! Half of a birthday attempt. The other end has a pool of sockets behind a NAT that gives each a
//! random port; with 256 of them 1,400 random ports hit one with a probability of 99.6 %.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyreach_net::{Hops, canonical_ip};
use aws_lc_rs::rand;
use tokio::time::Instant;

use super::{
    line::{Line, Sending},
    ports::Ports,
};

/// Ports one spray tries at most: with a pool of 256 sockets, 2,048 hit one with 99.97 %, and a
/// second spray achieves more than a longer one.
pub const MAX_SPRAY: usize = 2048;

/// Openers a second, at most. Cheap routers hold a few thousand mappings and forward some ten
/// thousand packets a second; 24 bytes each, it is 50 KB/s.
const MAX_RATE: u32 = 1000;

/// Between two looks at the clock: what is due by then is sent in one go.
const TICK: Duration = Duration::from_millis(5);

/// How long a spray waits for answers to its last openers: a long round trip.
const LINGER: Duration = Duration::from_millis(600);

/// What a spray has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sprayed {
    /// Openers sent.
    pub sent: usize,
    /// Whether a way to the host has opened meanwhile.
    pub hit: bool,
}

/// Openers to random ports of one host.
pub struct Spray {
    line: Arc<Line>,
    host: IpAddr,
    count: usize,
    time: Duration,
    /// How many ways were open before.
    before: u64,
}

impl Spray {
    /// `count` openers, evenly over `time`; fewer and slower ones if that is too much.
    pub(crate) fn new(line: Arc<Line>, host: IpAddr, count: usize, time: Duration) -> Self {
        let count = count.min(MAX_SPRAY);
        // Below 2,048.
        let least = Duration::from_secs(1) * count as u32 / MAX_RATE;
        Self {
            host: canonical_ip(host),
            count,
            time: time.max(least),
            before: line.ways(),
            line,
        }
    }

    /// Sends them, until a way to the host opens; what the peer has not paid for in that time is left
    /// out. Dropping it ends it.
    pub async fn run(self) -> Sprayed {
        let (begin, mut tried, mut sent) = (Instant::now(), 0, 0);
        let mut ports = Ports::default();
        let mut tick = tokio::time::interval(TICK);
        // One that is late sends what is due by then, and no more.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        'spray: while tried < self.count {
            if self.is_hit() {
                return Sprayed { sent, hit: true };
            }
            let elapsed = begin.elapsed();
            while tried < self.due(elapsed) {
                let Some(port) = ports.next(random) else {
                    break 'spray;
                };
                let to = SocketAddr::new(self.host, port);
                let socket = self.line.socket();
                let sending = self
                    .line
                    .send(to, |datagram| socket.send_raw(datagram, to, Hops::None));
                match sending {
                    Sending::Sent => sent += 1,
                    Sending::Failed => {}
                    // This port is left out; the next ones are tried with the next tick.
                    Sending::Full => break,
                    // The peer may send more, until it is too late.
                    Sending::Unpaid if elapsed < self.time => break,
                    Sending::Unpaid | Sending::Refused => break 'spray,
                }
                tried += 1;
            }
            tick.tick().await;
        }
        let linger = async {
            loop {
                // From here on no way is missed, although it is awaited only below.
                let opened = self.line.opened();
                let mut opened = std::pin::pin!(opened);
                if self.is_hit() {
                    return;
                }
                // Looks again now and then all the same: what opens before the first poll is not
                // told to this one.
                let _ = tokio::time::timeout(TICK, &mut opened).await;
            }
        };
        let hit = sent > 0 && tokio::time::timeout(LINGER, linger).await.is_ok();
        Sprayed { sent, hit }
    }

    fn is_hit(&self) -> bool {
        self.line.opened_since(self.before, self.host)
    }

    /// How many are to have been sent by then.
    fn due(&self, elapsed: Duration) -> usize {
        if elapsed >= self.time {
            return self.count;
        }
        // Within 2,048 times a few minutes of nanoseconds.
        let due = self.count as u128 * elapsed.as_nanos() / self.time.as_nanos().max(1);
        // The first one at once.
        (due as usize + 1).min(self.count)
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // A system without randomness has no connections: the handshakes failed.
    let _ = rand::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
