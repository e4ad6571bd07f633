//! Two registries wired to each other, with every order of delivery.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const SMALL: PeerId = PeerId([1; 32]);
const LARGE: PeerId = PeerId([2; 32]);

fn stamp(instance: u64, serial: u64) -> HelloStamp {
    HelloStamp { instance, serial }
}

#[test]
fn a_second_won_race_is_superfluous() {
    let mut registry = Registry::new(SMALL, 7);
    let say_hello = |serial, replaced| Dialed::SayHello {
        stamp: stamp(7, serial),
        replaced,
    };
    assert_eq!(registry.dialed(LARGE, 1, "a", None), say_hello(1, None));
    assert_eq!(registry.dialed(LARGE, 2, "b", None), Dialed::Superfluous);
    assert_eq!(registry.established(&LARGE), None);
    assert!(registry.answered(LARGE, 1, stamp(9, 1)));
    assert_eq!(registry.established(&LARGE), Some(&"a"));
    assert!(!registry.removed(LARGE, 2));
    assert_eq!(
        registry.dialed(LARGE, 3, "c", Some(2)),
        Dialed::Superfluous,
        "what did not answer is gone, what is there is another"
    );
    assert_eq!(
        registry.dialed(LARGE, 4, "d", Some(1)),
        say_hello(2, Some("a"))
    );
    assert!(!registry.removed(LARGE, 1));
    assert!(registry.removed(LARGE, 4));
    assert_eq!(registry.connections().count(), 0);
}

#[test]
fn a_restarted_peer_and_a_peer_that_lost_its_connection_replace_the_old_one() {
    let mut registry = Registry::new(SMALL, 7);
    let accepted = |replaced, serial| Greeted::Accept {
        stamp: stamp(7, serial),
        replaced,
    };
    assert_eq!(
        registry.greeted(LARGE, 1, "a", stamp(9, 4)),
        accepted(None, 1)
    );
    // Late: said before what is there.
    assert_eq!(
        registry.greeted(LARGE, 2, "b", stamp(9, 3)),
        Greeted::Reject
    );
    // Said later: the peer would not dial if it still had the old one.
    assert_eq!(
        registry.greeted(LARGE, 3, "c", stamp(9, 5)),
        accepted(Some("a"), 2)
    );
    // Restarted: counts from one again.
    assert_eq!(
        registry.greeted(LARGE, 4, "d", stamp(10, 1)),
        accepted(Some("c"), 3)
    );
    assert!(!registry.removed(LARGE, 1), "the old ones no longer count");
    assert_eq!(registry.established(&LARGE), None, "not answered yet");
    registry.settled(LARGE, 3);
    assert_eq!(registry.established(&LARGE), None);
    registry.settled(LARGE, 4);
    assert_eq!(registry.established(&LARGE), Some(&"d"));
}

#[test]
fn nobody_connects_to_itself() {
    let mut registry = Registry::new(SMALL, 7);
    assert_eq!(
        registry.greeted(SMALL, 1, "a", stamp(7, 1)),
        Greeted::Reject
    );
}

/// A node in a model of two nodes and the connections between them.
struct Node {
    registry: Registry<u64>,
    /// Connections this node has closed or seen closed.
    closed: Vec<u64>,
}

/// What is under way to the other node, in order per connection.
#[derive(Debug, Clone, Copy)]
enum Message {
    Hello(HelloStamp),
    Accept(HelloStamp),
    Close,
}

struct World {
    nodes: [Node; 2],
    /// Per connection and direction (towards node 0 or 1): messages not yet delivered.
    wires: Vec<[VecDeque<Message>; 2]>,
    /// Which node dialed the connection.
    dialer: Vec<usize>,
}

impl World {
    fn new() -> Self {
        let node = |me, instance| Node {
            registry: Registry::new(me, instance),
            closed: Vec::new(),
        };
        Self {
            nodes: [node(SMALL, 11), node(LARGE, 22)],
            wires: Vec::new(),
            dialer: Vec::new(),
        }
    }

    fn peer_of(node: usize) -> PeerId {
        [LARGE, SMALL][node]
    }

    /// A handshake of a new connection completes at its dialer.
    fn dial(&mut self, node: usize) {
        if self.nodes[node].registry.contains(&Self::peer_of(node)) {
            return; // connect() returns what is there
        }
        let connection = self.wires.len() as u64;
        self.wires.push(Default::default());
        self.dialer.push(node);
        let registry = &mut self.nodes[node].registry;
        match registry.dialed(Self::peer_of(node), connection, connection, None) {
            Dialed::SayHello { stamp, .. } => self.send(node, connection, Message::Hello(stamp)),
            Dialed::Superfluous => self.close(node, connection),
        }
    }

    fn send(&mut self, from: usize, connection: u64, message: Message) {
        self.wires[connection as usize][1 - from].push_back(message);
    }

    fn close(&mut self, node: usize, connection: u64) {
        self.nodes[node].closed.push(connection);
        let peer = Self::peer_of(node);
        self.nodes[node].registry.removed(peer, connection);
        self.send(node, connection, Message::Close);
    }

    /// Delivers the next message of one connection in one direction. False if there is none.
    fn deliver(&mut self, connection: usize, to: usize) -> bool {
        let Some(message) = self.wires[connection][to].pop_front() else {
            return false;
        };
        let id = connection as u64;
        let peer = Self::peer_of(to);
        if self.nodes[to].closed.contains(&id) {
            return true;
        }
        match message {
            Message::Hello(stamp) => match self.nodes[to].registry.greeted(peer, id, id, stamp) {
                Greeted::Accept { stamp, replaced } => {
                    self.nodes[to].registry.settled(peer, id);
                    if let Some(old) = replaced {
                        self.close(to, old);
                    }
                    self.send(to, id, Message::Accept(stamp));
                }
                Greeted::Reject => self.close(to, id),
            },
            Message::Accept(stamp) => {
                if !self.nodes[to].registry.answered(peer, id, stamp) {
                    self.close(to, id);
                }
            }
            Message::Close => {
                self.nodes[to].closed.push(id);
                self.nodes[to].registry.removed(peer, id);
            }
        }
        true
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for connection in 0..self.wires.len() {
                for to in 0..2 {
                    moved |= self.deliver(connection, to);
                }
            }
            if !moved {
                return;
            }
        }
    }
}

proptest! {
    /// Whatever the nodes dial and in whatever order messages of different connections arrive:
    /// in the end both have the same connection or none, and if both dialed once, they have one.
    #[test]
    fn both_ends_agree(steps in prop::collection::vec((0u8..4, any::<u16>()), 0..60)) {
        let mut world = World::new();
        for (step, pick) in steps {
            match step {
                0 | 1 => world.dial(step.into()),
                _ if world.wires.is_empty() => {}
                _ => {
                    let connection = usize::from(pick) % world.wires.len();
                    world.deliver(connection, usize::from(step - 2));
                }
            }
        }
        world.settle();
        let [small, large] = &world.nodes;
        let counted = small.registry.established(&LARGE);
        prop_assert_eq!(counted, large.registry.established(&SMALL));
        prop_assert_eq!(small.registry.contains(&LARGE), counted.is_some());
        prop_assert_eq!(large.registry.contains(&SMALL), counted.is_some());
        if !world.wires.is_empty() {
            prop_assert!(counted.is_some(), "somebody dialed, so there is a connection");
        }
        for connection in 0..world.wires.len() as u64 {
            let open = [small, large].iter().any(|node| !node.closed.contains(&connection));
            prop_assert_eq!(open, counted == Some(&connection), "connection {}", connection);
        }
    }
}
