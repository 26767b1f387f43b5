use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tianqi_common::clock::{ManualClock, UnixMillis};
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::NodeSettings;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{
    CheckReport, LogFrame, LogQuery, Logs, StreamOpen, StreamRefusal, StreamReply,
};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, split};
use tokio::sync::Notify;

use super::{SettingsCheck, Streams};
use crate::docker::fake::FakeDocker;
use crate::docker::{
    CreateContainer, Docker as _, DockerError, DockerHandle, LogRequest, Output, OutputKind, label,
};
use crate::guest::Guests;

/// The agent's clock in every test.
const NOON: &str = "2027-01-15T08:00:00.000000000Z";
const START: UnixMillis = UnixMillis(1_800_000_000_000);

struct NoCheck;

impl SettingsCheck for NoCheck {
    fn check(&self, _: NodeSettings) -> BoxFuture<'_, CheckReport> {
        panic!("reading an output tries no settings")
    }
}

struct World {
    docker: FakeDocker,
    streams: Streams,
    instance: InstanceId,
    asked: Arc<Mutex<Vec<LogRequest>>>,
}

/// What a reading is.
struct Reading {
    from_agent: ReadHalf<DuplexStream>,
    to_agent: WriteHalf<DuplexStream>,
    served: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let clock = Arc::new(ManualClock::at(START));
        let docker = FakeDocker::new(clock.clone());
        let handle = DockerHandle::new(Arc::new(docker.clone()));
        let guests = Guests::new("/nonexistent/guests".into(), handle.clone(), clock.clone());
        let streams =
            Streams::new(handle, guests, Arc::new(Notify::new()), Arc::new(NoCheck), clock.clone());
        let instance = InstanceId::new();
        docker.add_image("busybox");
        let container = CreateContainer {
            name: "one".to_owned(),
            image: "busybox".to_owned(),
            labels: [(label::INSTANCE.to_owned(), instance.to_string())].into(),
            ..CreateContainer::default()
        };
        docker.create(&container).await.unwrap();
        Self { docker, streams, instance, asked: Arc::default() }
    }

    /// Lets every output give these messages, and then end or go on without a word.
    fn gives(&self, messages: &[String]) {
        let (messages, asked) = (messages.to_vec(), self.asked.clone());
        self.docker.set_logs(move |wanted| {
            asked.lock().unwrap().push(wanted);
            let is_nothing = wanted.tail == Some(0);
            let messages = if is_nothing { Vec::new() } else { messages.clone() };
            let pieces = messages.into_iter().map(|text| Ok(stdout(text)));
            let pieces = stream::iter(pieces.collect::<Vec<_>>());
            if wanted.follow { pieces.chain(stream::pending()).boxed() } else { pieces.boxed() }
        });
    }

    fn query(&self) -> LogQuery {
        LogQuery {
            instance: self.instance,
            tail: None,
            since: None,
            until: None,
            follow: false,
            timestamps: false,
            search: String::new(),
        }
    }

    async fn open(&self, open: StreamOpen) -> (StreamReply, Reading) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (reader, writer) = split(theirs);
        let streams = self.streams.clone();
        let served = tokio::spawn(async move { streams.serve(open, reader, writer).await });
        let (mut from_agent, to_agent) = split(ours);
        let reply = frame::read(&mut from_agent, Limit::OPEN).await.unwrap().unwrap();
        (reply, Reading { from_agent, to_agent, served })
    }

    async fn read(&self, query: LogQuery) -> Reading {
        let (reply, reading) = self.open(StreamOpen::LogQuery(query)).await;
        assert_eq!(reply, StreamReply::Open);
        reading
    }

    /// Reads to the end.
    async fn all(&self, query: LogQuery) -> String {
        let mut reading = self.read(query).await;
        let mut text = Vec::new();
        loop {
            match reading.next().await {
                LogFrame::Stdout(bytes) | LogFrame::Stderr(bytes) => text.extend_from_slice(&bytes),
                LogFrame::End => return String::from_utf8(text).unwrap(),
                LogFrame::Failed { message } => panic!("{message}"),
            }
        }
    }
}

impl Reading {
    async fn next(&mut self) -> LogFrame {
        frame::read(&mut self.from_agent, Limit::STREAM).await.unwrap().unwrap()
    }
}

fn stdout(text: String) -> Output {
    Output { kind: OutputKind::Stdout, bytes: text.into() }
}

fn numbered(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("{} {n}\n", if n % 3 == 0 { "Error" } else { "fine" })).collect()
}

#[tokio::test]
async fn output_comes_whole_and_small_lines_travel_together() {
    let world = World::start().await;
    world.gives(&numbered(5_000));

    let mut reading = world.read(world.query()).await;
    let mut text = String::new();
    let mut frames = 0;
    while let LogFrame::Stdout(bytes) = reading.next().await {
        text.push_str(std::str::from_utf8(&bytes).unwrap());
        frames += 1;
    }

    assert_eq!(text, numbered(5_000).concat());
    assert!(frames < 10, "{frames} frames");
}

