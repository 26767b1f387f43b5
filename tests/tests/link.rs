//! A controller's and an agent's end of the wire, together over loopback.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tianqi_common::clock::{SystemClock, UnixMillis};
use tianqi_common::id::{InstanceId, NodeId, UserId};
use tianqi_common::wire::control::ToAgent;
use tianqi_common::wire::desired::{NodeDesired, NodeSettings, Revision};
use tianqi_common::wire::frame::{self, CHUNK, Limit};
use tianqi_common::wire::hello::HelloReply;
use tianqi_common::wire::inventory::NodeInventory;
use tianqi_common::wire::observed::NodeObserved;
use tianqi_common::wire::stream::{Command, Exec, ExecFrame, Pull, StreamOpen};
use tianqi_common::wire::telemetry::SampleBatch;
use tianqi_common::wire::{ALPN, CloseCode, VERSION, Version};
use tianqi_controller::authz::policy::InstancesExec;
use tianqi_controller::authz::resource::InstanceRef;
use tianqi_controller::authz::{Actor, Grant, Role, Way};
use tianqi_controller::core::ca::Lifetimes;
use tianqi_controller::link::{AgentEvent, LinkError, WorkStream};
use tianqi_tests::raw::{Raw, RawServer, close_code};
use tianqi_tests::wire::{AgentEnd, ControllerEnd, PATIENCE, folder};
use uuid::Uuid;

/// A controller and one agent that is connected.
struct Pair {
    controller: ControllerEnd,
    agent: AgentEnd,
    node: NodeId,
    _folder: tempfile::TempDir,
}

async fn pair() -> Pair {
    let mut controller = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let (folder, data) = folder();
    controller.enroll(&data).await.unwrap();
    let agent = AgentEnd::start(&data, SystemClock::shared(), VERSION);
    let node = controller.connected().await;
    Pair { controller, agent, node, _folder: folder }
}

fn grant(node: NodeId, id: InstanceId) -> Grant<InstanceRef, InstancesExec> {
    let actor = Actor {
        id: UserId::new(),
        name: "admin".to_owned(),
        role: Role::admin(),
        session: Uuid::now_v7(),
        way: Way::Token,
        expires_at: UnixMillis(i64::MAX),
        must_change_password: false,
        remote_address: String::new(),
        request_id: String::new(),
    };
    let instance = InstanceRef { id, owner: actor.id, name: "train".to_owned(), node: Some(node) };
    Grant::decide(actor, instance).unwrap()
}

fn exec(instance: InstanceId, argv: &[&str]) -> StreamOpen {
    let command = Command::Argv(argv.iter().map(|&word| word.to_owned()).collect());
    StreamOpen::Exec(Exec { instance, command, pty: None, env: Vec::new() })
}

async fn open(pair: &Pair, argv: &[&str]) -> Result<WorkStream, LinkError> {
    let instance = InstanceId::new();
    pair.controller.link.open(&grant(pair.node, instance), exec(instance, argv)).await
}

async fn echo(stream: &mut WorkStream, bytes: &Bytes) {
    stream.writer.send(&ExecFrame::Stdin(bytes.clone())).await.unwrap();
    let answer: Option<ExecFrame> = stream.reader.next().await.unwrap();
    assert_eq!(answer, Some(ExecFrame::Stdout(bytes.clone())));
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}

#[tokio::test]
async fn state_settings_reports_and_samples_arrive_on_the_other_side() {
    let Pair { mut controller, mut agent, node, _folder } = pair().await;
    let revision = Revision { epoch: 1, generation: 7 };
    let desired = NodeDesired { revision, ..NodeDesired::default() };
    let settings = NodeSettings { hami_dir: Some("/h".into()), ..NodeSettings::default() };

    assert!(controller.link.publish(node, desired.clone()));
    assert!(controller.link.settings(node, settings.clone()));
    agent.inventory.send_replace(Some(NodeInventory { cpu_cores: 64, ..NodeInventory::default() }));
    agent.observed.send_replace(Some(NodeObserved { revision, ..NodeObserved::default() }));
    agent.samples.send(SampleBatch { dropped: 3, samples: Vec::new() }).await.unwrap();

    let has = |wanted: &Option<NodeDesired>| wanted.as_ref() == Some(&desired);
    in_time(agent.desired.wait_for(has)).await.unwrap();
    in_time(agent.settings.wait_for(|got| got.as_ref() == Some(&settings))).await.unwrap();
    let cores = controller.event(|event| {
        let AgentEvent::Inventory(from, inventory) = event else { return None };
        Some((from, inventory.cpu_cores))
    });
    assert_eq!(cores.await, (node, 64));
    let seen = controller.event(|event| {
        let AgentEvent::Observed(from, observed) = event else { return None };
        Some((from, observed.revision))
    });
    assert_eq!(seen.await, (node, revision));
    assert_eq!(in_time(controller.samples.recv()).await.1.dropped, 3);
    assert!(controller.link.report(node));
    let again = |event| matches!(event, AgentEvent::Inventory(..)).then_some(());
    controller.event(again).await;
}

