use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(20);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A path with a clock, looked at every [`STEP`] like a steward does.
struct Bench {
    now: Instant,
    sample: Sample,
    pulse: Pulse,
}

impl Bench {
    fn new(rtt: Duration) -> Self {
        let now = Instant::now();
        let sample = Sample {
            rtt,
            ..Sample::default()
        };
        Self {
            now,
            sample,
            pulse: Pulse::new(now, sample),
        }
    }

    fn look(&mut self) -> Health {
        self.now += STEP;
        self.pulse.sample(self.now, self.sample);
        let health = self.pulse.health(self.now);
        let owes = matches!(health, Health::Suspect | Health::Silent);
        if owes && self.pulse.ping_is_due(self.now) {
            self.pulse.pinged(self.now);
            self.sample.sent += 40;
        }
        health
    }

    /// How long until it counts as silent, and with how many pings, when nothing is heard any more.
    fn silent_after(&mut self) -> (Duration, u32) {
        let start = self.now;
        self.sample.sent += 1200;
        loop {
            if self.look() == Health::Silent {
                return (self.now - start, self.pulse.pings);
            }
            assert!(self.now - start < ms(60_000));
        }
    }
}

#[test]
fn silence_is_noticed_after_three_round_trips_and_not_before_the_floor() {
    for (rtt, from, to) in [
        (1, 150, 200),
        (4, 150, 200),
        (40, 150, 220),
        (300, 900, 1100),
    ] {
        let (after, pings) = Bench::new(ms(rtt)).silent_after();
        assert!(after >= ms(from) && after <= ms(to), "{rtt}: {after:?}");
        assert!(pings >= PINGS, "{rtt}: {pings}");
    }
}

#[test]
fn a_path_on_which_nothing_is_sent_is_well() {
    let mut bench = Bench::new(ms(40));
    for _ in 0..1000 {
        assert_eq!(bench.look(), Health::Good);
    }
}

#[test]
fn an_acknowledgement_that_comes_another_way_is_a_sign_of_life() {
    let mut bench = Bench::new(ms(40));
    for turn in 0..100 {
        bench.sample.sent += 1200;
        // Measured anew, and nothing received here.
        bench.sample.rtt = ms(40) + Duration::from_nanos(turn);
        assert_eq!(bench.look(), Health::Good);
    }
}

#[test]
fn what_was_silent_comes_back() {
    let mut bench = Bench::new(ms(40));
    bench.silent_after();
    // Something comes by it: it lives one way.
    bench.sample.received += 1;
    assert_eq!(bench.look(), Health::Silent);
    assert_eq!(bench.pulse.heard(), bench.now);
    bench.sample.rtt += ms(1);
    assert_eq!(bench.look(), Health::Good);
    assert_eq!(bench.pulse.unanswered(), None);
    let (after, _) = bench.silent_after();
    assert!(after >= SILENCE_FLOOR);
}

#[test]
fn a_look_that_came_late_proves_nothing() {
    let mut bench = Bench::new(ms(40));
    bench.sample.sent += 1200;
    bench.look();
    bench.now += ms(5000);
    bench.pulse.forgive();
    assert_eq!(bench.pulse.health(bench.now), Health::Good);
    let (after, _) = bench.silent_after();
    assert!(after >= SILENCE_FLOOR);
}

/// A line that stutters delays all answers: what another path took too long is granted to this one.
#[test]
fn how_late_an_answer_came_is_remembered() {
    let mut bench = Bench::new(ms(40));
    bench.pulse.pinged(bench.now);
    let asked = bench.now;
    for _ in 0..20 {
        bench.look();
    }
    bench.sample.rtt += ms(1);
    bench.look();
    let late = bench.now - asked - bench.pulse.answer_time() - ECHO_DELAY;
    assert!(bench.pulse.late_by() >= late && late > ms(200));
    let mut silent = Bench::new(ms(40));
    let (after, _) = silent.silent_after();
    assert!(silent.pulse.outlasted(silent.now, Duration::ZERO));
    assert!(!silent.pulse.outlasted(silent.now, late));
    assert!(
        silent
            .pulse
            .outlasted(silent.now + late, after.saturating_sub(ms(150)))
    );
    // The next one is in time.
    bench.pulse.pinged(bench.now);
    bench.sample.rtt += ms(1);
    bench.look();
    assert_eq!(bench.pulse.late_by(), Duration::ZERO);
}

#[test]
fn a_path_that_stays_silent_is_hopeless_in_the_end() {
    let mut bench = Bench::new(ms(40));
    bench.silent_after();
    let start = bench.now;
    while bench.look() != Health::Hopeless {
        assert!(bench.now - start < HOPELESS);
    }
    assert!(bench.pulse.pings > PINGS && bench.pulse.pings < 40);
}

proptest! {
    /// Whatever is lost, a path is never silent sooner than the floor and three round trips after
    /// the last sign of life, nor without having been asked.
    #[test]
    fn nothing_is_declared_silent_in_haste(
        rtt in 1_u64..500,
        turns in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.05)), 0..500),
    ) {
        let mut bench = Bench::new(ms(rtt));
        let mut heard = bench.now;
        for (sends, hears) in turns {
            bench.sample.sent += u64::from(sends) * 1200;
            bench.sample.rtt += Duration::from_nanos(u64::from(hears));
            let health = bench.look();
            if hears {
                heard = bench.now;
                prop_assert_eq!(health, Health::Good);
            }
            if let Health::Silent | Health::Hopeless = health {
                prop_assert!(bench.now - heard >= SILENCE_FLOOR.max(ms(rtt) * SILENCE_RTTS));
                prop_assert!(bench.pulse.pings >= PINGS);
            }
        }
    }
}
