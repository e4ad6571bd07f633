//! What waits to be said on the control stream, in bounded memory however slow the peer is: of what
//! replaces itself the latest, of the rest a few.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyreach_wire::control::{Find, Found, Message, Nat, Prepare, Prepared, Reach, Sought};
use tokio::sync::Notify;

use super::steps::MAX_OPEN_STEPS;
use crate::steps::Pay;

/// Answers waiting for the peer to take them. While there are as many, its questions are not read:
/// whoever asks must listen.
pub(crate) const MAX_ANSWERS: usize = 32;

/// Notices that somebody looks for the peer, waiting for it to take them. Later ones are dropped:
/// they are hints, and old when they arrive late.
pub(crate) const MAX_SOUGHT: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The latest announcement, until it is sent.
    reach: Option<Reach>,
    /// The latest announcement.
    announced: Option<Reach>,
    /// Bounded by who asks: see `searches`.
    questions: VecDeque<Find>,
    /// What was found, and steps that were refused.
    answers: VecDeque<Message>,
    sought: VecDeque<Sought>,
    /// As with the reach.
    nat: Option<Nat>,
    announced_nat: Option<Nat>,
    /// Steps asked of the peer, as many as are remembered.
    prepare: VecDeque<Prepare>,
    /// Answers to steps the peer has asked for.
    prepared: VecDeque<Prepared>,
    /// Bytes to send before and behind these, to pay for what they ask for.
    pay: Pay,
}

