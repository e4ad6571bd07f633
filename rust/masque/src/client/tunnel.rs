//! The handle of a tunnel, and all tunnels of an endpoint.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use anyreach_net::{MuxError, MuxHandle, SyntheticAddr};
use anyreach_quic::PeerId;
use tokio::sync::watch;

use super::{
    bridge::{Bridge, Entrance, RemoteError},
    control::{Control, Route},
    counters::TunnelCounters,
    directory::TunnelDirectory,
    request::{Lease, TunnelRequest},
    state::{State, Up},
    supervisor::Supervisor,
    target::{Attempt, CarrierDialer, Plan, RelayTarget},
};
use crate::carrier::CarrierKind;

/// What a tunnel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A bound address at the relay, for any number of remotes (connect-udp-bind).
    Bind,
    /// One target, by plain RFC 9298: what any CONNECT-UDP proxy does.
    Target(SocketAddr),
}

/// How to make a tunnel.
#[derive(Debug, Clone)]
pub struct TunnelOptions {
    /// Where the relay is.
    pub target: RelayTarget,
    /// By which carriers, with which head starts.
    pub plan: Plan,
    /// What for.
    pub purpose: Purpose,
    /// Go on trying if it does not come up at first.
    pub persist: bool,
}

/// All tunnels of an endpoint.
#[derive(Debug)]
pub struct Tunnels {
    socket: MuxHandle,
    directory: Arc<TunnelDirectory>,
    open: Mutex<HashMap<u32, Weak<Handle>>>,
}

impl Tunnels {
    /// No tunnels yet, on this socket.
    pub fn new(socket: MuxHandle) -> Self {
        Self {
            socket,
            directory: Arc::default(),
            open: Mutex::default(),
        }
    }

    /// What stands behind the synthetic addresses of these tunnels, for the engine.
    pub fn directory(&self) -> Arc<TunnelDirectory> {
        self.directory.clone()
    }

    /// Begins a tunnel, which ends when the last handle is dropped. Its addresses can be dialed at
    /// once, though what is sent before it is up is lost. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`MuxError`], of which only the number of tunnels is to be expected.
    pub fn open(
        &self,
        dialer: Arc<dyn CarrierDialer>,
        options: TunnelOptions,
    ) -> Result<Tunnel, MuxError> {
        let TunnelOptions {
            target,
            plan,
            purpose,
            persist,
        } = options;
        let bridge = Arc::new(Bridge::new(match purpose {
            Purpose::Bind => None,
            Purpose::Target(target) => Some(target),
        }));
        let port = self.socket.add_tunnel(Box::new(Entrance(bridge.clone())))?;
        bridge.set_injector(port.injector());
        self.directory.insert(port.number(), bridge.view.clone());
        let control = Arc::new(Control::new(Route { target, plan }));
        let handle = Arc::new(Handle {
            number: port.number(),
            bridge: bridge.clone(),
            control: control.clone(),
        });
        let supervisor = Supervisor {
            bridge,
            control,
            dialer,
            directory: self.directory.clone(),
            request: match purpose {
                Purpose::Bind => TunnelRequest::Bind(Lease::random()),
                Purpose::Target(target) => TunnelRequest::Target(target),
            },
            persist,
            port,
            socket: self.socket.clone(),
        };
        let mut open = self.table();
        open.retain(|_, handle| handle.strong_count() > 0);
        open.insert(handle.number, Arc::downgrade(&handle));
        drop(open);
        tokio::spawn(supervisor.run());
        Ok(Tunnel(handle))
    }

    /// The tunnel with this number, if anybody holds it.
    pub fn get(&self, number: u32) -> Option<Tunnel> {
        self.table().get(&number)?.upgrade().map(Tunnel)
    }

    /// All tunnels somebody holds, in no order.
    pub fn all(&self) -> Vec<Tunnel> {
        self.table()
            .values()
            .filter_map(Weak::upgrade)
            .map(Tunnel)
            .collect()
    }

