//! Pure: the last bytes that a terminal showed, and where they stand in all that it showed.

use std::collections::VecDeque;

/// The end of an output, with its place in the whole.
#[derive(Debug)]
pub(super) struct Backlog {
    kept: VecDeque<u8>,
    most: usize,
    total: u64,
}

impl Backlog {
    /// Keeps at most `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { kept: VecDeque::new(), most, total: 0 }
    }

    /// Takes in what was shown; the oldest bytes make room.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let tail = bytes.get(bytes.len().saturating_sub(self.most)..).unwrap_or_default();
        let over = (self.kept.len() + tail.len()).saturating_sub(self.most);
        self.kept.drain(..over);
        self.kept.extend(tail);
    }

    /// Returns where the first byte stands that can be shown to somebody who has seen `seen` bytes,
    /// and what follows from there. Somebody who claims more than there was sees all that is kept.
    pub(super) fn after(&self, seen: u64) -> (u64, Vec<u8>) {
        let oldest = self.total - self.kept.len() as u64;
        let from = if seen > self.total { oldest } else { seen.max(oldest) };
        let skip = usize::try_from(from - oldest).unwrap_or(usize::MAX);
        (from, self.kept.iter().skip(skip).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_who_comes_back_sees_what_was_missed() {
        let mut backlog = Backlog::new(8);
        backlog.push(b"abcd");

        assert_eq!(backlog.after(0), (0, b"abcd".to_vec()));
        assert_eq!(backlog.after(3), (3, b"d".to_vec()));
        assert_eq!(backlog.after(4), (4, Vec::new()));
    }

    #[test]
    fn only_the_end_is_kept_and_its_place_is_known() {
        let mut backlog = Backlog::new(4);
        backlog.push(b"abc");
        backlog.push(b"defg");

        assert_eq!(backlog.after(0), (3, b"defg".to_vec()));
        assert_eq!(backlog.after(5), (5, b"fg".to_vec()));

        backlog.push(b"0123456789");
        assert_eq!(backlog.after(0), (13, b"6789".to_vec()));
    }

    #[test]
    fn a_claim_beyond_the_end_shows_everything_that_is_kept() {
        let mut backlog = Backlog::new(8);
        backlog.push(b"abc");

        assert_eq!(backlog.after(u64::MAX), (0, b"abc".to_vec()));
    }
}
