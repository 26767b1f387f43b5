//! The beginning and the end of a conversation with a browser.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, close_code};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};

use super::frame::{self, Attach, Heard, ToBrowser};
use super::pump::End;

/// How long the last word and the end of the connection may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long a page that comes back may take to show its ticket.
const TICKET: Duration = Duration::from_secs(10);

/// Waits for the ticket of a page that comes back; nothing when it went away instead.
///
/// # Errors
///
/// What is said to it when it says something else.
pub(super) async fn ticket<S, E>(source: &mut S) -> Result<Option<Attach>, ToBrowser>
where
    S: Stream<Item = Result<Message, E>> + Unpin,
{
    let first = async {
        while let Some(Ok(message)) = source.next().await {
            match frame::from_browser(message) {
                Heard::Attach(attach) => return Ok(Some(attach)),
                Heard::Nothing => {}
                Heard::Leaves => return Ok(None),
                Heard::Refuse(error) => return Err(error),
                Heard::Pass(_) | Heard::Answer(_) | Heard::Hangup => return Err(expected()),
            }
        }
        Ok(None)
    };
    tokio::time::timeout(TICKET, first).await.unwrap_or_else(|_| Err(expected()))
}

fn expected() -> ToBrowser {
    let problem = "the first frame after ?attach=1 is {\"type\":\"attach\",\"ticket\":\"…\"}";
    ToBrowser::error("attach_expected", problem)
}

/// Tells a browser why its terminal was not opened.
pub(super) async fn refuse<S, K, E>(mut source: S, mut sink: K, error: ToBrowser)
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    say_goodbye(&mut source, &mut sink, &End::Program(error)).await;
}

/// Says why it ended, and waits for the browser's goodbye: a connection that is cut with unread
/// input loses what was said last. A browser that is slow is cut off.
pub(super) async fn say_goodbye<S, K, E>(source: &mut S, sink: &mut K, end: &End)
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    let _ = tokio::time::timeout(GOODBYE, part(source, sink, end)).await;
}

async fn part<S, K, E>(source: &mut S, sink: &mut K, end: &End)
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    let (last, code) = match end {
        End::Program(last @ ToBrowser::Exit { .. }) => (Some(last), close_code::NORMAL),
        End::Program(last) | End::Lost(last) if is_final(last) => (Some(last), close_code::POLICY),
        End::Program(last) | End::Lost(last) => (Some(last), close_code::ERROR),
        End::Refused(last) | End::RightEnded(last) => (Some(last), close_code::POLICY),
        End::BrowserLeft | End::BrowserSilent | End::HungUp => (None, close_code::NORMAL),
    };
    if let Some(last) = last
        && sink.send(Message::Text(last.text().into())).await.is_err()
    {
        return;
    }
    let close = CloseFrame { code, reason: "".into() };
    if sink.send(Message::Close(Some(close))).await.is_err() || *end == End::BrowserLeft {
        return;
    }
    while let Some(Ok(_)) = source.next().await {}
}

/// Whether it makes no sense to try again.
fn is_final(word: &ToBrowser) -> bool {
    match word {
        ToBrowser::Error { code, .. } => {
            ["taken_over", "terminal_gone", "attach_expected", "bad_frame"].contains(&code.as_str())
        }
        ToBrowser::Opened { .. } | ToBrowser::Pong | ToBrowser::Exit { .. } => false,
    }
}
