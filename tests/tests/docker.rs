//! The agent's Docker room and its loop, against a real engine.

use std::time::Duration;

use tianqi_agent::docker::{Docker, DockerError, ExecRequest, LogRequest, OutputKind, shells};
use tianqi_common::clock::{Clock, SystemClock};
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::{
    GpuUuid, InstanceDesired, NodeDesired, RestartPolicy, Revision, Run,
};
use tianqi_common::wire::observed::{ContainerState, DockerStatus, LimitKind, NodeObserved};
use tianqi_common::wire::stream::PtySize;
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::node::{Node, PATIENCE, instance, run_in};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

#[tokio::test(flavor = "multi_thread")]
async fn instance_is_made_stopped_started_and_removed_with_its_volume() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let docker = node.docker.clone();
    let mut wanted = instance(images::busybox(&daemon));
    wanted.spec.gpus = vec![GpuUuid("SIM-0".to_owned())];
    let id = wanted.id;
    node.want_instance(&wanted);

    let first = node.until_running(id).await;
    let container = first.container_id.clone().unwrap();
    assert_eq!((first.generation, first.gpus), (1, wanted.spec.gpus.clone()));
    assert_create_body(&daemon, &container, &wanted);
    assert_eq!(run_in(&*docker, &container, "echo kept > /data/file; exit 5").await.1, Some(5));
    let process_1 = run_in(&*docker, &container, "tr '\\0' ' ' < /proc/1/cmdline").await.0;
    assert!(process_1.starts_with("/.tianqi/guest init --"), "{process_1}");

    node.want_run(id, Run::Stopped);
    let stopped = node
        .until_state(id, "stopped", |state| matches!(state, ContainerState::Exited { .. }))
        .await;
    assert!(matches!(stopped.state, ContainerState::Exited { code: 0, .. }), "{stopped:?}");

    node.want_run(id, Run::Running);
    node.until_state(id, "running again", |state| *state == ContainerState::Running).await;
    assert_eq!(run_in(&*docker, &container, "cat /data/file").await.0, "kept");

    node.bury(id);
    let gone = node.until("removed", |seen| seen.removed.iter().any(|r| r.id == id)).await;
    assert_eq!(gone.removed[0].leftovers, Vec::<String>::new());
    assert_eq!(daemon.containers_labelled("tianqi.instance"), Vec::<String>::new());
    assert_eq!(daemon.volumes(), Vec::<String>::new());
}

