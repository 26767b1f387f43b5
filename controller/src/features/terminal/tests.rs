use std::convert::Infallible;
use std::time::Duration;

use axum::extract::ws::Message;
use futures_util::stream::{BoxStream, StreamExt as _};
use serde_json::{Value, json};
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{ExecFrame, PtySize};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, split};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::PollSender;

use super::frame::ToBrowser;
use super::goodbye;
use super::pump::{self, Carried, End, Line, PING, SILENCE};
use crate::authz::watch::InUse;
use crate::core::error::Problem;
use crate::link::WorkStream;

/// A browser and an agent around one pump.
struct World {
    typed: mpsc::Sender<Message>,
    seen: mpsc::Receiver<Message>,
    to_pump: WriteHalf<DuplexStream>,
    from_pump: ReadHalf<DuplexStream>,
    end_right: oneshot::Sender<Problem>,
    in_use: InUse,
    pump: JoinHandle<Carried>,
}

impl World {
    async fn start() -> Self {
        Self::begin(false).await
    }

    /// The same with a program that outlives its stream.
    async fn kept() -> Self {
        Self::begin(true).await
    }

    async fn begin(is_kept: bool) -> Self {
        let (typed, source) = mpsc::channel(256);
        let (sink, seen) = mpsc::channel(256);
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        let (from_pump, to_pump) = split(ours);
        let (reader, writer) = split(theirs);
        let (end_right, right) = oneshot::channel();
        let in_use = InUse::default();
        let pump = tokio::spawn(pump::carry(
            messages(source),
            PollSender::new(sink),
            Line {
                work: WorkStream::from_halves(reader, writer),
                opened: ToBrowser::opened(),
                is_kept,
            },
            in_use.clone(),
            async { right.await.expect("the right is ended or the test is over") },
            async |_| ToBrowser::error("taken_over", "by a test"),
        ));
        let mut world = Self { typed, seen, to_pump, from_pump, end_right, in_use, pump };
        assert_eq!(world.told().await, json!({ "type": "opened", "kept": false }));
        world
    }

    async fn type_in(&self, message: impl Into<Message>) {
        self.typed.send(message.into()).await.unwrap();
    }

    async fn text(&self, text: &str) {
        self.type_in(Message::Text(text.into())).await;
    }

    async fn agent_says(&mut self, frame: ExecFrame) {
        frame::write(&mut self.to_pump, &frame, Limit::STREAM).await.unwrap();
    }

    async fn agent_hears(&mut self) -> Option<ExecFrame> {
        frame::read(&mut self.from_pump, Limit::STREAM).await.unwrap()
    }

    /// The next message that the browser sees, but pings.
    async fn sees(&mut self) -> Option<Message> {
        loop {
            match self.seen.recv().await {
                Some(Message::Ping(_)) => {}
                other => return other,
            }
        }
    }

    async fn told(&mut self) -> Value {
        match self.sees().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn close_code(&mut self) -> u16 {
        match self.sees().await {
            Some(Message::Close(Some(close))) => close.code,
            other => panic!("{other:?}"),
        }
    }
}

fn messages(receiver: mpsc::Receiver<Message>) -> BoxStream<'static, Result<Message, Infallible>> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|message| (Ok(message), receiver))
    })
    .boxed()
}

fn bytes(text: &'static str) -> Message {
    Message::Binary(text.as_bytes().into())
}

