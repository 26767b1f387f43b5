//! Terminals that outlive their pages, whole path with real programs in a real container, kept by
//! `tianqi-guest`.

use std::time::Duration;

use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::terminal::Terminal;

/// How long a page is away.
const AWAY: Duration = Duration::from_secs(2);

/// The fields are dropped in this order.
struct World {
    admin: Client,
    id: String,
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
        Self { admin, id, _agent: agent, cluster, _engine: engine }
    }

    async fn open(&self, query: &str) -> (Terminal, Value) {
        let mut terminal = Terminal::open(&self.admin, &self.id, query).await.unwrap();
        let opened = terminal.told().await;
        assert_eq!(opened["kept"], true, "the guest keeps it: {opened}");
        (terminal, opened)
    }

    /// Comes back as soon as the node is there again.
    async fn back(&self, ticket: &str, offset: Option<u64>) -> (Terminal, Value) {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let attached = Terminal::attach(&self.admin, &self.id, ticket, offset).await;
            let mut terminal = attached.unwrap();
            let told = terminal.told().await;
            if told["type"] == "opened" {
                return (terminal, told);
            }
            assert_eq!(told["code"], "node_offline", "{told}");
            deadline.pause_async("the node does not come back").await;
        }
    }
}

/// Returns the numbers after `n=` in an output, in its order.
fn numbers(output: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(output);
    text.split("n=").skip(1).filter_map(|rest| rest.split('\r').next()?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_counts_misses_no_number_over_a_cut_socket_and_a_killed_controller() {
    let mut world = World::start().await;
    let (mut terminal, opened) = world.open("").await;
    let mut ticket = text(&opened, "ticket");
    let mut offset = opened["offset"].as_u64().unwrap();
    terminal.type_in("i=0; while :; do i=$((i+1)); echo n=$i; sleep 0.1; done\r").await;
    let mut seen = terminal.until("n=5\r\n").await;

    for is_killed in [false, true] {
        // A part of what came may be lost with the socket: the page counts what it has shown.
        offset += seen.len() as u64;
        let last = *numbers(&seen).last().unwrap();
        drop(terminal);
        if is_killed {
            world.cluster.kill_and_restart_controller();
        }
        tokio::time::sleep(AWAY).await;
        let opened;
        (terminal, opened) = world.back(&ticket, Some(offset)).await;
        assert_eq!(opened["offset"], offset, "nothing was cut off: {opened}");
        ticket = text(&opened, "ticket");
        seen = terminal.until(format!("n={}\r\n", last + 10)).await;
        assert_eq!(
            numbers(&seen),
            (last + 1..=last + 10).collect::<Vec<_>>(),
            "killed: {is_killed}"
        );
    }
    terminal.type_in([0x03]).await;
    terminal.type_in("exit 4\r").await;
    assert_eq!(terminal.ended().await.last, json!({ "type": "exit", "code": 4 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fills_the_screen_is_there_again_in_the_size_of_the_new_page() {
    let world = World::start().await;
    let (mut terminal, opened) = world.open("cols=80&rows=24").await;
    // What is typed is echoed, so what is waited for is something that was not typed.
    terminal.type_in("printf 'first line\\nlast li%s\\n' ne >/tmp/f; vi /tmp/f\r").await;
    terminal.until("last line").await;
    drop(terminal);
    tokio::time::sleep(AWAY).await;

    let (mut terminal, opened) = world.back(&text(&opened, "ticket"), None).await;

    assert_eq!(opened["resumed"], true);
    // Once as it was kept, once painted anew.
    terminal.until("last line").await;
    terminal.until("last line").await;
    terminal.type_in("o and one more").await;
    terminal.until("more").await;
    // An escape alone ends the insertion; with more behind it, it is another key.
    terminal.type_in([0x1b]).await;
    tokio::time::sleep(AWAY).await;
    terminal.type_in(":wq\r").await;
    terminal.type_in("stty size; cat /tmp/f; echo done=$((1+1))\r").await;
    let shown = String::from_utf8_lossy(&terminal.until("done=2").await).into_owned();
    assert!(shown.contains("30 100"), "{shown}");
    assert!(shown.contains(" and one more"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_ends_the_program_and_what_it_started() {
    let world = World::start().await;
    let (mut terminal, opened) = world.open("").await;
    terminal.type_in("echo started=$((1+1)); sleep 4711\r").await;
    terminal.until("started=2").await;
    drop(terminal);
    let list = world.admin.get(&format!("/instances/{}/terminals", world.id)).await;
    let id = text(&list["items"][0], "id");

    world.admin.delete(&format!("/instances/{}/terminals/{id}", world.id)).await;

    let deadline = Deadline::after(PATIENCE);
    loop {
        let script = "ps -o args | grep -c '[s]leep 4711'";
        let output = world.cluster.run(&["exec", &world.id, "--", "sh", "-c", script]);
        if String::from_utf8_lossy(&output.stdout).trim() == "0" {
            break;
        }
        deadline.pause_async(&format!("the program runs on: {output:?}")).await;
    }
    let (_, told) = {
        let back = Terminal::attach(&world.admin, &world.id, &text(&opened, "ticket"), None).await;
        let mut terminal = back.unwrap();
        let told = terminal.told().await;
        (terminal, told)
    };
    assert_eq!(told["code"], "terminal_gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missed_beyond_the_bound_is_said_to_be_missing() {
    let world = World::start().await;
    let (mut terminal, opened) = world.open("").await;
    terminal.type_in("sleep 1; head -c 1000000 /dev/zero | tr '\\0' X; echo end=$((1+1))\r").await;
    let seen = terminal.until("\r\n").await.len() as u64;
    drop(terminal);
    tokio::time::sleep(AWAY + AWAY).await;

    let (mut terminal, back) = world.back(&text(&opened, "ticket"), Some(seen)).await;

    let from = back["offset"].as_u64().unwrap();
    assert!(from > seen + 600_000, "at most 256 KiB are kept: {back}");
    let shown = terminal.until("end=2").await;
    assert!(shown.len() <= 256 << 10, "{} bytes", shown.len());
}
