//! Terminals that outlive their pages, whole path but for the container: a real controller, and a
//! node that is imagined. `terminal_guest.rs` has the same with real programs.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_common::id::TerminalId;
use tianqi_common::wire::stream::{ExecFrame, PtySize, StreamOpen};
use tianqi_common::wire::{VERSION, Version};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;
use tianqi_tests::imagined::{HUNG_UP, ImaginedNode, sizes};
use tianqi_tests::terminal::{Ended, Terminal};

const PASSWORD: &str = "correct horse battery";
/// How soon a terminal ends when the right to it has.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Alice has an instance on an imagined node; the fields are dropped in this order.
struct World {
    admin: Client,
    alice: Client,
    instance: String,
    node: ImaginedNode,
    cluster: Cluster,
}

impl World {
    async fn start() -> Self {
        Self::speaking(VERSION).await
    }

    async fn speaking(version: Version) -> Self {
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let node = ImaginedNode::join(&cluster, &admin, version).await;
        let image = admin.create_image("busybox", "tianqi/busybox:1").await;
        let spec = admin.create_cpu_spec("small").await;
        let alice = person(&cluster, &admin, "alice").await;
        let instance = alice.create_instance("own", &image, &spec).await;
        alice.wait_phase(&instance, "running").await;
        Self { admin, alice, instance, node, cluster }
    }

    /// Opens a terminal and returns it with its ticket and its program.
    async fn open(&self) -> (Terminal, String, TerminalId) {
        let before = self.node.terminals();
        let mut terminal = Terminal::open(&self.alice, &self.instance, "").await.unwrap();
        let opened = terminal.told().await;
        assert_eq!((&opened["type"], &opened["kept"]), (&json!("opened"), &json!(true)));
        assert_eq!((&opened["offset"], &opened["resumed"]), (&json!(0), &json!(false)));
        assert_eq!(opened["expires_s"], 600);
        let new = self.node.terminals().into_iter().find(|id| !before.contains(id)).unwrap();
        (terminal, text(&opened, "ticket"), new)
    }

    /// Comes back and returns the first word.
    async fn back(&self, ticket: &str, offset: Option<u64>) -> (Terminal, Value) {
        let attached = Terminal::attach(&self.alice, &self.instance, ticket, offset).await;
        let mut terminal = attached.unwrap();
        let told = terminal.told().await;
        (terminal, told)
    }

    /// Waits until the row says that nobody is in the only terminal.
    async fn until_detached(&self) {
        let deadline = Deadline::after(PATIENCE);
        while self.listed().await[0]["detached_at"].is_null() {
            deadline.pause_async("the terminal counts as in use").await;
        }
    }

    async fn listed(&self) -> Vec<Value> {
        let list = self.alice.get(&format!("/instances/{}/terminals", self.instance)).await;
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until the audit has this many rows of terminals, and returns their details, oldest first.
    async fn audited(&self, count: usize) -> Vec<Value> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let page = self.admin.get("/audit-events?action=instances:exec&page_size=200").await;
            let mut rows: Vec<_> =
                page["items"].as_array().unwrap().iter().map(|row| row["detail"].clone()).collect();
            rows.reverse();
            if rows.len() >= count {
                return rows;
            }
            deadline.pause_async(&format!("{count} rows are audited: {rows:?}")).await;
        }
    }

    /// Waits until a program is gone, which was told to end.
    async fn until_gone(&self, id: TerminalId) {
        let deadline = Deadline::after(PATIENCE);
        while self.node.terminals().contains(&id) {
            deadline.pause_async("the program runs on").await;
        }
    }
}

async fn person(cluster: &Cluster, admin: &Client, name: &str) -> Client {
    let body = json!({ "name": name, "password": PASSWORD, "must_change_password": false });
    admin.post("/users", &body).await;
    Client::anonymous(cluster.http()).login(name, PASSWORD).await
}

