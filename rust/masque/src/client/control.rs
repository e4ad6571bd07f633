//! What the handles of a tunnel tell its supervisor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::{
    state::State,
    target::{Attempt, Plan, RelayTarget},
};
use crate::carrier::ClientCarrier;

/// What the tunnel's handles share with its supervisor.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) states: watch::Sender<State>,
    closing: watch::Sender<bool>,
    hurry: Notify,
    /// What to try for a better carrier than the one there is.
    better: watch::Sender<Option<Plan>>,
    route: Mutex<Route>,
    carrier: Mutex<Option<Arc<dyn ClientCarrier>>>,
    /// What has failed in the search for a carrier that goes on.
    failing: Mutex<Vec<Attempt>>,
}

/// Where to, and how.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) target: RelayTarget,
    pub(super) plan: Plan,
}

impl Control {
    pub(super) fn new(route: Route) -> Self {
        Self {
            states: watch::Sender::new(State::Connecting),
            closing: watch::Sender::new(false),
            hurry: Notify::new(),
            better: watch::Sender::new(None),
            route: Mutex::new(route),
            carrier: Mutex::new(None),
            failing: Mutex::default(),
        }
    }

    /// What has failed in the search for a carrier that goes on, in that order.
    pub(super) fn failing(&self) -> MutexGuard<'_, Vec<Attempt>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the tunnel.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Looks at once whether the carrier is alive, or for a new one.
    pub(super) fn probe(&self) {
        match self.carrier() {
            Some(carrier) => carrier.probe(),
            None => self.hurry.notify_one(),
        }
    }

    /// Looks for a better carrier while there is one.
    pub(super) fn improve(&self, plan: Plan) {
        self.better.send_replace(Some(plan));
    }

    /// Waits until a better carrier is to be looked for, and says how.
    pub(super) async fn improving(&self) -> Plan {
        let mut better = self.better.subscribe();
        // The sender is in `self`, so the wait cannot fail.
        let _ = better.wait_for(Option::is_some).await;
        self.better.send_replace(None).unwrap_or_default()
    }

    /// Waits until a carrier is to be looked for at once, although there is none yet.
    pub(super) async fn hurried(&self) {
        self.hurry.notified().await;
    }

    pub(super) fn carrier(&self) -> Option<Arc<dyn ClientCarrier>> {
        self.carrier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_carrier(&self, carrier: Option<Arc<dyn ClientCarrier>>) {
        *self.carrier.lock().unwrap_or_else(PoisonError::into_inner) = carrier;
    }

    pub(super) fn route(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the tunnel is to end.
    pub(super) async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}
