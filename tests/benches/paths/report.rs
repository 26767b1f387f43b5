//! What is printed: one block for each figure, and at the end which bars are met.

use std::time::Duration;

/// One figure beside its peer.
#[derive(Debug, Default)]
pub struct Line {
    /// What was measured.
    pub what: &'static str,
    /// Our figure: a median, or a rate over many.
    pub ours: String,
    /// The peer's figure and where it is from.
    pub peer: String,
    /// Ours over the peer's, or the difference.
    pub ratio: String,
    /// What is asked for; empty for a figure that is shown for comparison.
    pub bar: &'static str,
    /// Whether it is met.
    pub met: bool,
    /// Why it is not, as far as it is known; printed only then.
    pub reason: &'static str,
}

/// Everything printed so far.
#[derive(Debug, Default)]
pub struct Report {
    met: usize,
    open: Vec<String>,
}

impl Report {
    /// Prints one figure.
    pub fn add(&mut self, line: &Line) {
        println!("\n{}", line.what);
        println!("    ours    {}", line.ours);
        println!("    beside  {}", line.peer);
        if !line.ratio.is_empty() {
            println!("    ratio   {}", line.ratio);
        }
        if line.bar.is_empty() {
            return;
        }
        if line.met {
            self.met += 1;
            println!("    bar     {}: met", line.bar);
            return;
        }
        let reason = if line.reason.is_empty() { "" } else { "; " };
        println!("    bar     {}: NOT met{reason}{}", line.bar, line.reason);
        self.open.push(format!("{}: NOT met ({}; bar {})", line.what, line.ours, line.bar));
    }

    /// Prints that a figure could not be taken.
    pub fn not_measured(&mut self, what: &str, why: &str) {
        println!("\n{what}\n    NOT measured: {why}");
        self.open.push(format!("{what}: NOT measured"));
    }

    /// Prints the end of the report. Returns whether every bar is met.
    #[must_use]
    pub fn end(&self) -> bool {
        println!("\n{} bars met, {} not", self.met, self.open.len());
        for line in &self.open {
            println!("    {line}");
        }
        self.open.is_empty()
    }
}

/// Times of one thing done many times.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Sorts them.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the time that `percent` of them stay under; 50 is the median.
    pub fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }

    /// Returns the median in milliseconds.
    pub fn median_ms(&self) -> f64 {
        ms(self.at(50))
    }
}

/// Returns milliseconds with their fraction.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Returns a small count as a number to divide by.
pub fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap())
}
