//! The jumpbox with OpenSSH's own client, whole path: a real engine, a real agent, a real instance.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Duration;

use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{ADMIN_PASSWORD, Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::ssh::Person;

const PASSWORD: &str = "correct horse battery";
/// How soon a connection ends when the right to it has.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Alice with a key and a running instance `one`; the fields are dropped in this order.
struct World {
    admin: Client,
    alice: Client,
    ssh: Person,
    key: String,
    id: String,
    spec: String,
    image: String,
    agent: Agent,
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
        let alice = person(&admin, &cluster, "alice").await;
        let ssh = Person::new(cluster.ssh(), "ed25519");
        let key = json!({ "name": "laptop", "public_key": ssh.public_key() });
        let key = text(&alice.post("/me/ssh-keys", &key).await, "id");
        let id = alice.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "running").await;
        Self { admin, alice, ssh, key, id, spec, image, agent, cluster, _engine: engine }
    }

    fn ssh(&self, args: &[&str]) -> std::process::Output {
        self.ssh.run("ssh", args)
    }

    async fn rows(&self, action: &str, count: usize) -> Vec<Value> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let list = self.admin.get(&format!("/audit-events?action={action}")).await;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            if items.len() >= count {
                return items;
            }
            deadline.pause_async(&format!("{count} rows of {action}: {items:?}")).await;
        }
    }
}

async fn person(admin: &Client, cluster: &Cluster, name: &str) -> Client {
    let body = json!({ "name": name, "password": PASSWORD, "must_change_password": false });
    admin.post("/users", &body).await;
    Client::anonymous(cluster.http()).login(name, PASSWORD).await
}

