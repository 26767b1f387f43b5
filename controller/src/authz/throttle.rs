//! Slowing down guesses: failures are counted for each account and each address, in memory.
//!
//! After a few free tries every failure doubles the time until the next one is heard, and a challenge
//! must be solved (`challenge.rs`). The counts, and which solutions were used, belong to one task; a
//! controller that starts again forgets them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use tianqi_common::clock::{SharedClock, UnixMillis};
use tokio::sync::{mpsc, oneshot};

use super::challenge::Solved;
use crate::core::http::proxy::counted_as;

/// Accounts and addresses that are remembered, each. When full, the one that failed longest ago
/// makes room.
const REMEMBERED: usize = 10_000;
/// A count is forgotten after so long without a failure.
const FORGET: Duration = Duration::from_mins(15);
/// Questions that may wait for the task; more wait in line.
const QUEUE: usize = 256;

/// Known accounts are few and somebody else may lock them on purpose, so the wait stays short.
const ACCOUNT: Rule = Rule { unchallenged: 3, free: 5, longest: Duration::from_mins(1) };
/// An address may stand for a whole office.
const ADDRESS: Rule = Rule { unchallenged: 10, free: 30, longest: Duration::from_mins(5) };

/// Used solutions that are remembered. Each takes its client half a second of a core and is of use for
/// minutes, so this many are never there together; if they are, the one that ends first is forgotten.
const SPENT: usize = 20_000;

#[derive(Clone, Copy, Debug)]
struct Rule {
    /// Failures before the next try needs a solved challenge.
    unchallenged: u32,
    /// Failures before the next try must wait.
    free: u32,
    longest: Duration,
}

/// What stands before the next try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hurdle {
    /// How long it must wait; zero to go ahead.
    pub wait: Duration,
    /// Whether a challenge must be solved.
    pub challenge: bool,
    /// How long somebody must wait who cannot be asked to solve one; zero to go ahead.
    pub wait_unsolved: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Tally {
    failures: u32,
    last: Duration,
}

/// Failures of one kind of thing. Times are of the monotonic clock.
#[derive(Debug)]
struct Tallies<K> {
    rule: Rule,
    by_key: HashMap<K, Tally>,
}

impl<K: Hash + Eq + Clone> Tallies<K> {
    fn new(rule: Rule) -> Self {
        Self { rule, by_key: HashMap::new() }
    }

    /// Whether the next try of `key` needs a solved challenge.
    fn is_challenged(&self, key: &K, now: Duration) -> bool {
        self.by_key.get(key).is_some_and(|tally| {
            tally.failures >= self.rule.unchallenged && now.saturating_sub(tally.last) < FORGET
        })
    }

    /// Returns how long `key` must wait from `now` on.
    fn wait(&self, key: &K, now: Duration) -> Duration {
        self.wait_after(self.rule.free, key, now)
    }

    /// The same where no challenge can be shown: waiting stands in its place.
    fn wait_unsolved(&self, key: &K, now: Duration) -> Duration {
        self.wait_after(self.rule.unchallenged, key, now)
    }

    fn wait_after(&self, free: u32, key: &K, now: Duration) -> Duration {
        let Some(tally) = self.by_key.get(key) else { return Duration::ZERO };
        let passed = now.saturating_sub(tally.last);
        if tally.failures < free || passed >= FORGET {
            return Duration::ZERO;
        }
        let doublings = (tally.failures - free).min(16);
        Duration::from_secs(1 << doublings).min(self.rule.longest).saturating_sub(passed)
    }

    fn failed(&mut self, key: K, now: Duration) {
        if !self.by_key.contains_key(&key) && self.by_key.len() >= REMEMBERED {
            self.make_room(now);
        }
        let tally = self.by_key.entry(key).or_insert(Tally { failures: 0, last: now });
        let is_forgotten = now.saturating_sub(tally.last) >= FORGET;
        tally.failures = if is_forgotten { 1 } else { tally.failures.saturating_add(1) };
        tally.last = now;
    }

    fn make_room(&mut self, now: Duration) {
        self.by_key.retain(|_, tally| now.saturating_sub(tally.last) < FORGET);
        if self.by_key.len() < REMEMBERED {
            return;
        }
        let oldest = self.by_key.iter().min_by_key(|(_, tally)| tally.last);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.by_key.remove(&key);
        }
    }
}

/// Solutions that were used, until they are of no use.
#[derive(Debug, Default)]
struct Spent {
    until: HashMap<u128, UnixMillis>,
}

impl Spent {
    /// Returns whether this is the first use.
    fn spend(&mut self, solved: Solved, now: UnixMillis) -> bool {
        if self.until.len() >= SPENT {
            self.until.retain(|_, until| now < *until);
        }
        if self.until.len() >= SPENT {
            let first = self.until.iter().min_by_key(|(_, until)| **until).map(|(it, _)| *it);
            first.and_then(|first| self.until.remove(&first));
        }
        self.until.insert(solved.nonce, solved.expires_at).is_none()
    }
}

enum Ask {
    Hurdle { account: String, address: IpAddr, answer: oneshot::Sender<Hurdle> },
    Spend { solved: Solved, answer: oneshot::Sender<bool> },
    Failed { account: String, address: IpAddr },
    Succeeded { account: String },
}

/// The door to the task that counts. The task ends with the last door.
#[derive(Clone, Debug)]
pub struct Throttle {
    asks: mpsc::Sender<Ask>,
}

