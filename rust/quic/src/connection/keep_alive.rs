//! Keep-alives of single paths, for NATs that forget mappings sooner than most. Which interval a
//! NAT takes is not decided here.

use std::time::Duration;

use noq::PathId;

use super::Connection;

impl Connection {
    /// Sends a keep-alive on every open path that is not relayed after so long a silence, besides
    /// what the endpoint was configured with; `None` stops that. Paths that come later have none.
    pub fn set_keep_alive(&self, interval: Option<Duration>) {
        for path in self.paths().iter().filter(|path| path.method != "relayed") {
            let Some(engine) = self.0.engine.path(PathId::from(path.id)) else {
                continue;
            };
            let before = engine.set_keep_alive_interval(interval);
            // The timer starts with the next packet, which may be long in coming.
            if interval.is_some() && before.is_ok_and(|before| before != interval) {
                // It may be gone by now.
                let _ = engine.ping();
            }
        }
    }
}