#[tokio::test]
async fn the_newest_of_many_desired_states_arrives() {
    let Pair { controller, mut agent, node, _folder } = pair().await;
    for generation in 1..=500 {
        let revision = Revision { epoch: 1, generation };
        controller.link.publish(node, NodeDesired { revision, ..NodeDesired::default() });
    }

    let newest = |got: &Option<NodeDesired>| {
        got.as_ref().is_some_and(|desired| desired.revision.generation == 500)
    };
    in_time(agent.desired.wait_for(newest)).await.unwrap();
}

#[tokio::test]
async fn an_agent_of_a_higher_minor_version_is_served_by_the_lower() {
    let mut controller = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let (_folder, data) = folder();
    let identity = controller.enroll(&data).await.unwrap();
    let later = Version { minor: VERSION.minor + 1, ..VERSION };
    let raw =
        Raw::connect(controller.address, &identity.ca_pem, Some(&identity), ALPN).await.unwrap();
    let (reply, _send, _recv) = raw.hello(&identity, UnixMillis(1), later).await;
    assert!(matches!(reply, HelloReply::Welcome { version: VERSION, .. }), "{reply:?}");
    controller.connected().await;

    let agent = AgentEnd::start(&data, SystemClock::shared(), later);

    assert_eq!(controller.connected().await, identity.node);
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_of_another_major_version_is_refused_in_words() {
    let controller = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let (_folder, data) = folder();
    let identity = controller.enroll(&data).await.unwrap();
    let raw =
        Raw::connect(controller.address, &identity.ca_pem, Some(&identity), ALPN).await.unwrap();
    let other = Version { major: VERSION.major + 1, minor: 0 };

    let (reply, _send, _recv) = raw.hello(&identity, UnixMillis(1), other).await;

    let HelloReply::Refused { code, message } = reply else { panic!("{reply:?}") };
    assert_eq!(code, "version");
    assert!(message.contains("2.0") && message.contains("install"), "{message}");
    assert_eq!(raw.close_code().await, Some(CloseCode::Version));
}

#[tokio::test]
async fn of_two_starts_with_one_identity_the_newer_wins_and_the_older_is_told_why() {
    let mut controller = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let (_folder, data) = folder();
    let identity = controller.enroll(&data).await.unwrap();
    let connect = || Raw::connect(controller.address, &identity.ca_pem, Some(&identity), ALPN);
    let (older, newer, late) =
        (connect().await.unwrap(), connect().await.unwrap(), connect().await.unwrap());

    let (_older_send, mut older_recv) = older.served(&identity, UnixMillis(10)).await;
    let _newer = newer.served(&identity, UnixMillis(20)).await;

    let told: Option<ToAgent> = frame::read(&mut older_recv, Limit::CONTROL).await.unwrap();
    assert!(matches!(told, Some(ToAgent::Goodbye { code, .. }) if code == "superseded"));
    assert_eq!(older.close_code().await, Some(CloseCode::Superseded));
    let (reply, _send, _recv) = late.hello(&identity, UnixMillis(15), VERSION).await;
    assert!(matches!(reply, HelloReply::Refused { code, .. } if code == "superseded"));
    assert!(controller.disconnected().await.contains("newer start"));
    assert!(controller.link.is_connected(identity.node));
    assert!(newer.quic.close_reason().is_none());
}

#[tokio::test]
async fn a_removed_node_is_closed_at_once_and_not_let_in_again() {
    let Pair { mut controller, agent, node, _folder } = pair().await;
    let identity = agent.identity.current();

    controller.directory.remove(node);
    assert!(controller.link.close(node, CloseCode::Unauthorised, "the node was removed"));

    assert!(controller.disconnected().await.contains("removed"));
    assert!(!controller.link.is_connected(node));
    let raw =
        Raw::connect(controller.address, &identity.ca_pem, Some(&identity), ALPN).await.unwrap();
    let (reply, _send, _recv) = raw.hello(&identity, UnixMillis(i64::MAX), VERSION).await;
    assert!(matches!(reply, HelloReply::Refused { code, .. } if code == "removed"));
    agent.stop().await;
}

#[tokio::test]
async fn a_connection_without_a_certificate_or_with_a_strangers_is_closed() {
    let controller = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let stranger = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let (_folder, data) = folder();
    let foreign = stranger.enroll(&data).await.unwrap();
    let ca_pem = controller.ca.trusted_pem();

    let nobody = Raw::connect(controller.address, &ca_pem, None, ALPN).await.unwrap();
    assert_eq!(nobody.close_code().await, Some(CloseCode::Unauthorised));

    // The client is done with its handshake before the server has looked at its certificate.
    if let Ok(raw) = Raw::connect(controller.address, &ca_pem, Some(&foreign), ALPN).await {
        let ended = in_time(raw.quic.closed()).await;
        assert!(matches!(ended, quinn::ConnectionError::ConnectionClosed(_)), "{ended}");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_on_the_running_connection() {
    let lifetimes = Lifetimes { agent: Duration::from_secs(6), ..Lifetimes::default() };
    let mut controller = ControllerEnd::start(SystemClock::shared(), lifetimes);
    let (_folder, data) = folder();
    let old = controller.enroll(&data).await.unwrap();
    let agent = AgentEnd::start(&data, SystemClock::shared(), VERSION);
    controller.connected().await;

    let deadline = tianqi_tests::deadline::Deadline::after(PATIENCE);
    while agent.identity.current().certificate_pem == old.certificate_pem {
        deadline.pause_async("the certificate was not renewed").await;
    }

    assert_ne!(agent.identity.current().key_pem, old.key_pem);
    assert!(controller.link.is_connected(old.node));
    assert!(controller.events.try_recv().is_err(), "the connection was not kept");
    let renewed = agent.identity.current();
    let raw =
        Raw::connect(controller.address, &renewed.ca_pem, Some(&renewed), ALPN).await.unwrap();
    raw.served(&renewed, UnixMillis(i64::MAX)).await;
    agent.stop().await;
}

#[tokio::test]
async fn agents_come_back_to_a_controller_that_was_away() {
    let Pair { controller, agent, node, _folder } = pair().await;
    let (ca, directory, address) =
        (controller.ca.clone(), controller.directory.clone(), controller.address);
    controller.stop().await;
    let deadline = tianqi_tests::deadline::Deadline::after(PATIENCE);
    while std::net::UdpSocket::bind(address).is_err() {
        deadline.pause_async("the port is still taken").await;
    }

    let mut again = ControllerEnd::start_with(SystemClock::shared(), ca, directory, address);

    assert_eq!(again.connected().await, node);
    agent.stop().await;
    assert!(again.disconnected().await.contains("the agent stops"));
}

#[tokio::test]
async fn two_hundred_streams_at_once_and_stuck_ones_delay_nobody() {
    let pair = pair().await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut stream = open(&pair, &["stuck"]).await.unwrap();
        let full = ExecFrame::Stdin(Bytes::from(vec![0; CHUNK]));
        // Fills the stream until the agent's window is used up.
        let filling = async { while stream.writer.send(&full).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(100), filling).await.is_err());
        stuck.push(stream);
    }

    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(open(&pair, &["cat"]).await.unwrap());
    }
    let key = Bytes::from_static(b"k");
    for stream in &mut streams {
        in_time(echo(stream, &key)).await;
    }
    let piece = Bytes::from(vec![7; CHUNK]);
    in_time(echo(&mut streams[0], &piece)).await;
}

