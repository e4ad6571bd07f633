//! The policy in force, and how sessions look it up without a lock.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::policy::{Policy, Refusal, Scope};

/// Verdicts a gate remembers: the remotes a tunnel talks to at a time, mostly.
const REMEMBERED: usize = 16;

/// The policy of a relay. It changes with the host's addresses and with the ports lent.
#[derive(Debug)]
pub(crate) struct Rules {
    generation: AtomicU64,
    policy: Mutex<Arc<Policy>>,
}

impl Rules {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            generation: AtomicU64::new(0),
            policy: Mutex::new(Arc::new(policy)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Policy>> {
        // Replaced as a whole.
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn current(&self) -> Arc<Policy> {
        self.lock().clone()
    }

    /// Changes the policy; everything remembered is forgotten if it really changes.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Policy)) {
        let mut policy = self.lock();
        let mut changed = Policy::clone(&policy);
        change(&mut changed);
        if changed != **policy {
            *policy = Arc::new(changed);
            self.generation.fetch_add(1, Ordering::Release);
        }
    }
}

/// The policy as one direction of one session sees it. Not shared, so that it takes one atomic load
/// and a comparison to know what was known before.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: Arc<Rules>,
    scope: Scope,
    generation: u64,
    policy: Arc<Policy>,
    remembered: [Option<(SocketAddr, Result<(), Refusal>)>; REMEMBERED],
}

impl Gate {
    pub(crate) fn new(rules: Arc<Rules>, scope: Scope) -> Self {
        Self {
            generation: rules.generation.load(Ordering::Acquire),
            policy: rules.current(),
            rules,
            scope,
            remembered: [None; REMEMBERED],
        }
    }

    /// Whether the client may exchange packets with `remote`, which is canonical.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check(&mut self, remote: SocketAddr) -> Result<(), Refusal> {
        let generation = self.rules.generation.load(Ordering::Acquire);
        if generation != self.generation {
            // Read first: a change in between is seen next time.
            self.generation = generation;
            self.policy = self.rules.current();
            self.remembered = [None; REMEMBERED];
        }
        let slot = &mut self.remembered[place(remote)];
        match slot {
            Some((known, verdict)) if *known == remote => *verdict,
            _ => {
                let verdict = self.policy.check(remote, self.scope);
                *slot = Some((remote, verdict));
                verdict
            }
        }
    }
}

/// Where a remote is remembered. Colliding ones are judged anew each time, which is right as well.
fn place(remote: SocketAddr) -> usize {
    let last = match remote {
        SocketAddr::V4(v4) => v4.ip().octets()[3],
        SocketAddr::V6(v6) => v6.ip().octets()[15],
    };
    (usize::from(remote.port()) ^ usize::from(last)) % REMEMBERED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_at_once_and_only_then() {
        let rules = Arc::new(Rules::new(Policy::default()));
        let mut gate = Gate::new(rules.clone(), Scope::default());
        let target: SocketAddr = "8.8.8.8:40000".parse().expect("literal");
        assert_eq!(gate.check(target), Ok(()));
        assert_eq!(gate.check(target), Ok(()));
        let deny = "8.8.8.0/24".parse().expect("literal");
        rules.update(|policy| policy.deny.push(deny));
        assert_eq!(gate.check(target), Err(Refusal::Operator));
        let before = rules.generation.load(Ordering::Acquire);
        rules.update(|_| {});
        assert_eq!(rules.generation.load(Ordering::Acquire), before);
    }

    #[test]
    fn remotes_in_one_place_do_not_share_a_verdict() {
        let rules = Arc::new(Rules::new(Policy::default()));
        let mut gate = Gate::new(rules, Scope::default());
        let open: SocketAddr = "8.8.8.8:40000".parse().expect("literal");
        let closed: SocketAddr = "10.8.8.8:40000".parse().expect("literal");
        assert_eq!(place(open), place(closed));
        for _ in 0..3 {
            assert!(gate.check(open).is_ok());
            assert!(gate.check(closed).is_err());
        }
    }
}
