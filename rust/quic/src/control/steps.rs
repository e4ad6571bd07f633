//! Steps of a punch the two ends ask of each other: which were asked and not answered yet, in
//! either direction.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyreach_wire::control::{Prepare, PrepareMethod, Prepared};

use crate::throttle::{Pace, Throttle};

/// How often a peer may ask for a step: a round of punching is a second apart from the next and
/// needs one step, or two with a second method; the burst is for two families at once.
pub(crate) const STEP_PACE: Pace = Pace {
    burst: 4,
    period: Duration::from_millis(250),
};

/// Steps remembered until they are answered, each way. Of more the oldest are forgotten: their
/// askers have long gone on to something else.
pub(crate) const MAX_OPEN_STEPS: usize = 8;

#[derive(Debug)]
pub(crate) struct Steps(Mutex<State>);

#[derive(Debug)]
struct State {
    last_request: u64,
    /// Asked of the peer.
    asked: VecDeque<u64>,
    /// Asked by the peer, and what.
    owed: VecDeque<(u64, PrepareMethod)>,
    pace: Throttle,
}

impl Steps {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(State {
            last_request: 0,
            asked: VecDeque::new(),
            owed: VecDeque::new(),
            pace: Throttle::new(STEP_PACE, now),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The lists are never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a question that is about to be asked.
    pub(crate) fn ask(&self) -> u64 {
        let mut state = self.lock();
        state.last_request += 1;
        let request = state.last_request;
        remember(&mut state.asked, request);
        request
    }

    /// Whether an answer of the peer belongs to a question of ours; the first one counts.
    pub(crate) fn answered(&self, prepared: &Prepared) -> bool {
        forget(&mut self.lock().asked, |asked| *asked == prepared.request).is_some()
    }

    /// Whether a question of the peer is to be considered at all. One that is repeated while it is
    /// open is not.
    pub(crate) fn asked(&self, prepare: &Prepare, now: Instant) -> bool {
        let mut state = self.lock();
        let mut owed = state.owed.iter();
        if owed.any(|(owed, _)| *owed == prepare.request) || state.pace.take(now).is_err() {
            return false;
        }
        remember(&mut state.owed, (prepare.request, prepare.method));
        true
    }

    /// What the peer has asked, if it waits for this answer; it is given once.
    pub(crate) fn answer(&self, request: u64) -> Option<PrepareMethod> {
        let (_, method) = forget(&mut self.lock().owed, |(owed, _)| *owed == request)?;
        Some(method)
    }
}

fn remember<T>(open: &mut VecDeque<T>, request: T) {
    if open.len() >= MAX_OPEN_STEPS {
        open.pop_front();
    }
    open.push_back(request);
}

fn forget<T>(open: &mut VecDeque<T>, is_it: impl Fn(&T) -> bool) -> Option<T> {
    open.remove(open.iter().position(is_it)?)
}

#[cfg(test)]
mod tests {
    use anyreach_wire::control::PrepareMethod;

    use super::*;

    fn prepare(request: u64) -> Prepare {
        Prepare {
            request,
            method: PrepareMethod::Predict,
            addresses: Vec::new(),
            count: 1,
        }
    }

    #[test]
    fn questions_are_answered_once_and_by_their_number() {
        let steps = Steps::new(Instant::now());
        let (first, second) = (steps.ask(), steps.ask());
        assert_ne!(first, second);
        let answer = Prepared::refused(second);
        assert!(steps.answered(&answer));
        assert!(!steps.answered(&answer));
        assert!(!steps.answered(&Prepared::refused(77)));
        // Those nobody answers are forgotten.
        for _ in 0..MAX_OPEN_STEPS {
            steps.ask();
        }
        assert!(!steps.answered(&Prepared::refused(first)));
    }

    #[test]
    fn a_peer_asks_at_its_pace_and_is_answered_once() {
        let start = Instant::now();
        let steps = Steps::new(start);
        for request in 0..u64::from(STEP_PACE.burst) {
            assert!(steps.asked(&prepare(request), start));
        }
        assert!(!steps.asked(&prepare(100), start));
        assert_eq!(steps.answer(100), None);
        let later = start + STEP_PACE.period;
        assert!(!steps.asked(&prepare(0), later), "still open");
        assert!(steps.asked(&prepare(101), later));
        assert!(!steps.asked(&prepare(102), later));
        assert!(steps.answer(0).is_some());
        assert_eq!(steps.answer(0), None);
    }
}
