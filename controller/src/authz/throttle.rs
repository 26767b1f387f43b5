//! Slowing down guesses: failures are counted for each account and each address, in memory.
//!
//! After a few free tries every failure doubles the time until the next one is heard. The counts
//! belong to one task; a controller that starts again forgets them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use tianqi_common::clock::SharedClock;
use tokio::sync::{mpsc, oneshot};

use crate::core::http::proxy::counted_as;

/// Accounts and addresses that are remembered, each. When full, the one that failed longest ago
/// makes room.
const REMEMBERED: usize = 10_000;
/// A count is forgotten after so long without a failure.
const FORGET: Duration = Duration::from_mins(15);
/// Questions that may wait for the task; more wait in line.
const QUEUE: usize = 256;

/// Known accounts are few and somebody else may lock them on purpose, so the wait stays short.
const ACCOUNT: Rule = Rule { free: 5, longest: Duration::from_mins(1) };
/// An address may stand for a whole office.
const ADDRESS: Rule = Rule { free: 30, longest: Duration::from_mins(5) };

#[derive(Clone, Copy, Debug)]
struct Rule {
    free: u32,
    longest: Duration,
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

    /// Returns how long `key` must wait from `now` on.
    fn wait(&self, key: &K, now: Duration) -> Duration {
        let Some(tally) = self.by_key.get(key) else { return Duration::ZERO };
        let passed = now.saturating_sub(tally.last);
        if tally.failures < self.rule.free || passed >= FORGET {
            return Duration::ZERO;
        }
        let doublings = (tally.failures - self.rule.free).min(16);
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

enum Ask {
    Wait { account: String, address: IpAddr, answer: oneshot::Sender<Duration> },
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
            while let Some(ask) = inbox.recv().await {
                let now = clock.monotonic();
                match ask {
                    Ask::Wait { account, address, answer } => {
                        let wait = accounts.wait(&account, now).max(addresses.wait(&address, now));
                        // Whoever asked may be gone.
                        let _ = answer.send(wait);
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

    /// Returns how long `account` and `address` must wait before the next try; zero to go ahead.
    pub async fn wait(&self, account: &str, address: IpAddr) -> Duration {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Wait { account: account.to_owned(), address: counted_as(address), answer };
        self.tell(ask).await;
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
