//! Programs in instances, whole path: the browser terminal, logs, figures, `tianqi-controller exec`.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::terminal::Terminal;

/// How soon a terminal ends when the right to it has.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A running instance of busybox; the fields are dropped in this order.
struct World {
    admin: Client,
    id: String,
    spec: String,
    image: String,
    _agent: Agent,
    cluster: Cluster,
    _engine: Dockerd,
}

impl World {
    async fn start() -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let image = admin.create_image("busybox", images::busybox(&engine)).await;
        let spec = admin.create_cpu_spec("small").await;
        let id = admin.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "running").await;
        Self { admin, id, spec, image, _agent: agent, cluster, _engine: engine }
    }

    async fn terminal(&self) -> Terminal {
        let mut terminal = Terminal::open(&self.admin, &self.id, "").await.unwrap();
        assert_eq!(terminal.told().await["type"], "opened");
        terminal
    }

    async fn person(&self, name: &str) -> Client {
        let password = "correct horse battery";
        let body = json!({ "name": name, "password": password, "must_change_password": false });
        self.admin.post("/users", &body).await;
        Client::anonymous(self.cluster.http()).login(name, password).await
    }

    async fn audited(&self, action: &str) -> Vec<Value> {
        let list = self.admin.get(&format!("/audit-events?action={action}")).await;
        list["items"].as_array().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_a_program_and_passes_output_and_exit_code_on() {
    let world = World::start().await;
    let cluster = &world.cluster;

    let script = "echo to-out; echo to-err >&2; exit 7";
    let output = cluster.run(&["exec", "one", "--", "sh", "-c", script]);

    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "to-out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "to-err\n");
    let deadline = Deadline::after(PATIENCE);
    let rows = loop {
        let rows = world.audited("local:exec").await;
        if rows.len() == 2 {
            break rows;
        }
        deadline.pause_async(&format!("opening and end are audited: {rows:?}")).await;
    };
    let (closed, opened) = (&rows[0]["detail"], &rows[1]["detail"]);
    assert_eq!(rows[0]["via"], "local", "{rows:?}");
    assert_eq!((&opened["event"], &opened["face"]), (&json!("opened"), &json!("exec")));
    assert_eq!(closed["access"], opened["access"]);
    assert_eq!((&closed["exit_code"], &closed["bytes_out"]), (&json!(7), &json!(14)));
    let bulk = cluster.run(&["exec", &world.id, "--", "head", "-c", "20000000", "/dev/zero"]);
    assert_eq!(bulk.stdout.len(), 20_000_000, "nothing of a big output is lost");
    let started = std::time::Instant::now();
    let missing = cluster.run(&["exec", "no-such-instance", "--", "true"]);
    assert!(!missing.status.success());
    assert!(started.elapsed() < Duration::from_secs(10), "it hung");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_a_shell_with_a_size_signals_and_an_exit_code() {
    let world = World::start().await;
    let mut terminal =
        Terminal::open(&world.admin, &world.id, "shell=bash&cols=101&rows=37").await.unwrap();
    assert_eq!(terminal.told().await["type"], "opened");

    // What is typed is echoed, so each answer is something that was not typed.
    terminal.type_in("echo sum=$((40+2)) shell=$0\r").await;
    let seen = String::from_utf8_lossy(&terminal.until("sum=42 shell=").await).into_owned();
    assert!(seen.contains("echo sum=$((40+2))"), "keys are echoed: {seen}");
    terminal.until("/sh").await;
    terminal.type_in("echo size=$(stty size)\r").await;
    terminal.until("size=37 101").await;
    terminal.say(r#"{"type":"resize","cols":132,"rows":43}"#).await;
    terminal.type_in("echo size=$(stty size)\r").await;
    terminal.until("size=43 132").await;
    terminal.say(r#"{"type":"ping"}"#).await;
    assert_eq!(terminal.told().await, json!({ "type": "pong" }));
    terminal.type_in("echo go; sleep 1000; echo code=$?\r").await;
    terminal.until("\ngo").await;
    terminal.type_in([0x03]).await;
    terminal.type_in("echo alive=$((6*7))\r").await;
    terminal.until("alive=42").await;
    terminal.type_in("exit 5\r").await;

    let ended = terminal.ended().await;
    assert_eq!(ended.last, json!({ "type": "exit", "code": 5 }));
    assert_eq!(ended.code, 1000);
    let deadline = Deadline::after(PATIENCE);
    let rows = loop {
        let rows = world.audited("instances:exec").await;
        if rows.len() == 2 {
            break rows;
        }
        deadline.pause_async(&format!("opening and closing are audited: {rows:?}")).await;
    };
    let (closed, opened) = (&rows[0]["detail"], &rows[1]["detail"]);
    assert_eq!(opened["event"], "opened", "{rows:?}");
    assert_eq!((&closed["event"], &closed["exit_code"]), (&json!("closed"), &json!(5)));
    assert_eq!(closed["access"], opened["access"]);
    assert_eq!((&closed["face"], &rows[0]["via"]), (&json!("terminal"), &json!("token")));
    assert!(closed["bytes_in"].as_u64().is_some_and(|bytes| bytes > 100), "{closed}");
    assert!(closed["bytes_out"].as_u64().is_some_and(|bytes| bytes > 100), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_two_terminals_arrives_byte_for_byte_and_apart() {
    let world = World::start().await;
    let (mut one, mut two) = (world.terminal().await, world.terminal().await);

    for (terminal, name) in [(&mut one, "one"), (&mut two, "two")] {
        // No translation of line ends and no echo; the pause puts the first bytes into a piece of
        // their own.
        terminal.type_in("stty -opost -echo; echo ok=$((1+1))\r").await;
        terminal.until("ok=2\n").await;
        let print = format!("sleep 0.5; printf '\\001\\000\\000\\002{name}'\r");
        terminal.type_in(print).await;
    }
    for (terminal, name) in [(&mut one, "one"), (&mut two, "two")] {
        let seen = terminal.until(name).await;
        let expected = [&[1, 0, 0, 2], name.as_bytes()].concat();
        assert!(seen.ends_with(&expected), "{seen:?}");
    }
    let burst = "head -c 1000000 /dev/zero | tr '\\0' X; echo end=$((1+1))\r";
    one.type_in(burst).await;
    two.type_in("echo quick=$((1+1))\r").await;
    two.until("quick=2").await;
    let seen = one.until("end=2").await;
    assert_eq!(seen.iter().filter(|byte| **byte == b'X').count(), 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_for_those_who_may_and_while_they_may() {
    let world = World::start().await;
    let (alice, bob) = (world.person("alice").await, world.person("bob").await);
    let own = alice.create_instance("own", &world.image, &world.spec).await;
    alice.wait_phase(&own, "running").await;

    for (query, status, code) in [
        ("cols=0", StatusCode::UNPROCESSABLE_ENTITY, "bad_size"),
        ("rows=70000", StatusCode::UNPROCESSABLE_ENTITY, "bad_size"),
        ("shell=zsh", StatusCode::UNPROCESSABLE_ENTITY, "bad_shell"),
        ("cols=many", StatusCode::BAD_REQUEST, "bad_query"),
    ] {
        let refused = Terminal::open(&alice, &own, query).await.unwrap_err();
        assert_eq!((refused.0, &refused.1["code"]), (status, &json!(code)), "{query}");
    }
    let refused = Terminal::open(&bob, &own, "").await.unwrap_err();
    assert_eq!(
        (refused.0, &refused.1["code"]),
        (StatusCode::NOT_FOUND, &json!("no_such_instance"))
    );
    let nobody = Client::anonymous(world.cluster.http());
    let refused = Terminal::open(&nobody, &own, "").await.unwrap_err();
    assert_eq!(refused.0, StatusCode::UNAUTHORIZED);

    let mut terminal = Terminal::open(&alice, &own, "").await.unwrap();
    terminal.told().await;
    let mut logs = alice
        .request(Method::GET, &format!("/instances/{own}/logs?follow=true"))
        .send()
        .await
        .unwrap();
    alice.delete("/session").await;
    let ended = tokio::time::timeout(AT_ONCE, terminal.ended()).await.unwrap();
    assert_eq!(ended.last["code"], "unauthorised", "{ended:?}");
    assert_eq!(ended.code, 1008);
    let rest = async {
        let mut rest = Vec::new();
        while let Some(chunk) = logs.chunk().await.unwrap() {
            rest.extend_from_slice(&chunk);
        }
        String::from_utf8(rest).unwrap()
    };
    let rest = tokio::time::timeout(AT_ONCE, rest).await.unwrap();
    assert!(rest.contains("\n[tianqi] "), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_terminal_at_once_and_a_stopped_instance_says_so() {
    let world = World::start().await;
    let mut terminals = vec![world.terminal().await];
    for _ in 1..16 {
        terminals.push(Terminal::open(&world.admin, &world.id, "").await.unwrap());
    }
    let refused = Terminal::open(&world.admin, &world.id, "").await.unwrap_err();
    assert_eq!(refused.0, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.1["code"], "too_many_terminals");

    world.admin.act(&world.id, "stop").await;
    let ended = tokio::time::timeout(AT_ONCE, terminals[0].ended()).await.unwrap();
    assert_eq!(ended.last["code"], "stopped", "{ended:?}");
    drop(terminals);
    world.admin.wait_phase(&world.id, "exited").await;

    let deadline = Deadline::after(PATIENCE);
    // The places of those that were dropped come back as their ends are noticed.
    let mut terminal = loop {
        match Terminal::open(&world.admin, &world.id, "").await {
            Ok(terminal) => break terminal,
            Err(refused) => deadline.pause_async(&format!("{refused:?}")).await,
        }
    };
    let ended = terminal.ended().await;
    assert_eq!(ended.last["code"], "not_running", "{ended:?}");
    assert!(ended.last["message"].as_str().unwrap().contains("start it first"), "{ended:?}");
    assert_eq!(ended.code, 1011);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_have_a_tail_go_on_and_end_with_the_instance() {
    let world = World::start().await;
    let path = format!("/instances/{}/logs", world.id);
    let read = async |query: &str| {
        let answer = world.admin.request(Method::GET, &format!("{path}?{query}")).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        answer.text().await.unwrap()
    };
    let print = |script: &str| {
        let output = world.cluster.run(&["exec", &world.id, "--", "sh", "-c", script]);
        assert!(output.status.success(), "{output:?}");
    };

    // Docker reads output and error apart, so the order of two that come together is not known.
    for (script, last) in [
        ("echo oops >/proc/1/fd/2", "oops\n"),
        ("for n in 1 2 3; do echo line-$n >/proc/1/fd/1; done", "line-3\n"),
    ] {
        print(script);
        let deadline = Deadline::after(PATIENCE);
        while !read("").await.ends_with(last) {
            deadline.pause_async("the output has not arrived").await;
        }
    }
    assert_eq!(read("").await, "ready\noops\nline-1\nline-2\nline-3\n");
    assert_eq!(read("tail=0").await, "");
    let last = read("tail=2&timestamps=true").await;
    let last: Vec<_> = last.lines().collect();
    assert_eq!(last.len(), 2, "{last:?}");
    assert!(last[1].starts_with("20") && last[1].ends_with("Z line-3"), "{last:?}");
    let (status, problem) =
        world.admin.try_call(Method::GET, &format!("{path}?tail=100001"), None).await;
    assert_eq!((status.as_u16(), &problem["code"]), (422, &json!("bad_tail")));

    let follow = world.admin.request(Method::GET, &format!("{path}?tail=1&follow=true"));
    let mut follow = follow.send().await.unwrap();
    let mut seen = String::new();
    print("echo later >/proc/1/fd/1");
    while !seen.contains("later") {
        let chunk = tokio::time::timeout(PATIENCE, follow.chunk()).await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&chunk.expect("it goes on")).unwrap());
    }
    world.admin.act(&world.id, "stop").await;
    let end = async { while follow.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    world.admin.wait_phase(&world.id, "exited").await;
    assert!(read("").await.contains("later"), "what stands still keeps its output");

    let huge = world.admin.create_spec("huge", &json!({ "gpu_count": 8 })).await;
    let queued = world.admin.create_instance("queued", &world.image, &huge).await;
    let (status, problem) =
        world.admin.try_call(Method::GET, &format!("/instances/{queued}/logs"), None).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("not_placed")), "{problem}");
    let rows = world.audited("instances:logs").await;
    let closings: Vec<_> = rows.iter().filter(|row| row["detail"]["event"] == "closed").collect();
    assert!(!closings.is_empty(), "{rows:?}");
    assert!(closings.iter().any(|row| row["detail"]["bytes_out"].as_u64() > Some(0)), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_show_what_an_instance_and_its_node_do() {
    let world = World::start().await;
    let path = format!("/instances/{}/stats", world.id);
    let mut terminal = world.terminal().await;
    terminal.type_in("while :; do :; done\r").await;

    let deadline = Deadline::after(PATIENCE);
    let stats = loop {
        let (status, stats) = world.admin.try_call(Method::GET, &path, None).await;
        if status.is_success() && stats["cpu_millicores"].as_u64() > Some(50) {
            break stats;
        }
        assert!(status.is_success() || stats["code"] == "no_sample", "{stats}");
        deadline.pause_async(&format!("a busy loop does not show: {stats}")).await;
    };

    assert_eq!(stats["cpu_limit_millicores"], 500, "{stats}");
    assert!(stats["cpu_percent"].as_f64().is_some_and(|share| share > 5.0), "{stats}");
    assert_eq!(stats["memory_limit_bytes"], 64 << 20, "{stats}");
    assert!(stats["memory_used_bytes"].as_u64() > Some(0), "{stats}");
    assert!(stats["pids"].as_u64() >= Some(2), "{stats}");
    assert!(stats["age_ms"].as_u64().is_some_and(|age| age < 30_000), "{stats}");
    let instance = world.admin.instance(&world.id).await;
    let node = text(&instance, "node_id");
    let node = world.admin.get(&format!("/nodes/{node}/telemetry")).await;
    assert!(node["memory_used_bytes"].as_u64() > Some(0), "{node}");

    world.admin.act(&world.id, "stop").await;
    world.admin.wait_phase(&world.id, "exited").await;
    let (status, problem) = world.admin.try_call(Method::GET, &path, None).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("not_running")), "{problem}");
}