impl State {
    /// Of several not sent yet the largest will do.
    fn pay(&mut self, pay: Pay) {
        self.pay.before = self.pay.before.max(pay.before);
        self.pay.behind = self.pay.behind.max(pay.behind);
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queues are never left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how this node can be reached; again only if that has changed.
    pub(crate) fn announce(&self, reach: Reach) {
        {
            let mut state = self.lock();
            if state.announced.as_ref() == Some(&reach) {
                return;
            }
            state.announced = Some(reach.clone());
            state.reach = Some(reach);
        }
        self.filled.notify_one();
    }

    /// Says what our NAT does; again only if that has changed.
    pub(crate) fn announce_nat(&self, nat: Nat) {
        {
            let mut state = self.lock();
            if state.announced_nat == Some(nat) {
                return;
            }
            state.announced_nat = Some(nat);
            state.nat = Some(nat);
        }
        self.filled.notify_one();
    }

    /// Asks for a step. Of more than a peer keeps up with, the latest count.
    pub(crate) fn prepare(&self, prepare: Prepare, pay: Pay) {
        {
            let state = &mut *self.lock();
            state.pay(pay);
            let queue = &mut state.prepare;
            if queue.len() >= MAX_OPEN_STEPS {
                queue.pop_front();
            }
            queue.push_back(prepare);
        }
        self.filled.notify_one();
    }

    /// Says that a step is done, or will not be.
    pub(crate) fn prepared(&self, prepared: Prepared, pay: Pay) {
        {
            let state = &mut *self.lock();
            state.pay(pay);
            let queue = &mut state.prepared;
            if queue.len() >= MAX_OPEN_STEPS {
                queue.pop_front();
            }
            queue.push_back(prepared);
        }
        self.filled.notify_one();
    }

    /// The announcement that waits to be sent.
    pub(crate) fn take_reach(&self) -> Option<Reach> {
        self.lock().reach.take()
    }

    /// The report on our NAT that waits to be sent.
    pub(crate) fn take_nat(&self) -> Option<Nat> {
        self.lock().nat.take()
    }

    pub(crate) fn ask(&self, find: Find) {
        self.lock().questions.push_back(find);
        self.filled.notify_one();
    }

    /// A question nobody waits for any more need not be sent.
    pub(crate) fn withdraw(&self, request: u64) {
        self.lock().questions.retain(|find| find.request != request);
    }

    /// Whether a further answer would be taken.
    pub(crate) fn takes_answers(&self) -> bool {
        self.lock().answers.len() < MAX_ANSWERS
    }

    pub(crate) fn answer(&self, found: Found) {
        self.push_answer(Message::Found(found));
    }

    /// Says that a step was not even considered.
    pub(crate) fn refuse(&self, step: u64) {
        self.push_answer(Message::Prepared(Prepared::refused(step)));
    }

    fn push_answer(&self, answer: Message) {
        {
            let mut state = self.lock();
            debug_assert!(
                state.answers.len() < MAX_ANSWERS,
                "read no question beyond that"
            );
            state.answers.push_back(answer);
        }
        self.filled.notify_one();
    }

    /// Of several notices about one asker, the latest counts.
    pub(crate) fn tell_sought(&self, sought: Sought) {
        {
            let mut state = self.lock();
            state.sought.retain(|earlier| earlier.peer != sought.peer);
            if state.sought.len() >= MAX_SOUGHT {
                return;
            }
            state.sought.push_back(sought);
        }
        self.filled.notify_one();
    }

    fn pop(&self) -> Option<Message> {
        let mut state = self.lock();
        if let Some(reach) = state.reach.take() {
            return Some(Message::Reach(reach));
        }
        let before = std::mem::take(&mut state.pay.before);
        if before > 0 {
            return Some(Message::Filler(before));
        }
        // A punch is a matter of milliseconds at both ends.
        if let Some(prepared) = state.prepared.pop_front() {
            return Some(Message::Prepared(prepared));
        }
        if let Some(prepare) = state.prepare.pop_front() {
            return Some(Message::Prepare(prepare));
        }
        let behind = std::mem::take(&mut state.pay.behind);
        if behind > 0 {
            return Some(Message::Filler(behind));
        }
        if let Some(nat) = state.nat.take() {
            return Some(Message::Nat(nat));
        }
        if let Some(sought) = state.sought.pop_front() {
            return Some(Message::Sought(sought));
        }
        if let Some(answer) = state.answers.pop_front() {
            return Some(answer);
        }
        state.questions.pop_front().map(Message::Find)
    }

    /// The next message; for one taker.
    pub(crate) async fn take(&self) -> Message {
        loop {
            if let Some(message) = self.pop() {
                return message;
            }
            // A permit is stored if something came in between.
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use anyreach_wire::{address::Address, control::FindStatus};

    use super::*;

    fn sought(peer: u8, port: u16) -> Sought {
        Sought {
            peer: [peer; 32],
            observed: vec![Address::new([192, 0, 2, 1].into(), port)],
        }
    }

    #[test]
    fn of_announcements_the_latest_counts_and_none_is_repeated() {
        let outbox = Outbox::default();
        let findable = Reach {
            findable: true,
            load: None,
            ..Reach::default()
        };
        outbox.announce(Reach::default());
        outbox.announce(findable.clone());
        assert_eq!(outbox.pop(), Some(Message::Reach(findable.clone())));
        outbox.announce(findable);
        assert_eq!(outbox.pop(), None);
        outbox.announce(Reach::default());
        assert_eq!(outbox.pop(), Some(Message::Reach(Reach::default())));
    }

    #[test]
    fn a_peer_that_takes_nothing_costs_a_few_entries() {
        let outbox = Outbox::default();
        let mut answered = 0;
        while outbox.takes_answers() {
            outbox.answer(Found::nothing(answered, FindStatus::Unknown));
            answered += 1;
        }
        assert_eq!(answered, MAX_ANSWERS as u64);
        for port in 1..=1000 {
            outbox.tell_sought(sought((port % 100) as u8, port));
        }
        let waiting: Vec<Message> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(waiting.len(), MAX_ANSWERS + MAX_SOUGHT);
        // One per asker, the latest.
        outbox.tell_sought(sought(1, 1));
        outbox.tell_sought(sought(1, 2));
        assert_eq!(outbox.pop(), Some(Message::Sought(sought(1, 2))));
        assert_eq!(outbox.pop(), None);
    }

    #[test]
    fn what_was_withdrawn_is_not_asked() {
        let outbox = Outbox::default();
        for request in 0..3 {
            let peer = [0; 32];
            outbox.ask(Find { request, peer });
        }
        outbox.withdraw(1);
        let asked: Vec<u64> = std::iter::from_fn(|| outbox.pop())
            .map(|message| match message {
                Message::Find(find) => find.request,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asked, [0, 2]);
    }
}