    /// After a change of network: every tunnel looks at once whether its carrier is alive, and
    /// those without one try again.
    pub fn probe(&self) {
        self.all().iter().for_each(Tunnel::probe);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u32, Weak<Handle>>> {
        // A map is whole between any two operations.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tunnel through a relay. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    number: u32,
    bridge: Arc<Bridge>,
    control: Arc<Control>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.control.close();
    }
}

impl Tunnel {
    /// Its number, unique for the life of the socket; the one in its synthetic addresses.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// The address to dial `remote` through this tunnel, the same at every call while the remote
    /// is in use. The relay is told of the remote at once, so that the first packet already finds
    /// its short form.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn synthetic(&self, remote: SocketAddr) -> Result<SyntheticAddr, RemoteError> {
        let index = self.0.bridge.dial(remote)?;
        Ok(SyntheticAddr::new(self.0.number, index))
    }

    /// The remote behind a synthetic address of this tunnel.
    pub fn remote_of(&self, address: SyntheticAddr) -> Option<SocketAddr> {
        (address.tunnel() == self.0.number)
            .then(|| self.0.bridge.remote_of(address.index()))
            .flatten()
    }

    /// Remotes it remembers.
    pub fn remotes(&self) -> usize {
        self.0.bridge.remotes()
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.0.control.states.borrow().clone()
    }

    /// Its states from now on. A slow reader sees the last one only.
    pub fn states(&self) -> watch::Receiver<State> {
        self.0.control.states.subscribe()
    }

    /// What is known of it, if it is up.
    pub fn up(&self) -> Option<Arc<Up>> {
        match &*self.0.control.states.borrow() {
            State::Up(up) => Some(up.clone()),
            _ => None,
        }
    }

    /// Addresses bound for us at the relay, if it is up.
    pub fn public_addresses(&self) -> Vec<SocketAddr> {
        self.up().map(|up| up.public.clone()).unwrap_or_default()
    }

    /// Addresses of the relay's own node as the bound addresses reach them, if it is up.
    pub fn node_addresses(&self) -> Vec<SocketAddr> {
        self.up().map(|up| up.node.clone()).unwrap_or_default()
    }

    /// Who the relay proved to be, once it has.
    pub fn relay(&self) -> Option<PeerId> {
        self.0.bridge.view.relay()
    }

    /// What carries it, if it is up.
    pub fn carrier(&self) -> Option<CarrierKind> {
        Some(self.up()?.carrier)
    }

    /// Round-trip time to the relay, as far as it is known.
    pub fn rtt(&self) -> Option<Duration> {
        self.0.control.carrier()?.rtt()
    }

    /// What it has done so far.
    pub fn counters(&self) -> TunnelCounters {
        self.0.bridge.counters()
    }

    /// What has failed so far, while it looks for a carrier.
    pub fn failing(&self) -> Vec<Attempt> {
        self.0.control.failing().clone()
    }

    /// Looks at once whether the carrier is alive, or for another if there is none.
    pub fn probe(&self) {
        self.0.control.probe();
    }

    /// Looks for a carrier by this plan while the present one goes on, and moves over if one is
    /// found: how a tunnel gets from TCP back to UDP. Nothing is lost but what is under way on the
    /// former carrier. A later call replaces one that has not begun.
    pub fn improve(&self, plan: Plan) {
        self.0.control.improve(plan);
    }

    /// From the next carrier on: where the relay is now, and what to try. Who it is stays as it
    /// was proved.
    pub fn reroute(&self, target: RelayTarget, plan: Plan) {
        let mut route = self.0.control.route();
        let peer = self.relay().or(target.peer);
        *route = Route {
            target: RelayTarget { peer, ..target },
            plan,
        };
    }

    /// Ends it: the relay frees what it had bound, synthetic addresses lead nowhere from now on.
    /// [`State::Closed`] follows.
    pub fn close(&self) {
        self.0.control.close();
    }
}
