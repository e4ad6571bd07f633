use std::collections::VecDeque;

use proptest::prelude::*;

use super::{
    super::{
        choice::{Candidate, choose},
        health::LOOK,
    },
    *,
};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What goes over a line of the model: a packet that calls for an acknowledgement, by this path, or
/// the acknowledgement of such a one.
#[derive(Debug, Clone, Copy)]
enum Packet {
    Data,
    Ack(u32),
}

/// A node: its view of its paths, and what its engine counts.
struct Node {
    vigil: Vigil,
    current: u32,
    counts: BTreeMap<u32, Sample>,
    closed: Vec<u32>,
}

/// Two nodes, and lines between them that deliver after a while, or do not.
struct Model {
    start: Instant,
    now: Instant,
    nodes: [Node; 2],
    rtts: Vec<Duration>,
    /// By path and receiver.
    up: Vec<[bool; 2]>,
    under_way: VecDeque<(Instant, u32, usize, Packet)>,
}

impl Model {
    fn new(rtts: &[u64]) -> Self {
        let now = Instant::now();
        let rtts: Vec<Duration> = rtts.iter().map(|rtt| ms(*rtt)).collect();
        let node = |leads| Node {
            vigil: Vigil::new(leads, now),
            current: 0,
            counts: (0..)
                .zip(&rtts)
                .map(|(id, rtt)| (id, sample(*rtt)))
                .collect(),
            closed: Vec::new(),
        };
        Self {
            start: now,
            now,
            nodes: [node(true), node(false)],
            up: vec![[true; 2]; rtts.len()],
            rtts,
            under_way: VecDeque::new(),
        }
    }

    fn send(&mut self, from: usize, path: u32, packet: Packet) {
        if !self.nodes[from].counts.contains_key(&path) {
            return;
        }
        if let (Packet::Data, Some(counts)) = (packet, self.nodes[from].counts.get_mut(&path)) {
            counts.sent += 40;
        }
        if self.up[path as usize][1 - from] {
            let due = self.now + self.rtts[path as usize] / 2;
            self.under_way.push_back((due, path, 1 - from, packet));
        }
    }

    fn arrive(&mut self, path: u32, at: usize, packet: Packet) {
        let node = &mut self.nodes[at];
        let Some(counts) = node.counts.get_mut(&path) else {
            return;
        };
        counts.received += 1;
        match packet {
            // By the path it uses itself, like the engine.
            Packet::Data => {
                let current = node.current;
                self.send(at, current, Packet::Ack(path));
            }
            Packet::Ack(of) => {
                if let Some(counts) = node.counts.get_mut(&of) {
                    counts.rtt += Duration::from_nanos(1);
                }
            }
        }
    }

    /// One look of both, with data from those who have some.
    fn step(&mut self, sends: [bool; 2]) {
        self.now += LOOK;
        let now = self.now;
        while let Some(at) = self.under_way.iter().position(|(due, ..)| *due <= now) {
            let (_, path, at, packet) = self.under_way.remove(at).unwrap();
            self.arrive(path, at, packet);
        }
        for (at, sends) in sends.into_iter().enumerate() {
            if sends {
                self.send(at, self.nodes[at].current, Packet::Data);
            }
            let node = &mut self.nodes[at];
            for (id, counts) in &node.counts {
                node.vigil.sample(now, *id, *counts);
            }
            let orders = node.vigil.look(now, Some(node.current));
            self.choose(at);
            for id in orders.close {
                self.close(at, id);
                // The peer hears of it by the others; here at once.
                self.close(1 - at, id);
            }
            for id in orders.ping {
                self.send(at, id, Packet::Data);
            }
        }
    }

    fn close(&mut self, at: usize, id: u32) {
        let node = &mut self.nodes[at];
        node.counts.remove(&id);
        node.vigil.retain(self.now, |open| open != id);
        node.closed.push(id);
        self.choose(at);
    }

    /// As the steward does it; the first path is wanted most.
    fn choose(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let candidate = |(id, counts): (&u32, &Sample)| Candidate {
            id: *id,
            standby: false,
            relayed: false,
            ipv6: false,
            doubtful: node.vigil.is_doubtful(self.now, *id),
            rtt: counts.rtt,
        };
        let candidates: Vec<Candidate> = node.counts.iter().map(candidate).collect();
        let ranking = node.counts.keys().map(|id| (*id, *id)).collect();
        let chosen = choose(Some(node.current), &candidates, &ranking);
        node.current = chosen.expect("never the last one");
    }

    fn run(&mut self, time: Duration, sends: [bool; 2]) {
        let end = self.now + time;
        while self.now < end {
            self.step(sends);
        }
    }

    fn closed(&self) -> &[u32] {
        assert_eq!(self.nodes[0].closed, self.nodes[1].closed);
        &self.nodes[0].closed
    }
}

fn sample(rtt: Duration) -> Sample {
    Sample {
        rtt,
        ..Sample::default()
    }
}