fn out(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_output_errors_exit_status_input_and_environment() {
    let world = World::start().await;

    let ran = world.ssh(&["alice+one@jump", "echo to-out; echo to-err >&2; exit 7"]);
    assert_eq!(
        (ran.status.code(), out(&ran), err(&ran)),
        (Some(7), "to-out\n".into(), "to-err\n".into())
    );
    let piped = world.ssh.ssh_with(&["alice+one@jump", "wc -c; echo done"], &[b'x'; 100_000]);
    assert_eq!(out(&piped).trim(), "100000\ndone", "{}", err(&piped));
    let killed = world.ssh(&["alice+one@jump", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137), "{}", err(&killed));
    let env = world.ssh(&["-o", "SetEnv=LC_TEST=here LD_PRELOAD=/x", "alice+one@jump", "env"]);
    assert!(out(&env).contains("LC_TEST=here") && !out(&env).contains("LD_PRELOAD"), "{env:?}");
    let by_id = world.ssh(&[&format!("alice+{}@jump", world.id), "true"]);
    assert_eq!(by_id.status.code(), Some(0), "{}", err(&by_id));
    let by_name = world.ssh.ssh_with(&["alice@jump", "one"], b"echo shell=$((40+2)); exit 3\n");
    assert_eq!((by_name.status.code(), out(&by_name).trim()), (Some(3), "shell=42"), "{by_name:?}");

    let rows = world.rows("instances:ssh", 12).await;
    let first = rows.iter().rev().map(|row| &row["detail"]).collect::<Vec<_>>();
    assert_eq!((&first[0]["event"], &first[0]["face"]), (&json!("opened"), &json!("ssh:exec")));
    assert_eq!((&first[1]["event"], &first[1]["exit_code"]), (&json!("closed"), &json!(7)));
    assert_eq!(first[0]["access"], first[1]["access"]);
    assert_eq!(first[1]["bytes_out"], 14, "{rows:?}");
    assert_eq!(first[3]["bytes_in"], 100_000, "{rows:?}");
    assert_eq!(rows[0]["via"], "ssh");
    assert!(!Value::from(rows).to_string().contains("to-out"), "command lines stay out");
    let logins = world.rows("session:login", 6).await;
    assert!(logins.iter().any(|row| row["detail"]["ssh_key"].as_str().is_some()), "{logins:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_goes_both_ways_at_once_and_one_stuck_channel_holds_up_no_other() {
    let world = World::start().await;
    let bytes: Vec<u8> =
        (0..64_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();

    // Input that comes back as output, more than any queue holds: neither way may wait for the other.
    let echoed = world.ssh.ssh_with(&["alice+one@jump", "cat"], &bytes);
    assert!(
        echoed.stdout == bytes,
        "{} of {} bytes, {}",
        echoed.stdout.len(),
        bytes.len(),
        err(&echoed)
    );

    // One connection, a channel whose program never reads, and a client that sends without end.
    let control = world.ssh.path("control");
    let control = format!("ControlPath={}", control.display());
    let master = ["-o", "ControlMaster=yes", "-o", &control, "-N", "alice+one@jump"];
    let _master = world.ssh.start(&master);
    let deadline = Deadline::after(PATIENCE);
    while !world.ssh(&["-O", "check", "-o", &control, "alice+one@jump"]).status.success() {
        deadline.pause("the connection is not there");
    }
    let mut stuck = world.ssh.start(&["-o", &control, "alice+one@jump", "sleep 1000"]);
    let mut stdin = stuck.child().stdin.take().unwrap();
    let writer = std::thread::spawn(move || while stdin.write_all(&[7; 65_536]).is_ok() {});
    tokio::time::sleep(Duration::from_secs(2)).await;
    let began = std::time::Instant::now();
    for _ in 0..5 {
        let other = world.ssh(&["-o", &control, "alice+one@jump", "echo alive"]);
        assert_eq!(out(&other), "alive\n", "{}", err(&other));
    }
    let down = world.ssh(&["-o", &control, "alice+one@jump", "head -c 8000000 /dev/zero"]);
    assert_eq!(down.stdout.len(), 8_000_000, "{}", err(&down));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(stuck);
    writer.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_lets_in_and_a_wrong_one_does_not() {
    let world = World::start().await;

    let right = world.ssh.ssh_by_password(PASSWORD, &["alice+one@jump", "echo in"]);
    assert_eq!(out(&right), "in\n", "{}", err(&right));
    let plain = ["-o", "PreferredAuthentications=password", "alice+one@jump", "echo in"];
    let plain = world.ssh.ssh_by_password(PASSWORD, &plain);
    assert_eq!(out(&plain), "in\n", "{}", err(&plain));
    let wrong = world.ssh.ssh_by_password("wrong", &["alice+one@jump", "echo in"]);
    assert_eq!((wrong.status.code(), out(&wrong).as_str()), (Some(255), ""));
    assert!(err(&wrong).contains("Permission denied"), "{}", err(&wrong));
    let nobody = world.ssh.ssh_by_password("wrong", &["nobody@jump", "echo in"]);
    assert_eq!(err(&nobody).replace("nobody", "alice+one"), err(&wrong));
    let unknown_key =
        Person::new(world.cluster.ssh(), "ed25519").run("ssh", &["alice@jump", "one"]);
    assert!(err(&unknown_key).contains("Permission denied"), "{}", err(&unknown_key));

    for kind in ["ecdsa", "rsa"] {
        let other = Person::new(world.cluster.ssh(), kind);
        let key = json!({ "name": kind, "public_key": other.public_key() });
        world.alice.post("/me/ssh-keys", &key).await;
        let ran = other.run("ssh", &["alice+one@jump", "echo in"]);
        assert_eq!(out(&ran), "in\n", "{kind}: {}", err(&ran));
    }
    let refused = world.admin.get("/audit-events?action=session:login&outcome=refused").await;
    assert!(refused["total"].as_u64() >= Some(2), "{refused}");
    assert_eq!(refused["items"][0]["via"], "ssh", "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_right_size_and_full_screen_programs_work() {
    let world = World::start().await;
    let screen = world.ssh.screen((101, 37), &["alice+one@jump"]);

    screen.line("echo size=$(stty size) term=$TERM");
    screen.until("size=37 101 term=");
    screen.resize(90, 20);
    screen.line("echo now=$(stty size)");
    screen.until("now=20 90");
    screen.line("vi /tmp/note");
    screen.until("/tmp/note");
    screen.keys(&["i", "written with vi"]);
    screen.until("I /tmp/note");
    screen.keys(&["Escape"]);
    screen.until("- /tmp/note");
    screen.line(":wq");
    screen.line("cat /tmp/note; echo sum=$((40+2))");
    assert!(screen.until("sum=42").contains("written with vi"));
    screen.line("echo go; sleep 1000");
    screen.until("\ngo");
    screen.keys(&["C-c"]);
    screen.line("echo alive=$((6*7))");
    screen.until("alive=42");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_menu_lists_filters_enters_comes_back_and_starts_what_stands_still() {
    let world = World::start().await;
    let other = world.alice.create_instance("train-7", &world.image, &world.spec).await;
    world.admin.wait_phase(&other, "running").await;
    world.alice.act(&other, "stop").await;
    world.admin.wait_phase(&other, "exited").await;
    let container = text(&world.alice.instance(&world.id).await, "container_id");
    let screen = world.ssh.screen((100, 30), &["alice@jump"]);

    let menu = screen.until("q: quit");
    assert!(menu.contains("Tianqi - instances of alice"), "{menu}");
    assert!(menu.contains(&format!("1    one      {}", &container[..12])), "{menu}");
    assert!(menu.contains("train-7") && menu.contains("stopped"), "{menu}");
    screen.line("nothing-like-it");
    screen.until("No instance is called like");
    screen.line("train");
    screen.until("filter: train");
    screen.keys(&["9", "BSpace", "1", "Enter"]);
    screen.line("echo in=$((40+2)); tty");
    screen.until("in=42");
    screen.resize(120, 33);
    screen.line("exit 5");
    screen.until("Back in the menu.");
    screen.line("train-7");
    screen.until("Start it? [y/n]");
    screen.line("y");
    screen.until("Starting it");
    screen.line("echo started=$((40+2))");
    screen.until("started=42");
    screen.line("echo size=$(stty size)");
    screen.until("size=33 120");
    screen.line("exit");
    screen.until_times("Back in the menu.", 2);
    screen.line("q");
    screen.until("Goodbye.");

    let chinese = world
        .ssh
        .command("ssh", &["-tt", "-o", "SetEnv=LC_ALL=zh_CN.UTF-8", "alice@jump"])
        .output()
        .unwrap();
    assert!(out(&chinese).contains("天启 - alice 的实例"), "{chinese:?}");
    let admin = world.ssh.ssh_by_password(ADMIN_PASSWORD, &["-tt", "admin@jump"]);
    assert!(out(&admin).contains("Owner") && out(&admin).contains("alice"), "{admin:?}");
    let named = world.ssh.ssh_by_password(ADMIN_PASSWORD, &["admin+alice/one@jump", "echo in"]);
    assert_eq!(out(&named), "in\n", "{}", err(&named));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_learns_of_an_instance_that_is_not_theirs() {
    let world = World::start().await;
    let bob = person(&world.admin, &world.cluster, "bob").await;
    let ssh = Person::new(world.cluster.ssh(), "ed25519");
    let key = json!({ "name": "laptop", "public_key": ssh.public_key() });
    bob.post("/me/ssh-keys", &key).await;

    let by_id = format!("bob+{}@jump", world.id);
    for login in
        ["bob+one@jump", "bob+none@jump", "bob+alice/one@jump", "bob+alice/none@jump", &by_id]
    {
        let ran = ssh.run("ssh", &[login, "true"]);
        assert_eq!(ran.status.code(), Some(255), "{login}");
        assert_eq!(err(&ran).trim(), "There is no such instance.", "{login}");
        let dial = ssh.run("ssh", &["-W", "127.0.0.1:80", login]);
        assert!(!dial.status.success(), "{login}");
    }
    let menu = ssh.run("ssh", &["-tt", "bob@jump"]);
    assert!(
        out(&menu).contains("You have no instances yet") && !out(&menu).contains("running"),
        "{menu:?}"
    );
    let line = ssh.run("ssh", &["bob@jump", "one"]);
    assert!(err(&line).contains("Name an instance: bob+NAME@HOST"), "{}", err(&line));
    assert_eq!(line.status.code(), Some(255));
    let jumps = ["one", "none"].map(|name| err(&ssh.run("ssh", &["-J", "bob@jump", name, "true"])));
    assert_eq!(jumps[0], jumps[1].replace("none", "one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_right_ends_the_connection_at_once() {
    let world = World::start().await;
    let open = |login: &str| {
        let mut open = world.ssh.start(&["-tt", login, "echo ready; sleep 1000"]);
        let stdout = open.child().stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        open
    };

    let mut by_session = open("alice+one@jump");
    let list = world.alice.get("/me/sessions").await;
    let ssh = list["items"].as_array().unwrap().iter().find(|it| it["kind"] == "ssh").unwrap();
    assert!(ssh["user_agent"].as_str().unwrap().starts_with("SSH-2.0-OpenSSH"), "{ssh}");
    world.alice.delete(&format!("/me/sessions/{}", text(ssh, "id"))).await;
    by_session.ends_within(AT_ONCE);

    let mut by_stop = open("alice+one@jump");
    world.alice.act(&world.id, "stop").await;
    by_stop.ends_within(AT_ONCE);
    let refused = world.ssh(&["alice+one@jump", "true"]);
    assert!(err(&refused).contains("does not run"), "{}", err(&refused));
    assert_eq!(refused.status.code(), Some(255));
    world.admin.wait_phase(&world.id, "exited").await;
    world.alice.act(&world.id, "start").await;
    world.admin.wait_phase(&world.id, "running").await;

    let mut by_key = open("alice+one@jump");
    world.alice.delete(&format!("/me/ssh-keys/{}", world.key)).await;
    by_key.ends_within(AT_ONCE);
    assert!(err(&world.ssh(&["alice+one@jump", "true"])).contains("Permission denied"));
    let key = json!({ "name": "laptop", "public_key": world.ssh.public_key() });
    world.alice.post("/me/ssh-keys", &key).await;

    let mut by_account = open("alice+one@jump");
    let me = text(&world.alice.get("/me").await, "id");
    world.admin.patch(&format!("/users/{me}"), &json!({ "disabled": true })).await;
    by_account.ends_within(AT_ONCE);
    assert!(err(&world.ssh(&["alice+one@jump", "true"])).contains("Permission denied"));
    let closed = world.rows("instances:ssh", 8).await;
    let reasons: Vec<_> =
        closed.iter().filter_map(|row| row["detail"]["reason"].as_str()).collect();
    assert_eq!(reasons.len(), 4, "each end is written down: {closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_ends_at_the_instances_own_stable_host_key() {
    let mut world = World::start().await;
    let other = world.alice.create_instance("two", &world.image, &world.spec).await;
    world.admin.wait_phase(&other, "running").await;

    let jumped = world.ssh(&["-J", "alice@jump", "one", "echo in; exit 4"]);
    assert_eq!(
        (jumped.status.code(), out(&jumped).as_str()),
        (Some(4), "in\n"),
        "{}",
        err(&jumped)
    );
    let long = world.ssh(&["-J", "alice@jump", "anybody@two.tianqi", "hostname"]);
    assert_eq!(long.status.code(), Some(0), "{}", err(&long));
    let bytes = vec![7; 20 << 20];
    let echoed = world.ssh.ssh_with(&["-J", "alice@jump", "one", "cat"], &bytes);
    assert!(echoed.stdout == bytes, "{} bytes, {}", echoed.stdout.len(), err(&echoed));
    let known = world.ssh.known_hosts();
    let key_of = |host: &str| {
        let line = known.lines().find(|line| line.starts_with(&format!("{host} ")));
        line.unwrap_or_else(|| panic!("{host}: {known}")).split(' ').nth(2).unwrap().to_owned()
    };
    assert_ne!(key_of("one"), key_of("two.tianqi"));
    assert_ne!(key_of("one"), key_of("jump"));

    world.cluster.controller().stop();
    world.cluster.start_controller();
    world.agent.wait_until_ready(&world.admin).await;
    let deadline = Deadline::after(PATIENCE);
    loop {
        let strict = ["-o", "StrictHostKeyChecking=yes", "-J", "alice@jump", "one", "true"];
        let again = world.ssh(&strict);
        if again.status.success() {
            break;
        }
        // The agent comes back some seconds after the controller.
        assert!(err(&again).contains("does not answer now"), "the keys are the same: {again:?}");
        deadline.pause_async("the node is back").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_a_taken_port_fails_the_start() {
    let world = World::start().await;

    let forward = world.ssh(&[
        "-o",
        "ExitOnForwardFailure=yes",
        "-R",
        "0:127.0.0.1:22",
        "alice+one@jump",
        "true",
    ]);
    assert!(err(&forward).contains("remote port forwarding failed"), "{}", err(&forward));
    let agent = world.ssh(&["-A", "-X", "alice+one@jump", "echo in"]);
    assert_eq!(out(&agent), "in\n", "{}", err(&agent));
    let elsewhere = world.ssh(&["-W", "127.0.0.1:22", "alice@jump"]);
    assert!(!elsewhere.status.success());
    let weak = world.ssh(&[
        "-o",
        "LogLevel=INFO",
        "-o",
        "KexAlgorithms=diffie-hellman-group14-sha1",
        "alice+one@jump",
        "true",
    ]);
    assert!(err(&weak).contains("no matching key exchange"), "{}", err(&weak));
    let sftp = world.ssh(&["-s", "alice@jump", "sftp"]);
    assert!(err(&sftp).contains("Name an instance"), "{}", err(&sftp));

    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5_000], &[b'x'; 100_000]] {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", world.cluster.ssh())).unwrap();
        let _ = socket.write_all(garbage);
        let _ = socket.read_to_end(&mut Vec::new());
    }
    assert_eq!(out(&world.ssh(&["alice+one@jump", "echo in"])), "in\n");

    let port = world.cluster.ssh();
    let second = world
        .cluster
        .command_of(&["serve"])
        .env("TIANQI_DATA_DIR", world.ssh.path("second"))
        .env("TIANQI_HTTP__LISTEN", "127.0.0.1:0")
        .env("TIANQI_AGENTS__LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = err(&second);
    assert!(said.contains(&format!("jumpbox.listen: cannot listen on 127.0.0.1:{port}")), "{said}");
}
