//! Output of instances, whole path on a real engine: what is found, what is kept, and what one that
//! never stops talking costs everybody else.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::terminal::Terminal;

/// What readings of an endless output may add to a program's memory, in KiB. Each holds some queues
/// of pieces, and two of them search for the last lines.
const GROWTH_KIB: u64 = 96 << 10;
/// How long the endless output is read.
const READ: Duration = Duration::from_secs(8);

/// The fields are dropped in this order.
struct World {
    admin: Client,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
    spec: String,
}

impl World {
    async fn start() -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let spec = admin.create_cpu_spec("small").await;
        Self { admin, agent, cluster, engine, spec }
    }

    async fn instance(&self, name: &str, image: &str) -> String {
        let image = self.admin.create_image(name, image).await;
        let id = self.admin.create_instance(name, &image, &self.spec).await;
        self.admin.wait_phase(&id, "running").await;
        id
    }

    async fn open(&self, id: &str, query: &str) -> Response {
        let path = format!("/instances/{id}/logs?{query}");
        let answer = self.admin.request(Method::GET, &path).send().await.unwrap();
        assert!(answer.status().is_success(), "{query}: {}", answer.status());
        answer
    }

    async fn read(&self, id: &str, query: &str) -> String {
        self.open(id, query).await.text().await.unwrap()
    }

    /// Prints lines as the instance's own output and waits until the last of them is there.
    async fn print(&self, id: &str, script: &str, last: &str) {
        let script = format!("{{ {script}; }} >/proc/1/fd/1");
        let output = self.cluster.run(&["exec", id, "--", "sh", "-c", &script]);
        assert!(output.status.success(), "{output:?}");
        let deadline = Deadline::after(PATIENCE);
        while !self.read(id, "tail=5").await.contains(last) {
            deadline.pause_async("the output has not arrived").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_found_by_text_and_by_time_and_kept_as_a_file() {
    let world = World::start().await;
    let id = world.instance("talker", images::busybox(&world.engine)).await;
    let old = "for n in 1 2 3 4; do echo \"Error $n\"; echo \"fine $n\"; done; echo old-end";
    world.print(&id, old, "old-end").await;
    let between = world.read(&id, "tail=1&timestamps=true").await;
    // Docker's times are finer than what is asked for: this is the end of that second, and the next
    // line is of another one.
    let time = format!("{}.999Z", &between[..19]);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let long = "head -c 150000 /dev/zero | tr '\\0' x; echo Needle; echo new-end";
    world.print(&id, long, "new-end").await;

    assert_eq!(world.read(&id, "search=error").await, "Error 1\nError 2\nError 3\nError 4\n");
    assert_eq!(world.read(&id, "search=ERROR&tail=2").await, "Error 3\nError 4\n");
    assert_eq!(world.read(&id, "search=error&tail=0").await, "");
    assert_eq!(world.read(&id, "search=no-such-text").await, "");
    let stamped = world.read(&id, "search=fine&tail=1&timestamps=true").await;
    assert!(stamped.starts_with("20") && stamped.ends_with("Z fine 4\n"), "{stamped}");
    let found = world.read(&id, "search=needle").await;
    let end: String = found.chars().skip(found.len().saturating_sub(60)).collect();
    assert!(found.len() < 70_000 && end.ends_with("xNeedle\n"), "{} bytes: {end:?}", found.len());

    let whole = world.read(&id, "tail=all").await;
    assert_eq!(whole.len(), "ready\n".len() + 4 * 15 + 8 + 150_000 + 7 + 8, "nothing is lost");
    let later = world.read(&id, "since=1s&until=0s").await;
    assert!(!later.contains("old-end"), "{} bytes", later.len());
    let until = world.read(&id, &format!("until={time}")).await;
    assert!(until.contains("Error 4") && !until.contains("new-end"), "{until}");
    let since = world.read(&id, &format!("since={time}")).await;
    assert!(!since.contains("old-end") && since.ends_with("new-end\n"), "{} bytes", since.len());
    assert_eq!(world.read(&id, "since=1d&tail=1").await, "new-end\n");

    let file = world.open(&id, "download=true").await;
    assert_eq!(file.headers()["content-disposition"], "attachment; filename=\"talker.log\"");
    assert_eq!(file.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(file.text().await.unwrap(), whole);
    audited(&world, whole.len()).await;
}

/// The download is in the audit with its bytes, and what was searched for is not.
async fn audited(world: &World, length: usize) {
    let deadline = Deadline::after(PATIENCE);
    loop {
        let page = world.admin.get("/audit-events?action=instances:logs&page_size=200").await;
        assert!(!page.to_string().contains("needle"), "{page}");
        let rows = page["items"].as_array().unwrap();
        let detail = |wanted: &dyn Fn(&Value) -> bool| {
            rows.iter().map(|row| row["detail"].clone()).find(wanted)
        };
        let opened = detail(&|it| it["download"] == true).expect("the download was opened");
        let closed = detail(&|it| it["event"] == "closed" && it["access"] == opened["access"]);
        if let Some(closed) = closed {
            assert_eq!(closed["bytes_out"].as_u64(), Some(length as u64), "{closed}");
            assert!(closed["duration_ms"].is_u64(), "{closed}");
            return;
        }
        deadline.pause_async("the end of the download is audited").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_goes_on_shows_what_was_there_and_then_what_comes() {
    let world = World::start().await;
    let id = world.instance("talker", images::busybox(&world.engine)).await;
    world.print(&id, "for n in 1 2 3; do echo \"Error $n\"; echo fine; done", "Error 3").await;

    let mut answer = world.open(&id, "search=error&tail=2&follow=true").await;
    let mut seen = String::new();
    let deadline = Deadline::after(PATIENCE);
    while !seen.contains("Error 3") {
        deadline.check("the last lines are shown");
        seen.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }
    world.print(&id, "echo quiet; echo 'an error later'", "later").await;
    while !seen.contains("later") {
        deadline.check("what comes is shown");
        seen.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }

    assert_eq!(seen, "Error 2\nError 3\nan error later\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_no_node_has_no_output_and_the_question_is_audited() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let image = admin.create_image("busybox", "tianqi/busybox:1").await;
    let spec = admin.create_cpu_spec("small").await;
    let id = admin.create_instance("queued", &image, &spec).await;

    let path = format!("/instances/{id}/logs");
    let (status, problem) = admin.try_call(Method::GET, &path, None).await;

    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("not_placed")));
    let rows = admin.get("/audit-events?action=instances:logs").await;
    let detail = &rows["items"][0]["detail"];
    assert_eq!((&detail["event"], &detail["code"]), (&json!("refused"), &json!("not_placed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_never_stops_talking_costs_others_neither_memory_nor_time() {
    let mut world = World::start().await;
    let quiet = world.instance("quiet", images::busybox(&world.engine)).await;
    let chatty = world.instance("chatty", images::chatty(&world.engine)).await;
    let mut terminal = Terminal::open(&world.admin, &quiet, "").await.unwrap();
    terminal.told().await;
    terminal.type_in("stty -echo; PS1=; cat\r").await;
    terminal.type_in("go\r").await;
    terminal.until("go").await;
    let pids = [world.agent.process().pid(), world.cluster.controller().pid()];
    let before = pids.map(rss_kib);

    // Four that are never read, one that is, one that finds nothing, and two for the last lines.
    let mut stuck = Vec::new();
    for _ in 0..4 {
        stuck.push(world.open(&chatty, "follow=true").await);
    }
    stuck.push(world.open(&chatty, "follow=true&search=no-such-text&tail=0").await);
    let reading = tokio::spawn(drain(world.open(&chatty, "follow=true&tail=all").await));
    for query in ["search=never&tail=100000", "search=NEVER&tail=all"] {
        tokio::spawn(drain(world.open(&chatty, query).await));
    }
    let (mut peak, mut waits) = (before, Vec::new());
    let deadline = std::time::Instant::now() + READ;
    while std::time::Instant::now() < deadline {
        let began = std::time::Instant::now();
        let key = format!("key-{}", waits.len());
        terminal.type_in(format!("{key}\r")).await;
        terminal.until(&key).await;
        waits.push(began.elapsed());
        for (peak, pid) in peak.iter_mut().zip(pids) {
            *peak = (*peak).max(rss_kib(pid));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    reading.abort();

    waits.sort();
    let (median, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    let growth = [peak[0] - before[0], peak[1] - before[1]];
    println!(
        "chatty output: agent +{} KiB, controller +{} KiB; {} keys, median {median:?}, worst \
         {worst:?}",
        growth[0],
        growth[1],
        waits.len()
    );
    assert!(growth.iter().all(|it| *it < GROWTH_KIB), "{growth:?} KiB more");
    assert!(median < Duration::from_millis(200), "a key takes {median:?}");

    // Readers that go away are noticed, and give their places back.
    drop(stuck);
    let deadline = Deadline::after(PATIENCE);
    loop {
        let page = world.admin.get("/audit-events?action=instances:logs&page_size=200").await;
        let count = |event: &str| {
            let rows = page["items"].as_array().unwrap();
            rows.iter().filter(|row| row["detail"]["event"] == event).count()
        };
        if count("opened") == count("closed") {
            break;
        }
        deadline.pause_async("every reading ends").await;
    }
}

async fn drain(mut answer: Response) {
    while let Ok(Some(_)) = answer.chunk().await {}
}

/// Returns how much memory a process holds.
fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
