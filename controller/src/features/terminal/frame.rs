//! What each frame means. Pure: a message in, what to do out.

use axum::body::Bytes;
use axum::extract::ws::Message;
use serde::{Deserialize, Serialize};
use tianqi_common::wire::frame::CHUNK;
use tianqi_common::wire::stream::{ExecFrame, PtySize};

use super::ticket::Ticket;
use crate::core::error::Problem;

/// Most bytes of a binary frame from a browser.
pub(super) const BINARY_MAX: usize = CHUNK;
/// Most bytes of a text frame from a browser.
pub(super) const TEXT_MAX: usize = 1 << 10;
/// Largest number of columns or rows.
const SIZE_MAX: u16 = 10_000;

/// What a browser says in text.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum FromBrowser {
    /// The terminal has another size.
    Resize { cols: u16, rows: u16 },
    /// Is anybody there?
    Ping {},
    /// End the program; without this word a page that goes only leaves it.
    Hangup {},
    /// Come back to a terminal; the first frame after `?attach=1`.
    Attach {
        /// From the last `opened`.
        ticket: Ticket,
        /// Bytes that the page has seen; left out by a page that has nothing of it any more.
        offset: Option<u64>,
    },
}

/// What a page says to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attach {
    /// Its ticket.
    pub ticket: Ticket,
    /// Bytes that it has seen; nothing when the whole screen is wanted.
    pub offset: Option<u64>,
}

/// How one comes back to a program that is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Return {
    /// Good for one return.
    pub ticket: Ticket,
    /// Seconds that it is kept after its page has gone.
    pub expires_s: u64,
    /// Bytes that it had shown before what follows.
    pub offset: u64,
    /// Whether this is a return.
    pub resumed: bool,
}

/// What the controller says in text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToBrowser {
    /// The program runs; the first frame.
    Opened {
        /// Whether one can come back to it; its node may have no place to keep it.
        kept: bool,
        /// How.
        #[serde(flatten)]
        back: Option<Return>,
    },
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
    /// The program is to end.
    Hangup,
    /// The page comes back to a terminal.
    Attach(Attach),
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
    /// The way to the program ended; this is what is known of why.
    Lost(ToBrowser),
}

impl ToBrowser {
    /// An error from its parts.
    pub(super) fn error(code: &str, message: impl Into<String>) -> Self {
        Self::Error { code: code.to_owned(), message: message.into() }
    }

    /// The first word of a program to which nobody can come back.
    pub(super) fn opened() -> Self {
        Self::Opened { kept: false, back: None }
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
        Ok(FromBrowser::Hangup {}) => Heard::Hangup,
        Ok(FromBrowser::Attach { ticket, offset }) => Heard::Attach(Attach { ticket, offset }),
        Ok(FromBrowser::Resize { cols, rows }) => match size(cols, rows) {
            Some(size) => Heard::Pass(ExecFrame::Resize(size)),
            None => Heard::Refuse(ToBrowser::error(
                "bad_size",
                format!("columns and rows are 1 to {SIZE_MAX} each, not {cols} and {rows}"),
            )),
        },
        Err(_) => Heard::Refuse(ToBrowser::error(
            "bad_frame",
            "a text frame is a resize, a ping or a hangup as JSON; keys are sent as binary frames",
        )),
    }
}

/// Decides what a frame of an agent means.
pub(super) fn from_agent(frame: ExecFrame) -> Shown {
    match frame {
        ExecFrame::Stdout(bytes) | ExecFrame::Stderr(bytes) => Shown::Bytes(bytes),
        ExecFrame::Exit { code } => Shown::Last(ToBrowser::Exit { code }),
        ExecFrame::Failed { message } => Shown::Lost(ToBrowser::error("failed", message)),
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

/// What a page is told whose place another one takes.
pub(super) const TAKEN_OVER: &str = "another page came back to this terminal and has it now";
/// What a page is told that comes too late, whatever the reason: a stranger learns nothing by it.
pub(super) const GONE: &str = "this terminal is gone: its program ended, nobody came back in \
     time, or the ticket is an old one; open another";
