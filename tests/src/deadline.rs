//! Waiting for something real, with an end.

use std::time::{Duration, Instant};

/// A moment after which waiting is a failure.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    span: Duration,
}

impl Deadline {
    /// Starts a deadline that ends after `span`.
    #[must_use]
    pub fn after(span: Duration) -> Self {
        Self { end: Instant::now() + span, span }
    }

    /// Sleeps a little before the next look.
    ///
    /// # Panics
    ///
    /// When the deadline is over, with `what` still being the case.
    pub fn pause(&self, what: &str) {
        self.check(what);
        std::thread::sleep(Duration::from_millis(20));
    }

    /// The same for asynchronous tests.
    ///
    /// # Panics
    ///
    /// When the deadline is over, with `what` still being the case.
    pub async fn pause_async(&self, what: &str) {
        self.check(what);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Looks whether it is over, for callers that pause in their own way.
    ///
    /// # Panics
    ///
    /// When it is, with `what` still being the case.
    pub fn check(&self, what: &str) {
        assert!(!self.is_over(), "after {:?}: {what}", self.span);
    }
}
