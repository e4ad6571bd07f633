//! Tunnels on a socket without an engine, and waiting for their states.

use std::{sync::Arc, time::Duration};

use anyreach_masque::{
    carrier::CarrierKind,
    client::{Closed, Down, Purpose, State, Tunnel, TunnelOptions, Tunnels, Up},
};
use anyreach_net::{BindOptions, IpMode, NodeSocket, bind};
use tokio::{sync::mpsc, time::timeout};

use crate::fake::{FakeDialer, Log, RelayEnd, Way, target};

/// A socket without an engine, and tunnels on it.
pub(crate) struct Scene {
    pub(crate) tunnels: Tunnels,
    _socket: NodeSocket,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let bound = bind(&BindOptions {
            addr: ([127, 0, 0, 1], 0).into(),
            ip_mode: IpMode::Dual,
            allow_ipv4_mapped: true,
            buffer_bytes: 1 << 20,
        });
        let socket = NodeSocket::new(bound.unwrap()).unwrap();
        Self {
            tunnels: Tunnels::new(socket.handle()),
            _socket: socket,
        }
    }

    pub(crate) fn open(
        &self,
        dialer: Arc<FakeDialer>,
        adjust: impl FnOnce(&mut TunnelOptions),
    ) -> Tunnel {
        let mut options = TunnelOptions {
            target: target(),
            plan: vec![(CarrierKind::H3, Duration::ZERO)],
            purpose: Purpose::Bind,
            persist: false,
        };
        adjust(&mut options);
        self.tunnels.open(dialer, options).unwrap()
    }
}

/// A tunnel that is up, and the relay's end of it.
pub(crate) async fn up(
    ways: impl IntoIterator<Item = Way>,
) -> (Scene, Tunnel, mpsc::UnboundedReceiver<RelayEnd>, Log) {
    let (dialer, log, opened) = FakeDialer::in_turn(ways);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    is_up(&tunnel).await;
    (scene, tunnel, opened, log)
}

async fn state(tunnel: &Tunnel, wanted: impl FnMut(&State) -> bool) -> State {
    let mut states = tunnel.states();
    // Long enough for a few of the longest waits, where time is paused.
    let state = timeout(Duration::from_secs(600), states.wait_for(wanted)).await;
    state.expect("in time").unwrap().clone()
}

pub(crate) async fn is_up(tunnel: &Tunnel) -> Arc<Up> {
    match state(tunnel, |state| matches!(state, State::Up(_))).await {
        State::Up(up) => up,
        _ => unreachable!(),
    }
}

pub(crate) async fn is_down(tunnel: &Tunnel) -> Arc<Down> {
    match state(tunnel, |state| matches!(state, State::Down(_))).await {
        State::Down(down) => down,
        _ => unreachable!(),
    }
}

pub(crate) async fn is_closed(tunnel: &Tunnel) -> Arc<Closed> {
    match state(tunnel, |state| matches!(state, State::Closed(_))).await {
        State::Closed(closed) => closed,
        _ => unreachable!(),
    }
}

/// Up for the time `carriers`.
pub(crate) async fn is_up_again(tunnel: &Tunnel, carriers: u32) -> Arc<Up> {
    match state(
        tunnel,
        |state| matches!(state, State::Up(up) if up.carriers >= carriers),
    )
    .await
    {
        State::Up(up) => up,
        _ => unreachable!(),
    }
}