#[test]
fn a_dead_path_is_closed_whoever_sends_and_whichever_way_it_died() {
    for sends in [[true, false], [false, true], [true, true]] {
        for up in [[false, false], [true, false], [false, true]] {
            let mut model = Model::new(&[4, 40]);
            model.run(ms(1000), sends);
            model.up[0] = up;
            let before = model.now;
            while model.closed().is_empty() {
                model.step(sends);
                assert!(model.now - before < ms(400), "{sends:?} {up:?}");
            }
            assert!(model.now - before >= ms(150));
            model.run(ms(5000), sends);
            assert_eq!(model.closed(), [0]);
        }
    }
}

#[test]
fn of_paths_cut_together_none_is_moved_to() {
    for (rtts, sends) in [
        ([100, 44, 87], [true, false]),
        ([44, 100, 87], [true, false]),
        ([100, 44, 87], [false, true]),
        ([40, 40, 80], [true, true]),
    ] {
        let mut model = Model::new(&rtts);
        model.run(ms(1000), sends);
        model.up[0] = [false; 2];
        model.up[1] = [false; 2];
        let cut = model.now;
        while model.nodes.iter().any(|node| node.current == 0) {
            model.step(sends);
        }
        let taken = model.now - cut;
        assert!(
            taken <= 3 * ms(100) + ms(300),
            "{rtts:?} {sends:?}: {taken:?}"
        );
        model.run(ms(3000), sends);
        assert!(
            model.nodes.iter().all(|node| node.current == 2),
            "{rtts:?} {sends:?}"
        );
        assert_eq!(model.closed().len(), 2);
    }
}

/// Who only receives finds out that nothing comes any more, once, on an only path as well.
#[test]
fn the_end_of_a_flow_is_looked_into_once() {
    for paths in [1, 2] {
        let start = Instant::now();
        let mut vigil = Vigil::new(false, start);
        let mut counts = vec![sample(ms(20)); paths as usize];
        let mut now = start;
        let mut asked = Vec::new();
        for step in 0..400_u64 {
            now += LOOK;
            if step < 40 {
                counts[0].received += 2;
            }
            for (id, counts) in (0..).zip(&counts) {
                vigil.sample(now, id, *counts);
            }
            let flows = vigil.hush_due().is_some();
            assert_eq!(flows, (16..55).contains(&step), "{step}");
            let orders = vigil.look(now, Some(0));
            asked.extend(orders.ping.iter().map(|id| (step, *id)));
        }
        assert_eq!(asked, [(54, 0)], "150 ms after the last");
    }
}

/// A spare path is found dead sooner than the current one, which died with it: that is told when it
/// can arrive.
#[test]
fn nothing_is_closed_while_the_news_would_be_lost() {
    let start = Instant::now();
    let mut vigil = Vigil::new(true, start);
    let mut counts = [sample(ms(60)), sample(ms(4)), sample(ms(80))];
    let mut now = start;
    let closed = loop {
        now += LOOK;
        let since = (now - start).as_millis();
        counts[0].sent += if since < 100 { 1200 } else { 0 };
        counts[1].sent += 40;
        // A relayed path lives.
        counts[2].sent += 40;
        counts[2].received += 1;
        counts[2].rtt += Duration::from_nanos(1);
        for (id, counts) in (0..).zip(&counts) {
            vigil.sample(now, id, *counts);
        }
        let orders = vigil.look(now, Some(0));
        if !orders.close.is_empty() {
            break orders.close;
        }
        assert!(now - start < ms(2000));
    };
    assert!(
        closed.contains(&0),
        "{closed:?} while the current path is silent"
    );
}

#[test]
fn a_silence_of_everything_closes_nothing_unless_it_lasts() {
    for outage in [300, 1000, 2500] {
        let mut model = Model::new(&[4, 40, 90]);
        model.run(ms(1000), [true, false]);
        model.up = vec![[false; 2]; 3];
        model.run(ms(outage), [true, false]);
        model.up = vec![[true; 2]; 3];
        model.run(ms(5000), [true, false]);
        assert_eq!(model.closed(), [], "{outage}");
    }
    let mut model = Model::new(&[4, 40]);
    model.up = vec![[false; 2]; 2];
    model.run(ms(10_000), [true, true]);
    for node in &model.nodes {
        assert_eq!(node.counts.len(), 1, "one is left");
    }
}

