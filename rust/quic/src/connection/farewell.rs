//! A connection that this side closes: the peer is told until it has heard.

use std::{sync::Arc, time::Duration};

use anyreach_net::{Hops, MuxHandle, canonical};

use super::{Connection, path_number};
use crate::crypto::Route;

/// How often the packet that closes a connection is sent again while the peer does not answer. On a
/// line that loses one packet in ten a thousandth of the peers is left to its idle timeout.
const REPEATS: u32 = 2;

/// When: after one and a quarter round trips, and a little for the peer to answer. Both repeats, and
/// the answer to the last, then fit into what closing a node waits for.
const GRACE: Duration = Duration::from_millis(15);

/// The longest pause: nobody waits for this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Connection {
    /// Remembers where the paths lead: the engine is about to forget.
    pub(crate) fn closing(&self) {
        let route = |id| {
            let path = self.0.engine.path(id)?;
            Some(Route {
                path: path_number(id),
                remote: canonical(path.remote_address().ok()?),
                rtt: path.stats().rtt,
            })
        };
        let routes = || self.path_ids().into_iter().filter_map(route).collect();
        self.0.activity.last_words.expect(routes);
    }

    /// Sends the packet that closed the connection again, if it was this side that did and as long
    /// as the peer does not answer.
    pub(crate) fn repeat_farewell(&self, socket: &MuxHandle) {
        let activity = Arc::clone(&self.0.activity);
        let Some(rtt) = activity.last_words.rtt() else {
            return;
        };
        let socket = socket.clone();
        let pause = (rtt + rtt / 4 + GRACE).min(PAUSE_MAX);
        tokio::spawn(async move {
            for _ in 0..REPEATS {
                tokio::time::sleep(pause).await;
                let Some((packet, route)) = activity.last_words.unanswered() else {
                    return;
                };
                // Of one datagram, which may get lost like any.
                let _ = socket.send_raw(&packet, route.remote, Hops::None);
            }
        });
    }
}