async fn ended(mut terminal: Terminal) -> Ended {
    tokio::time::timeout(AT_ONCE, terminal.ended()).await.expect("it ends at once")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_left_comes_back_by_its_ticket_and_sees_what_it_missed() {
    let world = World::start().await;
    let (mut terminal, ticket, id) = world.open().await;
    terminal.type_in("seen ").await;
    terminal.until("seen ").await;
    terminal.leave().await;
    world.node.until(id, "left", |program| !program.is_attached).await;
    world.until_detached().await;
    world.node.change(id, |program| program.output.extend_from_slice(b"missed "));

    let (mut terminal, opened) = world.back(&ticket, Some(5)).await;
    assert_eq!((&opened["offset"], &opened["resumed"]), (&json!(5), &json!(true)), "{opened}");
    assert_eq!(terminal.until("missed ").await, b"missed ", "and nothing twice");
    terminal.type_in("alive").await;
    terminal.until("alive").await;
    let size = PtySize { cols: 100, rows: 30 };
    assert_eq!(sizes(&world.node.program(id)).last(), Some(&size));
    drop(terminal);

    // Without an offset everything comes.
    world.until_detached().await;
    let (mut terminal, opened) = world.back(&text(&opened, "ticket"), None).await;
    assert_eq!(opened["offset"], 0, "{opened}");
    assert_eq!(terminal.until("alive").await, b"seen missed alive");
    world.node.change(id, |program| program.ended = Some(3));
    assert_eq!(ended(terminal).await.last, json!({ "type": "exit", "code": 3 }));

    let rows = world.audited(6).await;
    let told: Vec<_> = rows.iter().map(|row| (&row["event"], &row["reason"])).collect();
    let (opened, closed) = (json!("opened"), json!("closed"));
    let (left, exit) = (json!("detached"), json!("exit"));
    let none = Value::Null;
    let one = [(&opened, &none), (&closed, &left), (&opened, &none), (&closed, &left)];
    assert_eq!(told[..4], one, "{rows:?}");
    assert_eq!(told[5], (&closed, &exit), "{rows:?}");
    assert_eq!(rows[5]["exit_code"], 3);
    assert_eq!((&rows[1]["bytes_in"], &rows[1]["bytes_out"]), (&json!(5), &json!(5)));
    assert!(rows.iter().all(|row| !row.to_string().contains(&ticket)));
    assert_eq!(world.listed().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_worth_nothing_once_used_late_or_in_other_hands_in_the_same_words() {
    let world = World::start().await;
    let (terminal, first, id) = world.open().await;
    terminal.leave().await;
    world.until_detached().await;
    let (terminal, opened) = world.back(&first, None).await;
    terminal.leave().await;
    world.until_detached().await;
    let good = text(&opened, "ticket");
    let bob = person(&world.cluster, &world.admin, "bob").await;
    let image = world.admin.get("/images").await["items"][0]["id"].as_str().unwrap().to_owned();
    let spec = world.admin.get("/specs").await["items"][0]["id"].as_str().unwrap().to_owned();
    let other = world.alice.create_instance("other", &image, &spec).await;

    let mut told = Vec::new();
    for (who, instance, ticket) in [
        (&world.alice, &world.instance, first.as_str()),
        (&world.alice, &world.instance, "no-such-ticket"),
        (&world.alice, &other, good.as_str()),
        // An admin may open a terminal there, but this one is not theirs.
        (&world.admin, &world.instance, good.as_str()),
    ] {
        let terminal = Terminal::attach(who, instance, ticket, None).await.unwrap();
        let ended = ended(terminal).await;
        assert_eq!(ended.code, 1008, "{ended:?}");
        told.push(ended.last);
    }
    assert!(told.iter().all(|last| last == &told[0]), "{told:?}");
    assert_eq!(told[0]["code"], "terminal_gone");
    let refused = Terminal::attach(&bob, &world.instance, &good, None).await.unwrap_err();
    assert_eq!(refused.0, StatusCode::NOT_FOUND);

    // Another session of the same account may.
    let phone = Client::anonymous(world.cluster.http()).login("alice", PASSWORD).await;
    let mut terminal = Terminal::attach(&phone, &world.instance, &good, None).await.unwrap();
    let opened = terminal.told().await;
    assert_eq!(opened["resumed"], true, "{opened}");
    drop(terminal);
    world.until_detached().await;
    world.node.change(id, |program| program.ended = Some(0));
    // The agent has nothing any more once the program has ended there.
    let (mut terminal, opened) = world.back(&text(&opened, "ticket"), None).await;
    assert_eq!(terminal.ended().await.last, json!({ "type": "exit", "code": 0 }), "{opened}");
    let (terminal, last) = world.back(&text(&opened, "ticket"), None).await;
    assert_eq!(last["code"], "terminal_gone");
    drop(terminal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_page_takes_a_terminal_over_and_the_first_is_told() {
    let world = World::start().await;
    let (mut first, ticket, id) = world.open().await;
    first.type_in("one ").await;
    first.until("one ").await;

    let (mut second, opened) = world.back(&ticket, Some(4)).await;

    let told = ended(first).await;
    assert_eq!((&told.last["code"], told.code), (&json!("taken_over"), 1008), "{told:?}");
    second.type_in("two").await;
    second.until("two").await;
    assert_eq!(opened["resumed"], true);
    let program = world.node.program(id);
    assert!(program.is_attached && !program.heard.contains(&ExecFrame::Hangup), "{program:?}");
    assert_eq!(
        world.listed().await[0]["detached_at"],
        Value::Null,
        "the first left nothing behind"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_outlives_its_controller_killed_or_stopped() {
    let mut world = World::start().await;
    let (mut terminal, mut ticket, id) = world.open().await;
    terminal.type_in("0").await;
    terminal.until("0").await;
    for (round, kill) in [(1, true), (2, false)] {
        if kill {
            world.cluster.controller().kill();
        } else {
            world.cluster.controller().stop();
        }
        world.node.until(id, "left", |program| !program.is_attached).await;
        world.node.change(id, |program| program.output.extend_from_slice(b"."));
        world.cluster.start_controller();

        // Until its agent is back the node is offline, and the ticket stays good.
        let deadline = Deadline::after(PATIENCE);
        let opened = loop {
            let (back, told) = world.back(&ticket, Some(u64::from(round == 2) + 1)).await;
            if told["type"] == "opened" {
                terminal = back;
                break told;
            }
            assert_eq!(told["code"], "node_offline", "{told}");
            deadline.pause_async("the node does not come back").await;
        };

        terminal.until(".").await;
        ticket = text(&opened, "ticket");
    }
    assert_eq!(world.node.program(id).output, b"0..");
    let rows = world.audited(5).await;
    let left: Vec<_> = rows.iter().filter(|row| row["event"] == "closed").collect();
    assert_eq!(left.len(), 1, "the one that was stopped, not killed: {rows:?}");
    assert_eq!(left[0]["reason"], "node_lost", "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_ends_by_a_word_of_its_page_or_by_a_call() {
    let world = World::start().await;
    let (mut terminal, _, id) = world.open().await;
    terminal.say(r#"{"type":"hangup"}"#).await;
    assert_eq!(ended(terminal).await.last, json!({ "type": "exit", "code": HUNG_UP }));
    world.until_gone(id).await;

    let (left, _, id) = world.open().await;
    left.leave().await;
    world.until_detached().await;
    let path = format!("/instances/{}/terminals/{id}", world.instance);
    world.alice.delete(&path).await;
    world.until_gone(id).await;

    let (open, _, id) = world.open().await;
    world.alice.delete(&format!("/instances/{}/terminals/{id}", world.instance)).await;
    let told = ended(open).await;
    assert_eq!((&told.last["code"], told.code), (&json!("terminal_gone"), 1008), "{told:?}");
    world.until_gone(id).await;
    assert_eq!(world.listed().await, Vec::<Value>::new());
    let (status, problem) = world.alice.try_call(Method::DELETE, &path, None).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("no_such_terminal")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_ends_ends_programs_with_and_without_a_page() {
    let world = World::start().await;
    let (open, _, here) = world.open().await;
    world.alice.delete("/session").await;
    assert_eq!(ended(open).await.last["code"], "unauthorised");
    world.until_gone(here).await;

    // A stop ends both; a log-out ended the one with a page only.
    let world = World { alice: relogin(&world).await, ..world };
    let (left, ticket, away) = world.open().await;
    left.leave().await;
    world.until_detached().await;
    let (open, _, here) = world.open().await;
    world.alice.act(&world.instance, "stop").await;
    assert_eq!(ended(open).await.last["code"], "stopped");
    world.until_gone(here).await;
    world.until_gone(away).await;
    let (_, told) = world.back(&ticket, None).await;
    assert_eq!(told["code"], "terminal_gone");
    world.alice.wait_phase(&world.instance, "exited").await;
    world.alice.act(&world.instance, "start").await;
    world.alice.wait_phase(&world.instance, "running").await;

    let (left, _, away) = world.open().await;
    left.leave().await;
    world.until_detached().await;
    let alice = text(&world.alice.get("/me").await, "id");
    world.admin.patch(&format!("/users/{alice}"), &json!({ "disabled": true })).await;
    world.until_gone(away).await;
}

async fn relogin(world: &World) -> Client {
    Client::anonymous(world.cluster.http()).login("alice", PASSWORD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_before_keeps_no_terminals_and_answers_old_questions_of_its_output() {
    let world = World::speaking(Version { minor: 0, ..VERSION }).await;
    let mut terminal = Terminal::open(&world.alice, &world.instance, "").await.unwrap();
    assert_eq!(terminal.told().await, json!({ "type": "opened", "kept": false }));
    terminal.type_in("echo").await;
    terminal.until("echo").await;
    terminal.say(r#"{"type":"hangup"}"#).await;
    assert_eq!(terminal.ended().await.code, 1000);
    assert_eq!(world.listed().await, Vec::<Value>::new());

    let path = format!("/instances/{}/logs", world.instance);
    let (status, output) = world.alice.try_call(Method::GET, &format!("{path}?tail=5"), None).await;
    assert_eq!((status, output), (StatusCode::OK, json!("a line\n")));
    for new in ["search=x", "since=10m", "download=true"] {
        let (status, problem) =
            world.alice.try_call(Method::GET, &format!("{path}?{new}"), None).await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("unsupported")));
    }
    let opened = world.node.opened();
    assert!(matches!(opened[..], [StreamOpen::Exec(_), StreamOpen::Logs(_)]), "{opened:?}");
}