/// A peer whose congestion window is full of what we acknowledge by a dead path sends a packet with
/// each of its probe timeouts, and so a living path falls silent and comes back all the time.
#[test]
fn a_living_path_that_stutters_does_not_save_a_dead_one() {
    for leads in [false, true] {
        let start = Instant::now();
        let mut vigil = Vigil::new(leads, start);
        let (mut living, mut dead) = (sample(ms(4)), sample(ms(2)));
        let (mut next, mut interval) = (start + ms(50), ms(50));
        let mut now = start;
        let closed = loop {
            now += LOOK;
            if now >= next {
                (next, interval) = (now + interval, interval * 2);
                living.received += 2;
                // Our own probe timeouts come more and more seldom as well.
                dead.sent += 2400;
            }
            vigil.sample(now, 0, living);
            vigil.sample(now, 1, dead);
            let orders = vigil.look(now, Some(1));
            // By the dead one nothing goes: its window is full.
            if orders.ping.contains(&0) {
                living.sent += 40;
            }
            if !orders.close.is_empty() || now - start > ms(60_000) {
                break orders.close;
            }
        };
        assert_eq!(closed, [1], "leads: {leads}");
        assert!(now - start <= ms(7000), "{:?}, leads: {leads}", now - start);
    }
}

#[test]
fn an_idle_connection_is_left_in_peace() {
    let mut model = Model::new(&[4, 40]);
    let mut packets = 0;
    for second in 0..600 {
        // A keep-alive of the dialing side, on all paths, like the engine's.
        if second % 15 == 0 {
            for path in 0..2 {
                model.send(0, path, Packet::Data);
            }
        }
        let end = model.now + ms(1000);
        while model.now < end {
            let before = model.under_way.len();
            model.step([false, false]);
            packets += model.under_way.len().saturating_sub(before);
        }
    }
    assert_eq!(model.closed(), []);
    // Two keep-alives and their acknowledgements, and at most an answer by the other path.
    assert!(packets <= 40 * 6, "{packets} in ten minutes");
    assert!(model.now - model.start >= ms(599_000));
}

proptest! {
    /// Paths die one after another, whichever is in use and whoever sends, until one is left: it and
    /// no other is kept.
    #[test]
    fn the_dead_are_closed_and_the_living_kept(
        rtts in prop::collection::vec(1_u64..300, 2..5),
        deaths in Just((0..4_usize).collect::<Vec<_>>()).prop_shuffle(),
        sends in prop::collection::vec(any::<[bool; 2]>(), 4),
        times in prop::collection::vec(0_u64..500, 4),
    ) {
        let mut model = Model::new(&rtts);
        model.run(ms(1000), [true, true]);
        for ((line, sends), time) in deaths.into_iter().zip(sends).zip(times) {
            if line >= rtts.len() || model.nodes[0].counts.len() == 1 {
                continue;
            }
            model.run(ms(time), sends);
            model.up[line] = [false; 2];
            // Those that carry no data are noticed by the keep-alives.
            for _ in 0..3 {
                for path in 0..rtts.len() as u32 {
                    model.send(0, path, Packet::Data);
                }
                model.run(KEEP_ALIVE, sends);
            }
            for id in 0..rtts.len() as u32 {
                let is_closed = model.closed().contains(&id);
                prop_assert_eq!(is_closed, !model.up[id as usize][0], "path {}", id);
            }
        }
    }

    /// A path dies one way or both while probes of the MTU and the like are under way on others: it
    /// is closed and no other.
    #[test]
    fn the_right_one_is_closed(
        rtts in prop::collection::vec(1_u64..300, 2..5),
        dying in any::<prop::sample::Index>(),
        up in prop::sample::select(vec![[false, false], [false, true], [true, false]]),
        sends in prop::sample::select(vec![[true, false], [false, true], [true, true]]),
        probes in prop::collection::vec((0_usize..2, any::<prop::sample::Index>(), 0_u64..60), 0..8),
    ) {
        let mut model = Model::new(&rtts);
        let dying = dying.index(rtts.len());
        model.run(ms(1000), sends);
        for (at, path, time) in probes {
            model.send(at, path.index(rtts.len()) as u32, Packet::Data);
            model.run(ms(time), sends);
        }
        model.up[dying] = up;
        for _ in 0..2 {
            model.run(KEEP_ALIVE, sends);
            for path in 0..rtts.len() as u32 {
                model.send(0, path, Packet::Data);
            }
        }
        let closed = model.closed();
        prop_assert!(closed.iter().all(|id| *id == dying as u32), "{:?}", closed);
        // Whoever sends by it towards the dead end, or hears nothing by it, finds out.
        if dying == 0 {
            prop_assert_eq!(closed, [0]);
        }
    }

    /// Whatever happens to the lines, also to several at once: one is always left.
    #[test]
    fn a_path_is_left(
        rtts in prop::collection::vec(1_u64..300, 2..5),
        events in prop::collection::vec(
            (0_usize..5, any::<[bool; 2]>(), any::<[bool; 2]>(), 20_u64..1500), 0..30,
        ),
    ) {
        let mut model = Model::new(&rtts);
        let last = rtts.len() - 1;
        for (path, up, sends, time) in events {
            if let Some(line) = model.up[..last].get_mut(path) {
                *line = up;
            }
            model.run(ms(time), sends);
            for node in &model.nodes {
                prop_assert!(!node.counts.is_empty());
            }
        }
    }
}