#[tokio::test]
async fn a_stream_opens_only_for_the_instance_of_its_grant() {
    let pair = pair().await;
    let mine = grant(pair.node, InstanceId::new());
    let link = &pair.controller.link;

    let other = link.open(&mine, exec(InstanceId::new(), &["cat"])).await;
    assert!(matches!(other, Err(LinkError::WrongTarget(_))), "{other:?}");
    let pull = StreamOpen::Pull(Pull { image: "busybox".into(), credentials: None });
    assert!(matches!(link.open(&mine, pull).await, Err(LinkError::WrongTarget(_))));
    let elsewhere = InstanceId::new();
    let away = link.open(&grant(NodeId::new(), elsewhere), exec(elsewhere, &["cat"])).await;
    assert!(matches!(away, Err(LinkError::NotConnected(_))));
}

#[tokio::test]
async fn garbage_on_any_stream_closes_that_connection_and_no_other() {
    let good = pair().await;
    let controller = &good.controller;
    let (_folder, data) = folder();
    let identity = controller.enroll(&data).await.unwrap();
    let garbage: [Vec<u8>; 3] = [
        u32::MAX.to_le_bytes().to_vec(),
        [&9_u32.to_le_bytes()[..], &[0xff; 9]].concat(),
        [&100_000_u32.to_le_bytes()[..], &rand::random::<[u8; 32]>().repeat(3_125)].concat(),
    ];
    for (start, bytes) in (0_i64..).zip(&garbage) {
        let connect = || Raw::connect(controller.address, &identity.ca_pem, Some(&identity), ALPN);

        let hello = connect().await.unwrap();
        let (mut send, _recv) = hello.quic.open_bi().await.unwrap();
        let _ = send.write_all(bytes).await;
        // The first four bytes of a hello are a version, whatever they are.
        let code = hello.close_code().await;
        assert!(matches!(code, Some(CloseCode::Protocol | CloseCode::Version)), "hello {start}");

        let control = connect().await.unwrap();
        let (mut send, _recv) = control.served(&identity, UnixMillis(100 + start)).await;
        let _ = send.write_all(bytes).await;
        assert_eq!(control.close_code().await, Some(CloseCode::Protocol), "control {start}");

        let telemetry = connect().await.unwrap();
        let _control = telemetry.served(&identity, UnixMillis(200 + start)).await;
        let mut uni = telemetry.quic.open_uni().await.unwrap();
        let _ = uni.write_all(bytes).await;
        assert_eq!(telemetry.close_code().await, Some(CloseCode::Protocol), "telemetry {start}");

        let work = connect().await.unwrap();
        let _control = work.served(&identity, UnixMillis(300 + start)).await;
        let instance = InstanceId::new();
        let granted = grant(identity.node, instance);
        let answer = async {
            let (mut send, _recv) = work.quic.accept_bi().await.unwrap();
            let _ = send.write_all(bytes).await;
            work.close_code().await
        };
        let opened = controller.link.open(&granted, exec(instance, &["cat"]));
        let (opened, code) = tokio::join!(opened, answer);
        assert!(matches!(opened, Err(LinkError::Frame(_))), "{opened:?}");
        assert_eq!(code, Some(CloseCode::Protocol), "work {start}");
    }
    assert!(controller.link.is_connected(good.node), "the neighbour lost its connection");
    echo(&mut open(&good, &["cat"]).await.unwrap(), &Bytes::from_static(b"x")).await;
}