impl Throttle {
    /// Starts the task; needs a running runtime.
    #[must_use]
    pub fn start(clock: SharedClock) -> Self {
        let (asks, mut inbox) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut accounts = Tallies::new(ACCOUNT);
            let mut addresses = Tallies::new(ADDRESS);
            let mut spent = Spent::default();
            while let Some(ask) = inbox.recv().await {
                let now = clock.monotonic();
                match ask {
                    // Whoever asked may be gone.
                    Ask::Hurdle { account, address, answer } => {
                        let wait = accounts.wait(&account, now).max(addresses.wait(&address, now));
                        let challenge = accounts.is_challenged(&account, now)
                            || addresses.is_challenged(&address, now);
                        let wait_unsolved = accounts
                            .wait_unsolved(&account, now)
                            .max(addresses.wait_unsolved(&address, now));
                        let _ = answer.send(Hurdle { wait, challenge, wait_unsolved });
                    }
                    Ask::Spend { solved, answer } => {
                        let _ = answer.send(spent.spend(solved, clock.now()));
                    }
                    Ask::Failed { account, address } => {
                        accounts.failed(account, now);
                        addresses.failed(address, now);
                    }
                    Ask::Succeeded { account } => {
                        accounts.by_key.remove(&account);
                    }
                }
            }
        });
        Self { asks }
    }

    /// Returns what stands before the next try of `account` from `address`.
    pub async fn hurdle(&self, account: &str, address: IpAddr) -> Hurdle {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Hurdle { account: account.to_owned(), address: counted_as(address), answer };
        self.tell(ask).await;
        answered.await.unwrap_or_default()
    }

    /// Uses a solution up. Returns whether this is its first use.
    pub async fn spend(&self, solved: Solved) -> bool {
        let (answer, answered) = oneshot::channel();
        self.tell(Ask::Spend { solved, answer }).await;
        answered.await.unwrap_or_default()
    }

    /// Counts a failure.
    pub async fn failed(&self, account: &str, address: IpAddr) {
        self.tell(Ask::Failed { account: account.to_owned(), address: counted_as(address) }).await;
    }

    /// Forgets the failures of `account`. Those of the address stay: an account of one's own must
    /// not buy more guesses at others.
    pub async fn succeeded(&self, account: &str) {
        self.tell(Ask::Succeeded { account: account.to_owned() }).await;
    }

    async fn tell(&self, ask: Ask) {
        // The task lives as long as this door; it is gone only while the process ends.
        let _ = self.asks.send(ask).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wait_doubles_after_the_free_tries_up_to_its_longest() {
        let mut tallies = Tallies::new(ACCOUNT);
        let mut waits = Vec::new();
        for _ in 0..14 {
            tallies.failed("alice", SECOND);
            waits.push(tallies.wait(&"alice", SECOND).as_secs());
        }

        assert_eq!(waits, [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(tallies.wait(&"bob", SECOND), Duration::ZERO);
        assert_eq!(tallies.wait(&"alice", SECOND + Duration::from_secs(61)), Duration::ZERO);
    }

    #[test]
    fn who_cannot_solve_a_challenge_waits_from_where_it_would_be_asked() {
        let mut tallies = Tallies::new(ACCOUNT);
        let mut waits = Vec::new();
        for _ in 0..6 {
            tallies.failed("alice", SECOND);
            waits.push(tallies.wait_unsolved(&"alice", SECOND).as_secs());
        }

        assert_eq!(waits, [0, 0, 1, 2, 4, 8]);
    }

    #[test]
    fn a_challenge_comes_after_repeated_failures_and_goes_with_time() {
        let mut tallies = Tallies::new(ACCOUNT);
        let mut challenged = Vec::new();
        for _ in 0..4 {
            challenged.push(tallies.is_challenged(&"alice", SECOND));
            tallies.failed("alice", SECOND);
        }

        assert_eq!(challenged, [false, false, false, true]);
        assert!(!tallies.is_challenged(&"bob", SECOND));
        assert!(!tallies.is_challenged(&"alice", SECOND + FORGET));
    }

    #[test]
    fn a_solution_is_used_once_and_memory_of_it_is_bounded() {
        let mut spent = Spent::default();
        let solved = |nonce: u128, until| Solved { nonce, expires_at: UnixMillis(until) };

        assert!(spent.spend(solved(0, 10), UnixMillis(0)));
        assert!(!spent.spend(solved(0, 10), UnixMillis(0)));
        for nonce in 1..SPENT as u128 + 5 {
            assert!(spent.spend(solved(nonce, 100), UnixMillis(0)));
        }
        assert_eq!(spent.until.len(), SPENT);
        assert!(!spent.until.contains_key(&0), "the first to end made room");
        assert!(spent.spend(solved(u128::MAX, 300), UnixMillis(200)));
        assert_eq!(spent.until.len(), 1, "what is of no use is forgotten");
    }

    #[test]
    fn failures_are_forgotten_after_a_quiet_time() {
        let mut tallies = Tallies::new(ACCOUNT);
        for _ in 0..20 {
            tallies.failed("alice", SECOND);
        }
        tallies.failed("alice", SECOND + FORGET);

        assert_eq!(tallies.wait(&"alice", SECOND + FORGET), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_makes_room() {
        let mut tallies = Tallies::new(ADDRESS);
        for i in 0..REMEMBERED + 10 {
            tallies.failed(i, Duration::from_millis(u64::try_from(i).unwrap()));
        }

        assert_eq!(tallies.by_key.len(), REMEMBERED);
        assert!(!tallies.by_key.contains_key(&0));
        assert!(tallies.by_key.contains_key(&(REMEMBERED + 9)));
    }
}
