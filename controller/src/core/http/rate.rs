//! Token buckets: how often something may be done, for each account or address.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Keys that are remembered in each half of the memory. A key that is forgotten begins anew, which
/// helps only somebody who has more addresses than this.
const HALF: usize = 10_000;

/// How often something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; 0 for as often as one likes.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// What is left, in thousandths of a request.
    left: u64,
    /// When that was counted, on the monotonic clock.
    at: Duration,
}

/// The buckets of one kind of key. Memory is bounded: when the young half is full it becomes the old
/// half, and what was in the old half and is not used again is forgotten.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, young: HashMap::new(), old: HashMap::new() }
    }

    /// Takes one from the bucket of `key`, or says how long to wait for the next.
    fn take(&mut self, key: K, now: Duration) -> Result<(), Duration> {
        const ONE: u64 = 1_000;
        let full = u64::from(self.rate.burst.max(1)) * ONE;
        let known = self.young.remove(&key).or_else(|| self.old.remove(&key));
        let Bucket { left, at } = known.unwrap_or(Bucket { left: full, at: now });
        // Per millisecond a thousandth of a request comes back for each request per second.
        let passed = u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX);
        let earned = passed.saturating_mul(u64::from(self.rate.per_second));
        let left = left.saturating_add(earned).min(full);
        // What is less than a millisecond is counted the next time.
        let at = at.saturating_add(Duration::from_millis(passed));
        let outcome = match left.checked_sub(ONE) {
            Some(rest) => Ok(rest),
            None => {
                let missing = (ONE - left).div_ceil(u64::from(self.rate.per_second.max(1)));
                Err(Duration::from_millis(missing))
            }
        };
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, Bucket { left: outcome.unwrap_or(left), at });
        outcome.map(|_| ())
    }
}

/// Buckets that requests share. The lock is held for a count, never while anything is waited for.
#[derive(Debug)]
pub struct Limiter<K>(Option<Arc<Mutex<Buckets<K>>>>);

impl<K> Clone for Limiter<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq> Limiter<K> {
    /// Gives every key the same rate; a rate of 0 limits nothing.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self((rate.per_second > 0).then(|| Arc::new(Mutex::new(Buckets::new(rate)))))
    }

    /// Counts one for `key` at `now`, a time of the monotonic clock.
    ///
    /// # Errors
    ///
    /// How long to wait, when `key` has used up what it may.
    pub fn take(&self, key: K, now: Duration) -> Result<(), Duration> {
        let Some(buckets) = &self.0 else { return Ok(()) };
        buckets.lock().unwrap_or_else(PoisonError::into_inner).take(key, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_is_let_through_and_then_one_for_each_part_of_a_second() {
        let mut buckets = Buckets::new(RATE);

        for _ in 0..5 {
            assert_eq!(buckets.take("a", ms(0)), Ok(()));
        }
        assert_eq!(buckets.take("a", ms(0)), Err(ms(100)));
        assert_eq!(buckets.take("a", ms(60)), Err(ms(40)));
        assert_eq!(buckets.take("a", ms(100)), Ok(()));
        assert_eq!(buckets.take("a", ms(100)), Err(ms(100)));
        assert_eq!(buckets.take("b", ms(100)), Ok(()), "another key is not concerned");
        for _ in 0..5 {
            assert_eq!(buckets.take("a", ms(60_000)), Ok(()));
        }
        assert!(buckets.take("a", ms(60_000)).is_err(), "a long rest saves up one burst, not more");
    }

    #[test]
    fn a_rate_of_nothing_limits_nothing() {
        let limiter = Limiter::new(Rate { per_second: 0, burst: 1 });

        assert!((0..1_000).all(|_| limiter.take("a", ms(0)).is_ok()));
    }

    #[test]
    fn memory_is_bounded_and_who_keeps_asking_is_not_forgotten() {
        let mut buckets = Buckets::new(Rate { per_second: 1, burst: 1 });
        assert!(buckets.take(usize::MAX, ms(0)).is_ok());

        for key in 0..5 * HALF {
            assert!(buckets.take(key, ms(0)).is_ok());
            if key % 1_000 == 0 {
                assert!(buckets.take(usize::MAX, ms(0)).is_err(), "forgotten at {key}");
            }
        }

        assert!(buckets.young.len() <= HALF && buckets.old.len() <= HALF);
    }

    proptest! {
        #[test]
        fn no_course_of_requests_gets_more_than_burst_and_rate(
            per_second in 1_u32..1_000,
            burst in 1_u32..100,
            gaps in proptest::collection::vec(0_u64..50, 1..300),
        ) {
            let mut buckets = Buckets::new(Rate { per_second, burst });
            let (mut now, mut granted) = (0_u64, 0_u64);
            for gap in gaps {
                now += gap;
                match buckets.take((), ms(now)) {
                    Ok(()) => granted += 1,
                    Err(wait) => prop_assert!(!wait.is_zero()),
                }
                let most = u64::from(burst) + now * u64::from(per_second) / 1_000;
                prop_assert!(granted <= most, "{granted} of {most} after {now} ms");
            }
        }
    }
}
