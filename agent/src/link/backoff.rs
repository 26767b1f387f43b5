//! How long to wait before dialling again: full jitter, at most 30 s.

use std::time::Duration;

/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(30);
const FIRST: Duration = Duration::from_millis(500);
/// A connection that was served this long counts as a good one.
const GOOD: Duration = Duration::from_secs(30);
/// Doubling [`FIRST`] this often passes [`LONGEST`].
const MOST_DOUBLINGS: u32 = 6;

/// Counts failures since the last good connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Takes in a connection that ended after being served for `served`.
    pub fn ended_after(&mut self, served: Duration) {
        self.failures = if served >= GOOD { 0 } else { self.failures.saturating_add(1) };
    }

    /// Takes in an answer that another attempt will not change soon.
    pub fn refused(&mut self) {
        self.failures = MOST_DOUBLINGS;
    }

    /// Returns how long to wait; `random` is at least 0 and below 1. Every wait up to the ceiling is
    /// equally likely, so that a thousand agents do not come back at the same moment.
    #[must_use]
    pub fn delay(self, random: f64) -> Duration {
        let doublings = self.failures.min(MOST_DOUBLINGS);
        let ceiling = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_never_pass_thirty_seconds() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.delay(1.0), FIRST);
        for _ in 0..1_000 {
            backoff.ended_after(Duration::ZERO);
        }
        assert_eq!(backoff.delay(1.0), LONGEST);
        assert_eq!(backoff.delay(0.0), Duration::ZERO);
        assert_eq!(backoff.delay(0.5), LONGEST / 2);
    }

    #[test]
    fn a_good_connection_starts_over_and_a_short_one_does_not() {
        let mut backoff = Backoff::default();
        backoff.refused();
        backoff.ended_after(Duration::from_secs(29));
        assert_eq!(backoff.delay(1.0), LONGEST);
        backoff.ended_after(GOOD);
        assert_eq!(backoff.delay(1.0), FIRST);
    }
}
