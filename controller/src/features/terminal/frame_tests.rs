use axum::body::Bytes;
use axum::extract::ws::Message;
use serde_json::{Value, json};
use tianqi_common::wire::stream::{ExecFrame, PtySize};

use super::frame::*;
use super::ticket::Ticket;

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
            Heard::Hangup => json!({ "hangup": true }),
            Heard::Attach(Attach { ticket, offset }) => {
                json!({ "attach": { "ticket": ticket, "offset": offset } })
            }
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
            Shown::Last(last) | Shown::Lost(last) => {
                assert_eq!(told(&last), vector["json"], "{vector}");
            }
            Shown::Word(word) => panic!("{vector}: {word:?}"),
        }
    }
}

fn kept(offset: u64, resumed: bool) -> ToBrowser {
    let ticket = Ticket::from("dGhpcyBpcyBhIHRpY2tldCBvZiBhIHRlcm1pbmFs");
    ToBrowser::Opened { kept: true, back: Some(Return { ticket, expires_s: 600, offset, resumed }) }
}

#[test]
fn what_is_told_is_written_as_the_vectors_say() {
    let message = "the instance does not run; start it first";
    let all = [
        ToBrowser::opened(),
        kept(0, false),
        kept(4_711, true),
        ToBrowser::Pong,
        ToBrowser::Exit { code: 0 },
        ToBrowser::error("not_running", message),
        ToBrowser::error("taken_over", TAKEN_OVER),
        ToBrowser::error("terminal_gone", GONE),
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
