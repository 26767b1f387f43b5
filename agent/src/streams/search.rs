//! Finding text in lines of output, in bounded memory.

use bytes::{Bytes, BytesMut};

use crate::docker::{Output, OutputKind, time_length};

/// Longest line that is looked at as one; a longer one is cut, and each piece is a line by itself.
pub(super) const LINE_MAX: usize = 64 << 10;

/// A text to look for, whatever its case.
#[derive(Clone, Debug)]
pub(super) struct Needle {
    lower: String,
    /// Both cases of its first byte, when it is ASCII alone and lines need no decoding.
    first: Option<(u8, u8)>,
}

impl Needle {
    /// Looks for `text`; nothing when it is empty and every line is wanted.
    pub(super) fn new(text: &str) -> Option<Self> {
        let lower = text.to_lowercase();
        let first = lower.bytes().next()?;
        let first = text.is_ascii().then_some((first, first.to_ascii_uppercase()));
        Some(Self { lower, first })
    }

    /// Whether a line holds the text. Bytes that are no UTF-8 match nothing but themselves as ASCII.
    pub(super) fn is_in(&self, line: &[u8]) -> bool {
        let Some((low, high)) = self.first else {
            return String::from_utf8_lossy(line).to_lowercase().contains(&self.lower);
        };
        let wanted = self.lower.as_bytes();
        let mut rest = line;
        while let Some(at) = rest.iter().position(|byte| *byte == low || *byte == high) {
            let Some(here) = rest.get(at..) else { return false };
            match here.get(..wanted.len()) {
                Some(part) if part.eq_ignore_ascii_case(wanted) => return true,
                Some(_) => rest = here.get(1..).unwrap_or_default(),
                None => return false,
            }
        }
        false
    }
}

/// A line of output, with its line end when it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it came from.
    pub kind: OutputKind,
    /// When it was written, as Docker wrote it before the line, with the space after it; empty when
    /// that was not asked for.
    pub at: Bytes,
    /// The line itself.
    pub bytes: Bytes,
}

/// Puts lines together from what Docker sends, which cuts long ones.
#[derive(Debug, Default)]
pub(super) struct Lines {
    has_times: bool,
    stdout: Partial,
    stderr: Partial,
}

#[derive(Debug, Default)]
struct Partial {
    at: Bytes,
    bytes: BytesMut,
}

impl Lines {
    /// Starts with nothing; `has_times` says that every message begins with its time.
    pub(super) fn new(has_times: bool) -> Self {
        Self { has_times, ..Self::default() }
    }

    /// Takes one message in and hands on the lines that are whole by it.
    pub(super) fn take(&mut self, message: Output, mut hand_on: impl FnMut(Line)) {
        let Output { kind, bytes: mut rest } = message;
        let partial = match kind {
            OutputKind::Stdout => &mut self.stdout,
            OutputKind::Stderr => &mut self.stderr,
        };
        if self.has_times {
            let at = rest.split_to(time_length(&rest));
            if partial.bytes.is_empty() {
                partial.at = at;
            }
        }
        while !rest.is_empty() {
            let room = LINE_MAX - partial.bytes.len();
            let end = rest.iter().take(room).position(|byte| *byte == b'\n').map(|at| at + 1);
            let length = end.unwrap_or(room.min(rest.len()));
            let piece = rest.split_to(length);
            let is_whole = end.is_some() || partial.bytes.len() + length == LINE_MAX;
            if !is_whole {
                partial.bytes.extend_from_slice(&piece);
            } else if partial.bytes.is_empty() {
                hand_on(Line { kind, at: partial.at.clone(), bytes: piece });
            } else {
                partial.bytes.extend_from_slice(&piece);
                let bytes = std::mem::take(&mut partial.bytes).freeze();
                hand_on(Line { kind, at: partial.at.clone(), bytes });
            }
        }
    }

    /// Hands on what has no line end, because nothing more comes.
    pub(super) fn finish(self, mut hand_on: impl FnMut(Line)) {
        for (kind, partial) in
            [(OutputKind::Stdout, self.stdout), (OutputKind::Stderr, self.stderr)]
        {
            if !partial.bytes.is_empty() {
                hand_on(Line { kind, at: partial.at, bytes: partial.bytes.freeze() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_in(text: &str, line: &str) -> bool {
        Needle::new(text).unwrap().is_in(line.as_bytes())
    }

    fn lines(has_times: bool, messages: &[&str]) -> Vec<(String, String)> {
        let mut lines = Lines::new(has_times);
        let mut found = Vec::new();
        let mut keep = |line: Line| {
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            found.push((text(&line.at), text(&line.bytes)));
        };
        for message in messages {
            let bytes = Bytes::copy_from_slice(message.as_bytes());
            lines.take(Output { kind: OutputKind::Stdout, bytes }, &mut keep);
        }
        lines.finish(&mut keep);
        found
    }

    #[test]
    fn text_is_found_whatever_its_case_in_any_script_and_at_either_end() {
        assert!(is_in("error", "an ERROR at the end: eRRor"));
        assert!(is_in("Error", "error"));
        assert!(is_in("aab", "aaab"));
        assert!(is_in("ÜBER", "die übersicht"));
        assert!(is_in("显存", "第 3 张卡显存不足"));
        assert!(!is_in("errors", "an error"));
        assert!(!is_in("b", ""));
        assert!(Needle::new("x").unwrap().is_in(b"\xff\xfeX"));
        assert!(Needle::new("").is_none());
    }

    #[test]
    fn times_before_the_parts_of_a_line_are_no_part_of_it() {
        let time = "2026-01-31T08:30:00.123456789Z ";
        let messages = [format!("{time}one "), format!("{time}line\n"), format!("{time}two\n")];
        let messages: Vec<_> = messages.iter().map(String::as_str).collect();

        let found = lines(true, &messages);

        let line = |text: &str| (time.to_owned(), text.to_owned());
        assert_eq!(found, [line("one line\n"), line("two\n")]);
        assert_eq!(lines(true, &["no time\n"]), [(String::new(), "no time\n".to_owned())]);
    }

    #[test]
    fn a_line_that_never_ends_is_cut_and_needs_no_memory() {
        let piece = "x".repeat(16 << 10);
        let mut lines = Lines::new(false);
        let mut lengths = Vec::new();

        for _ in 0..100 {
            let bytes = Bytes::copy_from_slice(piece.as_bytes());
            let message = Output { kind: OutputKind::Stderr, bytes };
            lines.take(message, |line| lengths.push(line.bytes.len()));
            assert!(lines.stderr.bytes.len() < LINE_MAX);
        }

        assert_eq!(lengths, [LINE_MAX; 25]);
    }

    proptest! {
        #[test]
        fn a_text_is_found_where_lower_case_finds_it(text in "[a-cA-C]{1,3}", line in "[a-dA-D]{0,30}") {
            let expected = line.to_lowercase().contains(&text.to_lowercase());

            prop_assert_eq!(is_in(&text, &line), expected);
        }

        #[test]
        fn lines_hold_what_was_sent_however_it_was_cut(text in "[a-c\n]{0,60}", at in 0_usize..60) {
            let at = at.min(text.len());
            let (one, two) = text.split_at(at);

            let found: String = lines(false, &[one, two]).into_iter().map(|line| line.1).collect();

            prop_assert_eq!(found, text);
        }
    }
}