#[tokio::test]
async fn a_hello_that_names_another_node_than_the_certificate_is_a_broken_protocol() {
    let controller = ControllerEnd::start(SystemClock::shared(), Lifetimes::default());
    let (_folder, data) = folder();
    let identity = controller.enroll(&data).await.unwrap();
    let raw =
        Raw::connect(controller.address, &identity.ca_pem, Some(&identity), ALPN).await.unwrap();
    let mut liar = identity.clone();
    liar.node = NodeId::new();

    let hello = tokio::spawn(async move { raw.hello(&liar, UnixMillis(1), VERSION).await.0 });

    assert!(hello.await.is_err(), "the liar got an answer");
    assert!(controller.link.connected_nodes().is_empty());
}

#[tokio::test]
async fn a_second_control_stream_and_an_agents_silence_cost_the_others_nothing() {
    let good = pair().await;
    let (_folder, data) = folder();
    let identity = good.controller.enroll(&data).await.unwrap();
    let address = good.controller.address;
    let quiet = Raw::connect(address, &identity.ca_pem, Some(&identity), ALPN).await.unwrap();
    let _control = quiet.served(&identity, UnixMillis(1)).await;

    let second = tokio::time::timeout(Duration::from_millis(300), quiet.quic.open_bi()).await;

    assert!(second.is_err(), "an agent may open one stream only");
    let instance = InstanceId::new();
    let granted = grant(identity.node, instance);
    let unanswered = Arc::new(good.controller.link.clone());
    let waiting = tokio::spawn(async move {
        unanswered.open(&granted, exec(instance, &["cat"])).await.map(|_| ())
    });
    echo(&mut open(&good, &["cat"]).await.unwrap(), &Bytes::from_static(b"x")).await;
    let timed_out = in_time(waiting).await.unwrap();
    assert!(matches!(timed_out, Err(LinkError::TimedOut(_))), "{timed_out:?}");
}

#[tokio::test]
async fn garbage_from_a_controller_closes_the_connection_and_the_agent_dials_again() {
    let Pair { controller, agent, _folder, .. } = pair().await;
    let (ca, address) = (controller.ca.clone(), controller.address);
    controller.stop().await;
    let now = tianqi_common::clock::Clock::now(&SystemClock::new());
    let server = RawServer::start(address, &ca, now).await;
    let garbage =
        [u32::MAX.to_le_bytes().to_vec(), [&9_u32.to_le_bytes()[..], &[0xff; 9]].concat()];

    for bytes in &garbage {
        let (quic, mut send, _recv) = in_time(server.accept(true)).await;
        let _ = send.write_all(bytes).await;
        assert_eq!(close_code(&quic).await, Some(CloseCode::Protocol), "control");

        let (quic, _send, _recv) = in_time(server.accept(true)).await;
        let (mut work, _answers) = quic.open_bi().await.unwrap();
        let _ = work.write_all(bytes).await;
        assert_eq!(close_code(&quic).await, Some(CloseCode::Protocol), "work");
    }
    let (quic, mut send, _recv) = in_time(server.accept(false)).await;
    let _ = send.write_all(&garbage[0]).await;
    assert_eq!(close_code(&quic).await, Some(CloseCode::Protocol), "hello");
    in_time(server.accept(true)).await;
    agent.stop().await;
}
