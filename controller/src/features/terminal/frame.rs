//! The text frames of a terminal.

use serde::{Deserialize, Serialize};
use tianqi_common::wire::stream::PtySize;

/// Longest text frame from a browser, in bytes.
pub(super) const TEXT_MAX: usize = 1 << 10;
/// Largest number of columns or rows.
const SIZE_MAX: u16 = 10_000;

/// What a browser says in text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum FromBrowser {
    /// The terminal has another size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// What the controller says in text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToBrowser {
    /// The program ended.
    Exit {
        /// Its exit code; 128 + signal number when a signal ended it.
        code: i32,
    },
    /// The terminal could not be opened, or broke.
    Error {
        /// A stable word.
        code: String,
        /// One sentence.
        message: String,
    },
}

impl ToBrowser {
    /// An error from its parts.
    pub(super) fn error(code: &str, message: impl Into<String>) -> Self {
        Self::Error { code: code.to_owned(), message: message.into() }
    }

    /// Returns the frame's text.
    pub(super) fn text(&self) -> String {
        // Words and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Checks a terminal's size.
pub(super) fn size(cols: u16, rows: u16) -> Option<PtySize> {
    let is_fine = |n| (1..=SIZE_MAX).contains(&n);
    (is_fine(cols) && is_fine(rows)).then_some(PtySize { cols, rows })
}

/// Reads a text frame; nothing when it is not one of ours.
pub(super) fn read(text: &str) -> Option<PtySize> {
    if text.len() > TEXT_MAX {
        return None;
    }
    match serde_json::from_str(text).ok()? {
        FromBrowser::Resize { cols, rows } => size(cols, rows),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const VECTORS: &str = include_str!("../../../../tests/vectors/terminal.json");

    #[test]
    fn the_vectors_that_the_browser_tests_against_are_read_and_written_here_alike() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();

        for vector in vectors["from_browser"].as_array().unwrap() {
            let read = read(&vector["text"].to_string());
            let expected = size(
                u16::try_from(vector["cols"].as_u64().unwrap()).unwrap(),
                u16::try_from(vector["rows"].as_u64().unwrap()).unwrap(),
            );
            assert_eq!(read, expected, "{vector}");
        }
        for refused in vectors["refused"].as_array().unwrap() {
            assert_eq!(read(refused.as_str().unwrap()), None, "{refused}");
        }
        for vector in vectors["to_browser"].as_array().unwrap() {
            let frame = match vector["type"].as_str().unwrap() {
                "exit" => ToBrowser::Exit {
                    code: i32::try_from(vector["code"].as_i64().unwrap()).unwrap(),
                },
                _ => ToBrowser::error(
                    vector["code"].as_str().unwrap(),
                    vector["message"].as_str().unwrap(),
                ),
            };
            assert_eq!(&serde_json::from_str::<Value>(&frame.text()).unwrap(), vector);
        }
    }

    #[test]
    fn a_long_text_is_not_even_parsed() {
        let text =
            format!("{{\"type\":\"resize\",\"cols\":80,\"rows\":24{}}}", " ".repeat(TEXT_MAX));

        assert_eq!(read(&text), None);
    }
}