#[tokio::test]
async fn the_engine_is_asked_for_the_end_and_the_time() {
    let world = World::start().await;
    world.gives(&[]);
    let (since, until) = (Some(UnixMillis(5)), Some(UnixMillis(9)));

    world.all(LogQuery { tail: Some(7), since, until, timestamps: true, ..world.query() }).await;
    let old = Logs { instance: world.instance, tail: 99_999, follow: false, timestamps: false };
    world.open(StreamOpen::Logs(old)).await;

    let new = LogRequest { tail: Some(7), since, until, follow: false, timestamps: true };
    let old = LogRequest { tail: Some(10_000), ..LogRequest::default() };
    assert_eq!(*world.asked.lock().unwrap(), [new, old]);
}

#[tokio::test]
async fn a_search_shows_only_lines_that_match_and_counts_those() {
    let world = World::start().await;
    world.gives(&numbered(10));

    let search = "eRROR".to_owned();
    let all = world.all(LogQuery { search: search.clone(), ..world.query() }).await;
    let last = world.all(LogQuery { search: search.clone(), tail: Some(2), ..world.query() }).await;
    let none = world.all(LogQuery { search: search.clone(), tail: Some(0), ..world.query() }).await;

    assert_eq!(all, "Error 0\nError 3\nError 6\nError 9\n");
    assert_eq!(last, "Error 6\nError 9\n");
    let asked = world.asked.lock().unwrap();
    assert_eq!(asked[1].tail, None, "the engine would count lines that do not match");
    assert_eq!(asked[2].tail, Some(0));
    assert_eq!(none, "");
}

#[tokio::test]
async fn a_line_without_an_end_gets_one_when_it_matches() {
    let world = World::start().await;
    world.gives(&["an error with ".to_owned(), "no end".to_owned()]);

    let found = world.all(LogQuery { search: "WITH NO".to_owned(), ..world.query() }).await;

    assert_eq!(found, "an error with no end\n");
}

#[tokio::test(start_paused = true)]
async fn a_search_that_goes_on_shows_the_last_that_were_there_and_then_what_comes() {
    let world = World::start().await;
    let old = "2027-01-15T07:59:59.000000000Z";
    let before = (1..=5).map(|n| format!("{old} error {n}\n"));
    let after =
        [format!("{NOON} fine\n"), format!("{NOON} error 6\n"), format!("{NOON} error 7\n")];
    let query =
        LogQuery { search: "error".to_owned(), tail: Some(2), follow: true, ..world.query() };
    let text = async |world: &World, query: LogQuery| {
        let mut reading = world.read(query).await;
        let LogFrame::Stdout(bytes) = reading.next().await else { panic!("nothing was shown") };
        String::from_utf8(bytes.to_vec()).unwrap()
    };

    let messages: Vec<_> = before.clone().chain(after).collect();
    world.gives(&messages);
    let seen = text(&world, query.clone()).await;
    assert_eq!(seen, "error 4\nerror 5\nerror 6\nerror 7\n", "new lines do not count");

    // Nothing new comes: silence says that everything was read.
    world.gives(&before.collect::<Vec<_>>());
    let seen = text(&world, LogQuery { timestamps: true, ..query }).await;
    assert_eq!(seen, format!("{old} error 4\n{old} error 5\n"));
}

#[tokio::test]
async fn a_controller_that_goes_away_ends_a_search_that_finds_nothing() {
    let world = World::start().await;
    world.docker.set_logs(|_| {
        stream::repeat_with(|| Ok(stdout("nothing of the kind\n".to_owned()))).boxed()
    });

    let query = LogQuery { search: "needle".to_owned(), follow: true, ..world.query() };
    let reading = world.read(query).await;
    drop((reading.from_agent, reading.to_agent));

    tokio::time::timeout(Duration::from_secs(10), reading.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_controller_that_does_not_read_is_waited_for() {
    let world = World::start().await;
    let given = Arc::new(Mutex::new(0_usize));
    let count = given.clone();
    world.docker.set_logs(move |_| {
        let count = count.clone();
        let line = "x".repeat(1_024);
        stream::repeat_with(move || {
            *count.lock().unwrap() += line.len();
            Ok(stdout(line.clone()))
        })
        .boxed()
    });

    let reading = world.read(LogQuery { follow: true, ..world.query() }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;

    let taken = *given.lock().unwrap();
    assert!(taken < 1 << 20, "{taken} bytes were read for nobody");
    drop((reading.from_agent, reading.to_agent));
    tokio::time::timeout(Duration::from_secs(10), reading.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_output_that_breaks_says_so_after_what_was_there() {
    let world = World::start().await;
    world.docker.set_logs(|_| {
        let broken = DockerError::Protocol { what: "logs", message: "cut".to_owned() };
        stream::iter([Ok(stdout("an error\n".to_owned())), Err(broken)]).boxed()
    });

    let query = LogQuery { search: "error".to_owned(), tail: Some(5), ..world.query() };
    let mut reading = world.read(query).await;

    assert_eq!(reading.next().await, LogFrame::Stdout("an error\n".into()));
    assert!(
        matches!(reading.next().await, LogFrame::Failed { message } if message.contains("cut"))
    );
}

#[tokio::test]
async fn questions_over_the_limits_are_refused() {
    let world = World::start().await;
    for query in [
        LogQuery { tail: Some(100_001), ..world.query() },
        LogQuery { search: "é".repeat(201), ..world.query() },
        LogQuery { search: "two\nlines".to_owned(), ..world.query() },
    ] {
        let (reply, _) = world.open(StreamOpen::LogQuery(query)).await;
        let StreamReply::Refused { code, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(code, StreamRefusal::BadRequest);
    }
}