fn assert_create_body(daemon: &Dockerd, container: &str, wanted: &InstanceDesired) {
    let inspect: serde_json::Value =
        serde_json::from_str(&daemon.docker(&["inspect", container])).unwrap();
    let at = |path: &str| inspect[0].pointer(path).cloned().unwrap_or_default();
    assert_eq!(at("/Name"), format!("/{}", wanted.spec.container_name));
    assert_eq!(at("/Config/Labels/tianqi.instance"), wanted.id.to_string());
    assert_eq!(at("/Config/Labels/tianqi.generation"), "1");
    assert_eq!(at("/Config/Tty"), false);
    assert_eq!(at("/HostConfig/NanoCpus"), 500_000_000);
    assert_eq!(at("/HostConfig/Memory"), 64 << 20);
    assert_eq!(at("/HostConfig/MemorySwap"), 64 << 20);
    assert_eq!(at("/HostConfig/PidsLimit"), 64);
    assert_eq!(at("/HostConfig/ShmSize"), 32 << 20);
    assert_eq!(at("/HostConfig/RestartPolicy/Name"), "no");
    assert_eq!(at("/HostConfig/LogConfig/Type"), "local");
    assert_eq!(at("/HostConfig/LogConfig/Config/max-size"), "10m");
    assert_eq!(at("/HostConfig/SecurityOpt"), serde_json::json!(["no-new-privileges"]));
    assert!(at("/HostConfig/CapDrop").to_string().contains("SYS_CHROOT"));
    assert_eq!(at("/HostConfig/NetworkMode"), "tianqi");
    assert_eq!(at("/HostConfig/Privileged"), false);
    let env = at("/Config/Env").to_string();
    assert!(env.contains("NVIDIA_VISIBLE_DEVICES=void") && env.contains("zh_CN"), "{env}");
    assert!(at("/HostConfig/DeviceRequests").as_array().is_none_or(Vec::is_empty));
    let mounts = at("/Mounts").to_string();
    assert!(mounts.contains(&format!("tianqi-{}-data", wanted.id)), "{mounts}");
    assert!(mounts.contains("/.tianqi/guest"), "{mounts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_reach_nvidias_hook_by_uuid() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let mut wanted = instance(images::busybox(&daemon));
    wanted.spec.gpus = ["GPU-b", "GPU-a"].map(|uuid| GpuUuid(uuid.to_owned())).to_vec();
    node.want_instance(&wanted);

    let seen = node.until_running(wanted.id).await;

    let container = seen.container_id.unwrap();
    assert_eq!(daemon.visible_devices(&container).as_deref(), Some("GPU-b,GPU-a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn loop_survives_its_own_death_and_that_of_the_engine() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let image = images::busybox(&daemon);
    let all: Vec<InstanceDesired> = (0..4).map(|_| instance(image)).collect();
    for wanted in &all {
        node.want_instance(wanted);
    }
    node.until("begun", |seen| !seen.instances.is_empty()).await;
    node.die().await;
    daemon.kill();
    // Nobody repeats the desired state: the ledger must know it.
    node.desired = watch::Sender::new(None);
    node.boot();
    node.until("failed", |seen| seen.docker.status == DockerStatus::Failed).await;

    daemon.resume();

    for wanted in &all {
        node.until_running(wanted.id).await;
    }
    assert_eq!(daemon.containers_labelled("tianqi.instance").len(), all.len(), "nothing doubled");
    node.desired.send_replace(Some(NodeDesired {
        revision: Revision { epoch: 1, generation: 1 },
        instances: vec![],
        tombstones: all.iter().map(|wanted| wanted.id).collect(),
    }));
    node.until("under way", |seen| seen.instances.is_empty()).await;
    node.die().await;
    node.boot();
    node.until("all removed", |seen| seen.removed.len() == all.len()).await;
    assert_eq!(daemon.containers_labelled("tianqi.instance"), Vec::<String>::new());
    assert_eq!(daemon.volumes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_behind_our_back_are_noticed_within_five_seconds() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let docker = node.docker.clone();
    let wanted = instance(images::busybox(&daemon));
    node.want_instance(&wanted);
    let first = node.until_running(wanted.id).await.container_id.unwrap();
    run_in(&*docker, &first, "echo kept > /data/file").await;
    let stranger = InstanceId::new();
    let label = format!("tianqi.instance={stranger}");
    daemon.docker(&["run", "-d", "--label", &label, images::busybox(&daemon), "sleep", "600"]);

    let began = SystemClock::new();
    daemon.docker(&["rm", "-f", &first]);
    let is_new = |seen: &NodeObserved| {
        seen.instances[0].state == ContainerState::Running
            && seen.instances[0].container_id.as_ref().is_some_and(|id| *id != first)
    };
    let seen = node.until("made again", is_new).await;
    assert!(began.monotonic() < Duration::from_secs(5), "took {:?}", began.monotonic());

    let second = seen.instances[0].container_id.clone().unwrap();
    assert_eq!(run_in(&*docker, &second, "cat /data/file").await.0, "kept");
    assert_eq!((seen.orphans.len(), seen.orphans[0].id), (1, stranger));
    assert_eq!(daemon.containers_labelled(&label).len(), 1, "orphans are left alone");

    // A second container of the instance goes; the running one stays.
    let label = format!("tianqi.instance={}", wanted.id);
    daemon.docker(&["create", "--label", &label, images::busybox(&daemon), "sleep", "600"]);
    let deadline = Deadline::after(PATIENCE);
    while daemon.containers_labelled(&label) != [second.clone()] {
        deadline.pause_async("the double stays").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_image_is_reported_and_comes_with_the_wake_after_a_pull() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let wanted = instance("tianqi/busybox:1");
    node.want_instance(&wanted);
    node.until_state(wanted.id, "missing", |s| *s == ContainerState::ImageMissing).await;

    images::busybox(&daemon);
    node.wake.notify_one();
    node.until_running(wanted.id).await;

    let broken = instance(images::broken(&daemon));
    node.want_instance(&broken);
    let ended = node
        .until_state(broken.id, "ended", |s| matches!(s, ContainerState::Exited { code: 127, .. }))
        .await;
    assert!(matches!(ended.state, ContainerState::Exited { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_policy_is_the_agents() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let mut wanted = instance(images::failing(&daemon));
    wanted.spec.restart = RestartPolicy::OnFailure;
    node.want_instance(&wanted);

    let is_third = |seen: &NodeObserved| seen.instances.iter().any(|i| i.restarts >= 2);
    let seen = node.until("restarted twice", is_third).await;

    assert_eq!(seen.instances[0].generation, 1);
    assert_eq!(daemon.containers_labelled("tianqi.instance").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn walls_stand_between_instances_and_before_the_node() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let docker = node.docker.clone();
    let (one, two) = (instance(images::busybox(&daemon)), instance(images::busybox(&daemon)));
    node.want_instance(&one);
    node.want_instance(&two);
    let seen = node.until_running(one.id).await;
    let two = node.until_running(two.id).await.container_id.unwrap();
    let one = seen.container_id.unwrap();
    let wall = seen.limits.iter().find(|limit| limit.kind == LimitKind::Network).unwrap();
    let listen = "httpd -p 8000 -h / && echo up";
    assert_eq!(run_in(&*docker, &two, listen).await.0, "up");
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}";
    let addresses = daemon.docker(&["inspect", "--format", format, &two]);
    let (address, gateway) = addresses.split_once(' ').unwrap();
    let get = |host: &str, port: u16| {
        format!("timeout 10 nc -w 2 {host} {port} </dev/null && echo reached")
    };

    // The node reaches an instance, so the listener works and answers find their way.
    let own = tokio::net::TcpStream::connect((address, 8_000)).await;
    assert!(own.is_ok(), "{own:?}");
    let listener = tokio::net::TcpListener::bind((gateway, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let (to_node, _) = run_in(&*docker, &one, &get(gateway, port)).await;
    assert!(!to_node.contains("reached"), "an instance reached its node");
    let (pinged, _) =
        run_in(&*docker, &one, &format!("ping -c1 -W1 {gateway} && echo reached")).await;
    assert!(!pinged.contains("reached"), "an instance pinged its node");
    let (to_metadata, _) = run_in(&*docker, &one, &get("169.254.169.254", 80)).await;
    assert!(!to_metadata.contains("reached"));
    if wall.enforced {
        let (to_neighbour, _) = run_in(&*docker, &one, &get(address, 8_000)).await;
        assert!(!to_neighbour.contains("reached"), "an instance reached its neighbour");
    } else {
        assert!(wall.reason.contains("bridge-nf-call-iptables"), "{wall:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_lose_no_first_byte_and_know_their_size() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let docker = node.docker.clone();
    let wanted = instance(images::busybox(&daemon));
    node.want_instance(&wanted);
    let container = node.until_running(wanted.id).await.container_id.unwrap();
    assert_eq!(shells(&*docker, &container).await.unwrap(), ["/bin/sh"]);

    let script = r"printf '\001\002first'; stty size; read line; echo got:$line; exit 9";
    let request = ExecRequest {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        pty: Some(PtySize { cols: 132, rows: 43 }),
        ..ExecRequest::default()
    };
    let mut session = docker.exec(&container, request).await.unwrap();
    session.writer.write_all(b"hello\r").await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = session.reader.next().await.unwrap() {
        text.extend_from_slice(&piece.bytes);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("\u{1}\u{2}first"), "{text:?}");
    assert!(text.contains("got:hello"), "{text:?}");
    let deadline = Deadline::after(PATIENCE);
    while docker.exec_state(&session.id).await.unwrap().exit_code != Some(9) {
        deadline.pause_async("no exit code").await;
    }

    // Without a terminal, outputs come apart and the end of input arrives.
    let argv = ["sh", "-c", "cat; echo bad >&2"].map(str::to_owned).to_vec();
    let mut session =
        docker.exec(&container, ExecRequest { argv, ..ExecRequest::default() }).await.unwrap();
    session.writer.write_all(b"in").await.unwrap();
    session.writer.shutdown().await.unwrap();
    let mut pieces = Vec::new();
    while let Some(piece) = session.reader.next().await.unwrap() {
        pieces.push((piece.kind, String::from_utf8_lossy(&piece.bytes).into_owned()));
    }
    assert_eq!(
        pieces,
        [(OutputKind::Stdout, "in".to_owned()), (OutputKind::Stderr, "bad\n".to_owned())]
    );

    let argv = ["sleep", "600"].map(str::to_owned).to_vec();
    let session =
        docker.exec(&container, ExecRequest { argv, ..ExecRequest::default() }).await.unwrap();
    docker.signal_exec(&session.id, "KILL").await.unwrap();
    let deadline = Deadline::after(PATIENCE);
    while docker.exec_state(&session.id).await.unwrap().exit_code != Some(137) {
        deadline.pause_async("the signal did not arrive").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_usage_and_errors_are_told_as_they_are() {
    use futures_util::StreamExt;
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let docker = node.docker.clone();
    let wanted = instance(images::busybox(&daemon));
    node.want_instance(&wanted);
    let container = node.until_running(wanted.id).await.container_id.unwrap();

    let request = LogRequest { tail: Some(10), follow: true, ..LogRequest::default() };
    let mut pieces = docker.logs(&container, request).await.unwrap();
    let first = pieces.next().await.unwrap().unwrap();
    assert_eq!((first.kind, &first.bytes[..]), (OutputKind::Stdout, &b"ready\n"[..]));
    let usage = docker.usage(&container).await.unwrap();
    assert!(usage.pids >= 1 && usage.memory_bytes > 0, "{usage:?}");
    assert_eq!(usage.memory_limit_bytes, 64 << 20);
    let engine = docker.engine().await.unwrap();
    assert!(engine.local && engine.live_restore, "{engine:?}");

    let missing = docker.inspect("no-such-container").await;
    assert!(matches!(missing, Err(DockerError::NotFound { .. })), "{missing:?}");
    let mut pull = docker.pull("localhost:1/no/such:image", None).await.unwrap();
    assert!(pull.next().await.unwrap().is_err());
    assert!(pull.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_talks_without_end_fills_no_disk() {
    let daemon = Dockerd::start();
    let mut node = Node::start(&daemon);
    let wanted = instance(images::chatty(&daemon));
    node.want_instance(&wanted);
    let container = node.until_running(wanted.id).await.container_id.unwrap();
    let folder = daemon.root().join("data/containers").join(&container).join("local-logs");
    let rotated = folder.join("container.log.1.gz");
    let deadline = Deadline::after(PATIENCE);
    while !rotated.exists() {
        deadline.pause_async("the log is not rotated").await;
    }
    let size: u64 = std::fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().metadata().map_or(0, |m| m.len()))
        .sum();
    assert!(size < 45 << 20, "{size} bytes of logs");
}
