//! What each frame means. Pure: a message in, what to do out.

use axum::body::Bytes;
use axum::extract::ws::Message;
use serde::{Deserialize, Serialize};
use tianqi_common::wire::frame::CHUNK;
use tianqi_common::wire::stream::{ExecFrame, PtySize};

use crate::core::error::Problem;

/// Most bytes of a binary frame from a browser.
pub(super) const BINARY_MAX: usize = CHUNK;
/// Most bytes of a text frame from a browser.
pub(super) const TEXT_MAX: usize = 1 << 10;
/// Largest number of columns or rows.
const SIZE_MAX: u16 = 10_000;

/// What a browser says in text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum FromBrowser {
    /// The terminal has another size.
    Resize { cols: u16, rows: u16 },
    /// Is anybody there?
    Ping {},
}

/// What the controller says in text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToBrowser {
    /// The program runs; the first frame.
    Opened,
    /// The answer to a ping.
    Pong,
    /// The program ended; the last frame.
    Exit {
        /// Its exit code; 128 + signal number when a signal ended it.
        code: i32,
    },
    /// The terminal could not be opened, or ended without the program; the last frame.
    Error {
        /// A stable word.
        code: String,
        /// One sentence.
        message: String,
    },
}

/// What to do with a message of a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Pass it to the program.
    Pass(ExecFrame),
    /// Answer it.
    Answer(ToBrowser),
    /// It only shows that the browser lives.
    Nothing,
    /// The browser goes.
    Leaves,
    /// Say this and end.
    Refuse(ToBrowser),
}

/// What to do with a frame of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Show these bytes.
    Bytes(Bytes),
    /// Say this; more follows.
    Word(ToBrowser),
    /// Say this and end.
    Last(ToBrowser),
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

impl From<Problem> for ToBrowser {
    fn from(problem: Problem) -> Self {
        Self::error(problem.code, problem.detail)
    }
}

/// Checks a terminal's size.
pub(super) fn size(cols: u16, rows: u16) -> Option<PtySize> {
    let is_fine = |n| (1..=SIZE_MAX).contains(&n);
    (is_fine(cols) && is_fine(rows)).then_some(PtySize { cols, rows })
}

/// Decides what a message of a browser means.
pub(super) fn from_browser(message: Message) -> Heard {
    match message {
        Message::Binary(bytes) if bytes.len() > BINARY_MAX => {
            let problem = format!("a binary frame has at most {BINARY_MAX} bytes");
            Heard::Refuse(ToBrowser::error("too_large", problem))
        }
        Message::Binary(bytes) => Heard::Pass(ExecFrame::Stdin(bytes)),
        Message::Text(text) => from_text(&text),
        Message::Ping(_) | Message::Pong(_) => Heard::Nothing,
        Message::Close(_) => Heard::Leaves,
    }
}

fn from_text(text: &str) -> Heard {
    if text.len() > TEXT_MAX {
        let problem = format!("a text frame has at most {TEXT_MAX} bytes");
        return Heard::Refuse(ToBrowser::error("too_large", problem));
    }
    match serde_json::from_str(text) {
        Ok(FromBrowser::Ping {}) => Heard::Answer(ToBrowser::Pong),
        Ok(FromBrowser::Resize { cols, rows }) => match size(cols, rows) {
            Some(size) => Heard::Pass(ExecFrame::Resize(size)),
            None => Heard::Refuse(ToBrowser::error(
                "bad_size",
                format!("columns and rows are 1 to {SIZE_MAX} each, not {cols} and {rows}"),
            )),
        },
        Err(_) => Heard::Refuse(ToBrowser::error(
            "bad_frame",
            "a text frame is a resize or a ping as JSON; keys are sent as binary frames",
        )),
    }
}