#[tokio::test]
async fn what_is_typed_reaches_the_program_and_its_output_the_browser_until_it_exits() {
    let mut world = World::start().await;

    world.type_in(bytes("ls\r")).await;
    world.text("{\"type\":\"resize\",\"cols\":132,\"rows\":43}").await;
    world.text("{\"type\":\"ping\"}").await;
    assert_eq!(world.agent_hears().await, Some(ExecFrame::Stdin("ls\r".into())));
    let size = PtySize { cols: 132, rows: 43 };
    assert_eq!(world.agent_hears().await, Some(ExecFrame::Resize(size)));
    assert_eq!(world.told().await, json!({ "type": "pong" }));
    world.agent_says(ExecFrame::Stdout(vec![1, 2].into())).await;
    assert_eq!(world.sees().await, Some(Message::Binary(vec![1, 2].into())));
    world.agent_says(ExecFrame::Exit { code: 7 }).await;

    assert_eq!(world.told().await, json!({ "type": "exit", "code": 7 }));
    assert_eq!(world.close_code().await, 1000);
    drop(world.typed);
    let carried = world.pump.await.unwrap();
    assert_eq!((carried.bytes_in, carried.bytes_out), (3, 2));
    assert_eq!(carried.end, End::Program(ToBrowser::Exit { code: 7 }));
}

#[tokio::test]
async fn what_is_typed_counts_as_a_use_and_what_the_program_writes_does_not() {
    let mut world = World::start().await;

    world.agent_says(ExecFrame::Stdout("tick".into())).await;
    world.sees().await;
    world.text("{\"type\":\"ping\"}").await;
    world.told().await;
    assert!(!world.in_use.take());
    world.type_in(bytes("x")).await;
    world.agent_hears().await;
    assert!(world.in_use.take());
    assert!(!world.in_use.take(), "one key counts once");
}

#[tokio::test]
async fn a_text_that_is_not_understood_ends_both_sides_with_an_error() {
    let mut world = World::start().await;

    world.text("rm -rf /").await;

    assert_eq!(world.told().await["code"], "bad_frame");
    assert_eq!(world.close_code().await, 1008);
    assert_eq!(world.agent_hears().await, None, "the agent is told to end the program");
}

#[tokio::test]
async fn a_browser_that_leaves_ends_the_program() {
    let mut world = World::start().await;

    world.type_in(Message::Close(None)).await;

    assert_eq!(world.agent_hears().await, None);
    assert_eq!(world.pump.await.unwrap().end, End::BrowserLeft);
}

#[tokio::test]
async fn a_program_that_vanishes_with_its_node_is_told_as_a_failure() {
    let mut world = World::start().await;
    let World { to_pump, from_pump, .. } = world;
    drop((to_pump, from_pump));
    let mut seen = Vec::new();

    while let Some(message) = world.seen.recv().await {
        seen.push(message);
        if matches!(seen.last(), Some(Message::Close(_))) {
            break;
        }
    }

    let told = seen.iter().filter_map(|message| message.to_text().ok()).collect::<String>();
    assert!(told.contains("node_lost"), "{told}");
}

#[tokio::test]
async fn a_right_that_ends_ends_both_sides_at_once_and_says_why() {
    let mut world = World::start().await;

    let problem = Problem::unauthorised("unauthorised", "this session has ended; log in again");
    world.end_right.send(problem).unwrap();

    let told = match world.seen.recv().await {
        Some(Message::Ping(_)) => world.seen.recv().await,
        other => other,
    };
    let Some(Message::Text(told)) = told else { panic!("{told:?}") };
    assert!(told.contains("unauthorised"), "{told}");
    let heard = frame::read::<ExecFrame, _>(&mut world.from_pump, Limit::STREAM).await.unwrap();
    assert_eq!(heard, None);
}

#[tokio::test]
async fn input_that_a_program_does_not_read_does_not_hold_up_its_output() {
    let mut world = World::start().await;

    for _ in 0..8 {
        world.type_in(Message::Binary(vec![b'x'; 32 << 10].into())).await;
    }
    for round in 0..200 {
        world.agent_says(ExecFrame::Stdout(vec![round; 8 << 10].into())).await;
        assert_eq!(world.sees().await, Some(Message::Binary(vec![round; 8 << 10].into())));
    }
}

