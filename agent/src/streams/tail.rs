//! The last lines of something that is longer, in bounded memory.

use std::collections::VecDeque;

use super::search::Line;
use crate::docker::OutputKind;

/// Most bytes of lines that are kept, however many are wanted; the oldest go first.
const BYTES_MAX: usize = 8 << 20;
/// What keeping a line costs besides its bytes.
const OVERHEAD: usize = 64;

/// The last lines.
#[derive(Debug)]
pub(super) struct Tail {
    most: usize,
    bytes: usize,
    lines: VecDeque<(OutputKind, Box<[u8]>)>,
}

impl Tail {
    /// Keeps at most this many.
    pub(super) fn new(most: u32) -> Self {
        Self { most: most as usize, bytes: 0, lines: VecDeque::new() }
    }

    /// Keeps a line, and lets go of the oldest where there are too many. The line is copied: it may be
    /// a few bytes of a piece of many.
    pub(super) fn add(&mut self, line: Line, shows_times: bool) {
        let at = if shows_times { line.at.as_ref() } else { b"" };
        let end: &[u8] = if line.bytes.ends_with(b"\n") { b"" } else { b"\n" };
        let bytes = [at, &line.bytes, end].concat().into_boxed_slice();
        self.bytes += bytes.len() + OVERHEAD;
        self.lines.push_back((line.kind, bytes));
        while self.lines.len() > self.most || self.bytes > BYTES_MAX {
            let Some((_, gone)) = self.lines.pop_front() else { return };
            self.bytes -= gone.len() + OVERHEAD;
        }
    }

    /// Returns them, the oldest first.
    pub(super) fn into_lines(self) -> impl Iterator<Item = (OutputKind, Box<[u8]>)> {
        self.lines.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn line(text: &str) -> Line {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        Line { kind: OutputKind::Stdout, at: Bytes::from_static(b"noon "), bytes }
    }

    #[test]
    fn the_last_lines_are_kept_and_each_has_an_end() {
        let mut tail = Tail::new(2);

        tail.add(line("one\n"), false);
        tail.add(line("two\n"), false);
        tail.add(line("three"), true);

        let kept: Vec<_> = tail.into_lines().map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(kept, [b"two\n".to_vec(), b"noon three\n".to_vec()]);
    }

    #[test]
    fn many_long_lines_take_no_more_than_their_bound() {
        let mut tail = Tail::new(100_000);
        let long = "x".repeat(64 << 10);

        for _ in 0..1_000 {
            tail.add(line(&long), false);
            assert!(tail.bytes <= BYTES_MAX);
        }

        let held: usize = tail.lines.iter().map(|(_, line)| line.len() + OVERHEAD).sum();
        assert_eq!(held, tail.bytes);
        assert!(tail.lines.len() > 100);
    }
}
