//! What a tunnel has done, in numbers that only grow.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        /// The counters of a tunnel at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct TunnelCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> TunnelCounters {
                TunnelCounters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }

        impl TunnelCounters {
            /// Names and values, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Datagrams the carrier took.
    sent,
    /// Their UDP payload, in bytes.
    sent_bytes,
    /// Datagrams brought to the engine.
    received,
    /// Their UDP payload, in bytes.
    received_bytes,
    /// Outgoing datagrams the carrier refused because its queue was full.
    send_full,
    /// Outgoing datagrams the carrier dropped from its queue for newer ones.
    carrier_dropped,
    /// Outgoing datagrams larger than the carrier takes.
    send_too_large,
    /// Outgoing datagrams dropped while there was no carrier.
    send_outage,
    /// Outgoing datagrams for a remote that was forgotten, or of a family the relay does not serve.
    send_no_remote,
    /// Incoming datagrams of contexts whose registration had not arrived, kept for a moment.
    recv_early,
    /// Of those, the ones that were given up.
    recv_early_dropped,
    /// Incoming datagrams without a known context, or cut short.
    recv_unknown,
    /// Incoming datagrams of new sources, dropped because all remotes were in use.
    recv_no_room,
    /// Remotes forgotten to make room for others.
    remotes_evicted,
    /// Times a carrier was up.
    sessions,
}

impl Counters {
    pub(super) fn bump(counter: &AtomicU64) {
        Self::add(counter, 1);
    }

    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