#[tokio::test]
async fn a_burst_arrives_whole_and_in_order_before_the_exit() {
    let mut world = World::start().await;
    let sent: Vec<u8> =
        (0..1_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();

    let mut to_pump = world.to_pump;
    let burst = sent.clone();
    tokio::spawn(async move {
        for piece in burst.chunks(64 << 10) {
            let frame = ExecFrame::Stdout(piece.to_vec().into());
            frame::write(&mut to_pump, &frame, Limit::STREAM).await.unwrap();
        }
        let exit = ExecFrame::Exit { code: 0 };
        frame::write(&mut to_pump, &exit, Limit::STREAM).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut got = Vec::new();
    let told = loop {
        let message = world.seen.recv().await.unwrap();
        if let Message::Binary(piece) = &message {
            got.extend_from_slice(piece);
        } else if !matches!(message, Message::Ping(_)) {
            break message;
        }
    };

    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    assert_eq!(told.to_text().unwrap(), "{\"type\":\"exit\",\"code\":0}");
}

#[tokio::test]
async fn keys_typed_after_the_program_ended_do_not_hide_its_exit() {
    let mut world = World::start().await;
    let World { from_pump, mut to_pump, .. } = world;
    let exit = ExecFrame::Exit { code: 3 };
    frame::write(&mut to_pump, &exit, Limit::STREAM).await.unwrap();
    drop((from_pump, to_pump));
    for _ in 0..16 {
        // The pump may be over already.
        let _ = world.typed.send(bytes("exit\r")).await;
    }

    let told = loop {
        let message = world.seen.recv().await.unwrap();
        if !matches!(message, Message::Ping(_)) {
            break message;
        }
    };

    assert_eq!(told.to_text().unwrap(), "{\"type\":\"exit\",\"code\":3}");
}

#[tokio::test(start_paused = true)]
async fn a_browser_is_pinged_and_given_up_when_it_is_silent() {
    let mut world = World::start().await;
    let began = tokio::time::Instant::now();
    let mut pings = 0;

    while let Some(message) = world.seen.recv().await {
        if matches!(message, Message::Close(_)) {
            break;
        }
        assert!(matches!(message, Message::Ping(_)), "{message:?}");
        pings += 1;
    }

    assert!(began.elapsed() >= SILENCE && began.elapsed() < SILENCE + Duration::from_secs(2));
    assert!(pings >= SILENCE.as_secs() / PING.as_secs() - 1, "{pings} pings");
    assert_eq!(world.agent_hears().await, None);
    drop(world.typed);
    assert_eq!(world.pump.await.unwrap().end, End::BrowserSilent);
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_answers_pings_is_kept() {
    let world = World::start().await;

    for _ in 0..20 {
        tokio::time::sleep(PING).await;
        world.type_in(Message::Pong(Vec::new().into())).await;
    }

    assert!(!world.pump.is_finished());
}

#[tokio::test]
async fn a_browser_that_leaves_a_kept_program_says_nothing_of_it_to_the_agent() {
    let mut world = World::kept().await;

    world.type_in(bytes("top\r")).await;
    world.type_in(Message::Close(None)).await;

    assert_eq!(world.agent_hears().await, Some(ExecFrame::Stdin("top\r".into())));
    assert_eq!(world.agent_hears().await, None, "no hang-up");
    let carried = world.pump.await.unwrap();
    assert_eq!((carried.end, carried.is_hung_up), (End::BrowserLeft, false));
}

#[tokio::test]
async fn a_hangup_reaches_a_kept_program_and_its_exit_comes_back() {
    let mut world = World::kept().await;

    world.text("{\"type\":\"hangup\"}").await;
    assert_eq!(world.agent_hears().await, Some(ExecFrame::Hangup));
    world.agent_says(ExecFrame::Exit { code: 129 }).await;

    assert_eq!(world.told().await, json!({ "type": "exit", "code": 129 }));
    drop(world.typed);
    assert!(world.pump.await.unwrap().is_hung_up);
}

#[tokio::test]
async fn a_hangup_of_a_program_that_is_not_kept_ends_its_stream() {
    let mut world = World::start().await;

    world.text("{\"type\":\"hangup\"}").await;

    assert_eq!(world.agent_hears().await, None);
    assert_eq!(world.close_code().await, 1000);
    drop(world.typed);
    assert_eq!(world.pump.await.unwrap().end, End::HungUp);
}

#[tokio::test]
async fn a_right_that_ends_hangs_a_kept_program_up_before_its_stream_is_dropped() {
    let world = World::kept().await;

    let problem = Problem::unauthorised("unauthorised", "this session has ended; log in again");
    let World { end_right, mut to_pump, mut from_pump, pump, typed, seen, .. } = world;
    end_right.send(problem).unwrap();

    let heard = frame::read::<ExecFrame, _>(&mut from_pump, Limit::STREAM).await.unwrap();
    assert_eq!(heard, Some(ExecFrame::Hangup));
    // An agent that still has output to send is not cut off before it has read that.
    let late = ExecFrame::Stdout("late".into());
    frame::write(&mut to_pump, &late, Limit::STREAM).await.unwrap();
    drop((to_pump, typed));
    let rest = frame::read::<ExecFrame, _>(&mut from_pump, Limit::STREAM).await;
    assert!(!matches!(rest, Ok(Some(_))), "{rest:?}");
    assert!(pump.await.unwrap().is_hung_up);
    drop(seen);
}

#[tokio::test]
async fn a_right_that_ends_while_a_kept_program_takes_no_input_leaves_the_hangup_to_another_stream()
{
    let mut world = World::kept().await;
    // More than stands between the pump and a program that does not read.
    for _ in 0..4 {
        world.type_in(Message::Binary(vec![b'x'; 32 << 10].into())).await;
    }
    // Output shows that the input is under way.
    world.agent_says(ExecFrame::Stdout("busy".into())).await;
    world.sees().await;

    let problem = Problem::conflict("stopped", "the instance was stopped");
    world.end_right.send(problem).unwrap();

    let carried = world.pump.await.unwrap();
    assert!(!carried.is_hung_up);
    assert!(matches!(carried.end, End::RightEnded(_)), "{carried:?}");
}

#[tokio::test]
async fn a_kept_program_whose_stream_ends_is_told_what_its_row_says() {
    let world = World::kept().await;
    let World { to_pump, from_pump, mut seen, .. } = world;
    drop((to_pump, from_pump));

    let (mut told, mut code) = (String::new(), 0);
    while let Some(message) = seen.recv().await {
        match message {
            Message::Text(text) => told = text.to_string(),
            Message::Close(Some(close)) => {
                code = close.code;
                break;
            }
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(None) => {}
        }
    }

    assert!(told.contains("taken_over"), "{told}");
    assert_eq!(code, 1008, "a page that was sent away does not come back by itself");
}

#[tokio::test]
async fn an_attach_in_the_middle_is_refused() {
    let mut world = World::kept().await;

    world.text("{\"type\":\"attach\",\"ticket\":\"x\"}").await;

    assert_eq!(world.told().await["code"], "bad_frame");
    assert_eq!(world.close_code().await, 1008);
    assert_eq!(world.agent_hears().await, None, "it is left, not ended");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_shows_no_ticket_is_not_waited_for() {
    let nothing = messages(mpsc::channel(1).1);
    let silent = futures_util::stream::pending::<Result<Message, Infallible>>();
    let keys = futures_util::stream::iter([Ok::<_, Infallible>(bytes("ls"))]);

    let mut nothing = nothing;
    assert_eq!(goodbye::ticket(&mut nothing).await, Ok(None), "it went away");
    for mut source in [silent.boxed(), keys.boxed()] {
        let refused = goodbye::ticket(&mut source).await.unwrap_err();
        assert!(refused.text().contains("attach_expected"), "{refused:?}");
    }
}
