//! The two tables against each other, with everything that can be on its way between them.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    OpenUncompressed,
    CloseUncompressed,
    ClientOpens(u16),
    ClientCloses(u16),
    ProxyCloses(u16),
    PacketFrom(u16),
    PacketTo(u16),
    /// Deliver this many capsules to the proxy, and to the client.
    Deliver(usize, usize),
    /// Deliver the datagrams, in any order relative to the capsules.
    Datagrams,
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::OpenUncompressed),
        Just(Step::CloseUncompressed),
        (0_u16..6).prop_map(Step::ClientOpens),
        (0_u16..6).prop_map(Step::ClientCloses),
        (0_u16..6).prop_map(Step::ProxyCloses),
        (0_u16..6).prop_map(Step::PacketFrom),
        (0_u16..6).prop_map(Step::PacketTo),
        (0_usize..4, 0_usize..4).prop_map(|(up, down)| Step::Deliver(up, down)),
        Just(Step::Datagrams),
        (0_u64..40).prop_map(Step::Wait),
    ]
}

/// Both ends and what is on its way between them.
struct Tunnel {
    client: ClientContexts,
    proxy: ProxyContexts,
    up: VecDeque<Capsule>,
    down: VecDeque<Capsule>,
    datagrams_up: Vec<(SocketAddr, Bytes)>,
    datagrams_down: Vec<(SocketAddr, Bytes)>,
    registered: HashSet<ContextId>,
    now: Instant,
}

impl Tunnel {
    fn new() -> Self {
        Self {
            client: ClientContexts::new(Mode::Bound, IDLE),
            proxy: ProxyContexts::bound(None, IDLE),
            up: VecDeque::new(),
            down: VecDeque::new(),
            datagrams_up: Vec::new(),
            datagrams_down: Vec::new(),
            registered: HashSet::new(),
            now: Instant::now(),
        }
    }

    fn send_up(&mut self, capsules: impl IntoIterator<Item = Capsule>) {
        for capsule in capsules {
            self.note(capsule);
            self.up.push_back(capsule);
        }
    }

    fn send_down(&mut self, capsules: impl IntoIterator<Item = Capsule>) {
        for capsule in capsules {
            self.note(capsule);
            self.down.push_back(capsule);
        }
    }

    /// Nobody registers an ID twice.
    fn note(&mut self, capsule: Capsule) {
        if let Capsule::CompressionAssign { context, .. } = capsule {
            assert!(self.registered.insert(context), "{context} again");
        }
    }

    fn deliver(&mut self, up: usize, down: usize) -> Result<(), Violation> {
        for _ in 0..up.min(self.up.len()) {
            let capsule = self.up.pop_front().expect("counted");
            let replies = self.proxy.on_capsule(capsule, self.now, |_| true)?;
            self.send_down(replies);
        }
        for _ in 0..down.min(self.down.len()) {
            let capsule = self.down.pop_front().expect("counted");
            let changed = self.client.on_capsule(capsule, self.now)?;
            self.send_up(changed.capsules);
        }
        Ok(())
    }

    /// A datagram that arrives as one, has the remote it was sent with.
    fn deliver_datagrams(&mut self) -> Result<(), Violation> {
        for (remote, datagram) in std::mem::take(&mut self.datagrams_up) {
            check(remote, &self.proxy.on_datagram(datagram, self.now)?);
        }
        for (remote, datagram) in std::mem::take(&mut self.datagrams_down) {
            check(remote, &self.client.on_datagram(datagram, self.now)?);
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), Violation> {
        let now = self.now;
        match step {
            Step::OpenUncompressed => {
                let capsule = self.client.open_uncompressed();
                self.send_up(capsule);
            }
            Step::CloseUncompressed => {
                let capsule = self.client.close_uncompressed();
                self.send_up(capsule);
            }
            Step::ClientOpens(n) => {
                let capsules = self.client.open(remote(n), now);
                self.send_up(capsules);
            }
            Step::ClientCloses(n) => {
                let capsule = self.client.close(remote(n));
                self.send_up(capsule);
            }
            Step::ProxyCloses(n) => {
                let capsule = self.proxy.close(remote(n));
                self.send_down(capsule);
            }
            Step::PacketFrom(n) => {
                if let Some(routed) = self.proxy.route(remote(n), now) {
                    self.send_down(routed.capsules);
                    self.datagrams_down
                        .push((remote(n), datagram(&routed.head)));
                }
            }
            Step::PacketTo(n) => {
                if let Some(head) = self.client.route(remote(n), now) {
                    self.datagrams_up.push((remote(n), datagram(&head)));
                }
            }
            Step::Deliver(up, down) => self.deliver(up, down)?,
            Step::Datagrams => self.deliver_datagrams()?,
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
        }
        Ok(())
    }
}

fn check(sent: SocketAddr, incoming: &Incoming) {
    if let Incoming::Remote {
        remote, payload, ..
    } = incoming
    {
        assert_eq!(*remote, sent);
        assert_eq!(payload, PAYLOAD);
    }
}

proptest! {
    /// Whatever the two do, and however what they send is delayed, neither takes the other's
    /// capsules for a violation, no datagram arrives under another remote, and once everything
    /// has arrived they agree.
    #[test]
    fn two_of_ours_never_violate_the_rules(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut tunnel = Tunnel::new();
        for step in steps {
            tunnel.step(step)?;
        }
        while !(tunnel.up.is_empty() && tunnel.down.is_empty()) {
            tunnel.deliver(1, 1)?;
        }
        tunnel.deliver_datagrams()?;
        let at_client: HashSet<_> = tunnel.client.remotes().collect();
        let at_proxy: HashSet<_> = tunnel.proxy.remotes().collect();
        prop_assert_eq!(at_client, at_proxy);
        prop_assert_eq!(tunnel.client.uncompressed().is_some(), tunnel.proxy.takes_unknown());
        for n in 0..6 {
            let now = tunnel.now;
            if let Some(head) = tunnel.client.route(remote(n), now) {
                let incoming = tunnel.proxy.on_datagram(datagram(&head), now)?;
                let Incoming::Remote { remote: to, .. } = incoming else {
                    panic!("{incoming:?} instead of a packet to {}", remote(n))
                };
                prop_assert_eq!(to, remote(n));
            }
        }
    }

    /// Anything a peer can put into capsules and datagrams: no panic, and no more contexts
    /// than allowed.
    #[test]
    fn arbitrary_peers_never_panic(
        capsules in prop::collection::vec((0_u8..5, 1_u64..300, 0_u16..300), 0..400),
    ) {
        let now = Instant::now();
        let mut proxy = ProxyContexts::bound(None, IDLE);
        let mut client = open_client(now);
        for (kind, context, n) in capsules {
            let capsule = match kind {
                0 => assign(context, Some(remote(n))),
                1 => assign(context, None),
                2 => ack(context),
                3 => close(context),
                _ => {
                    let _ = proxy.route(remote(n), now);
                    let _ = client.open(remote(n), now);
                    let _ = proxy.on_datagram(datagram(&id(context).head()), now);
                    let _ = client.on_datagram(datagram(&id(context).head()), now);
                    continue;
                }
            };
            let _ = tell(&mut proxy, capsule, now);
            let _ = client.on_capsule(capsule, now);
            prop_assert!(proxy.len() <= MAX_CONTEXTS && client.len() <= MAX_CONTEXTS);
        }
    }
}