/// Decides what a frame of an agent means.
pub(super) fn from_agent(frame: ExecFrame) -> Shown {
    match frame {
        ExecFrame::Stdout(bytes) | ExecFrame::Stderr(bytes) => Shown::Bytes(bytes),
        ExecFrame::Exit { code } => Shown::Last(ToBrowser::Exit { code }),
        ExecFrame::Failed { message } => Shown::Last(ToBrowser::error("failed", message)),
        ExecFrame::Stdin(_)
        | ExecFrame::StdinEnd
        | ExecFrame::Resize(_)
        | ExecFrame::Signal(_)
        | ExecFrame::Hangup
        | ExecFrame::Position { .. } => {
            Shown::Last(ToBrowser::error("failed", "the agent sent what only it may receive"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vectors() -> Value {
        let text = include_str!("../../../../tests/vectors/terminal.json");
        serde_json::from_str(text).unwrap()
    }

    fn bytes(hex: &Value) -> Bytes {
        hex::decode(hex.as_str().unwrap()).unwrap().into()
    }

    fn told(frame: &ToBrowser) -> Value {
        serde_json::from_str(&frame.text()).unwrap()
    }

    #[test]
    fn each_message_of_the_vectors_means_what_they_say() {
        for vector in vectors()["from_browser"].as_array().unwrap() {
            let message = match vector["text"].as_str() {
                Some(text) => Message::Text(text.into()),
                None => Message::Binary(bytes(&vector["binary"])),
            };

            let gives = match from_browser(message) {
                Heard::Pass(ExecFrame::Stdin(bytes)) => json!({ "stdin": hex::encode(bytes) }),
                Heard::Pass(ExecFrame::Resize(PtySize { cols, rows })) => {
                    json!({ "resize": { "cols": cols, "rows": rows } })
                }
                Heard::Answer(answer) => json!({ "answer": told(&answer) }),
                Heard::Refuse(error) => json!({ "error": told(&error)["code"] }),
                heard @ (Heard::Pass(_) | Heard::Nothing | Heard::Leaves) => {
                    panic!("{vector}: {heard:?}")
                }
            };

            assert_eq!(gives, vector["gives"], "{vector}");
        }
    }

    #[test]
    fn each_frame_of_an_agent_is_shown_as_the_vectors_say() {
        for vector in vectors()["to_browser"].as_array().unwrap() {
            let (kind, value) = vector["agent"].as_object().unwrap().iter().next().unwrap();
            let frame = match kind.as_str() {
                "stdout" => ExecFrame::Stdout(bytes(value)),
                "stderr" => ExecFrame::Stderr(bytes(value)),
                "stdin" => ExecFrame::Stdin(bytes(value)),
                "exit" => ExecFrame::Exit { code: value.as_i64().unwrap().try_into().unwrap() },
                _ => ExecFrame::Failed { message: value.as_str().unwrap().to_owned() },
            };

            match from_agent(frame) {
                Shown::Bytes(shown) => assert_eq!(shown, bytes(&vector["binary"]), "{vector}"),
                Shown::Last(last) => assert_eq!(told(&last), vector["json"], "{vector}"),
                Shown::Word(word) => panic!("{vector}: {word:?}"),
            }
        }
    }

    #[test]
    fn what_is_told_is_written_as_the_vectors_say() {
        let message = "the instance does not run; start it first";
        let all = [
            ToBrowser::Opened,
            ToBrowser::Pong,
            ToBrowser::Exit { code: 0 },
            ToBrowser::error("not_running", message),
        ];

        let told: Vec<_> = all.iter().map(told).collect();

        assert_eq!(Value::from(told), vectors()["told"]);
    }

    #[test]
    fn frames_over_their_limits_are_refused() {
        let long = format!("{{\"type\":\"ping\"{}}}", " ".repeat(TEXT_MAX));
        let big = Bytes::from(vec![0; BINARY_MAX + 1]);

        for message in [Message::Text(long.into()), Message::Binary(big)] {
            let heard = from_browser(message);
            assert!(
                matches!(&heard, Heard::Refuse(ToBrowser::Error { code, .. }) if code == "too_large")
            );
        }
        let full = Message::Binary(vec![0; BINARY_MAX].into());
        assert!(matches!(from_browser(full), Heard::Pass(_)));
    }
}
