//! The guest in a real container: what outlives what, and what a hostile one can do.

use std::time::Duration;

use tianqi_tests::client::{Client, PATIENCE};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::terminal::Terminal;

/// A running instance; the fields are dropped in this order.
struct World {
    admin: Client,
    id: String,
    spec: String,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
}

impl World {
    async fn start(image: fn(&Dockerd) -> &'static str) -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let image = admin.create_image("image", image(&engine)).await;
        let spec = admin.create_cpu_spec("small").await;
        let id = admin.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "running").await;
        Self { admin, id, spec, agent, cluster, engine }
    }

    fn exec(&self, words: &[&str]) -> String {
        let output = self.cluster.run(&[&["exec", &self.id, "--"], words].concat());
        assert!(output.status.success(), "{output:?}\n{}", self.agent.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn agent_memory_kib(&mut self) -> u64 {
        let status = format!("/proc/{}/status", self.agent.process().pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Returns the engine's id of the first instance's container.
    fn container(&self) -> String {
        let name = self.engine.docker(&["ps", "-q", "--no-trunc", "--filter", "name=^one-"]);
        name.trim().to_owned()
    }

    /// Returns the process ids of the guests that serve on the engine.
    fn guests(&self) -> Vec<String> {
        let containers = self.engine.containers_labelled("tianqi.instance");
        let tops = containers.iter().map(|id| self.engine.docker(&["top", id, "-eo", "pid,args"]));
        let lines = tops.flat_map(|top| top.lines().map(str::to_owned).collect::<Vec<_>>());
        let serving = lines.filter(|line| line.contains("tianqi/guest serve"));
        serving.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }
}

fn kill(pids: &[String]) {
    let killed = std::process::Command::new("kill").arg("-KILL").args(pids).status();
    assert!(killed.is_ok_and(|status| status.success()));
}

async fn opened(world: &World) -> Terminal {
    let mut terminal = Terminal::open(&world.admin, &world.id, "").await.unwrap();
    assert_eq!(terminal.told().await["type"], "opened");
    terminal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_outlives_a_killed_engine_and_new_ones_open_without_it() {
    let world = World::start(images::busybox).await;
    let mut terminal = opened(&world).await;
    terminal.type_in("word=$((40+2))\r").await;

    world.engine.kill();

    terminal.type_in("echo word=$word\r").await;
    terminal.until("word=42").await;
    assert_eq!(world.exec(&["echo", "no engine"]), "no engine\n");
    world.engine.resume();
    terminal.type_in("echo again=$word\r").await;
    terminal.until("again=42").await;
    assert_eq!(world.guests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_outlives_its_agent_and_a_killed_one_is_started_again() {
    let mut world = World::start(images::busybox).await;
    assert_eq!(world.exec(&["echo", "first"]), "first\n");
    let first = world.guests();
    assert_eq!(first.len(), 1);

    world.agent.kill_and_restart();
    let deadline = Deadline::after(PATIENCE);
    while !world.cluster.run(&["exec", &world.id, "--", "true"]).status.success() {
        deadline.pause_async("the agent that was started again serves").await;
    }
    assert_eq!(world.guests(), first, "the same guest serves");

    kill(&first);
    assert_eq!(world.exec(&["echo", "back"]), "back\n");
    assert_eq!(world.guests().len(), 1);
    assert_ne!(world.guests(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_guest_can_serve_the_engine_does() {
    let world = World::start(images::busybox).await;
    let socket = world.agent.data_dir().join("guests").join(&world.id).join("agent.sock");
    std::fs::remove_file(&socket).unwrap();
    let mut terminal = opened(&world).await;

    terminal.type_in("echo sum=$((40+2))\r").await;
    terminal.until("sum=42").await;
    assert_eq!(world.exec(&["sh", "-c", "echo engine; exit 0"]), "engine\n");
    assert_eq!(world.guests().len(), 0);
}

/// Kills the guest, takes its name, and dials in its place. Then every stream is answered by what
/// `$ARGV[0]` says.
const HOSTILE: &str = r#"
use strict; use IO::Socket::UNIX; use Socket;
my $mode = $ARGV[0];
for my $one (glob '/proc/[0-9]*/cmdline') {
    open(my $line, '<', $one) or next; local $/; my $words = <$line>;
    kill 9, $one =~ /(\d+)/ if $words =~ /guest\0serve/;
}
sleep 1;
my @found = stat('/.tianqi/run');
socket(my $lock, PF_UNIX, SOCK_STREAM, 0);
bind($lock, pack('S a*', AF_UNIX, "\0tianqi-guest-$found[0]-$found[1]")) or die "lock: $!";
sub dial { IO::Socket::UNIX->new(Peer => '/.tianqi/run/agent.sock') or die "dial: $!" }
sub say_frame { my ($to, $body) = @_; syswrite($to, pack('V', length $body) . $body) }
if ($mode eq 'flood') {
    # Connections that say nothing, and garbage on others.
    my @silent;
    for (1..600) { my $one = IO::Socket::UNIX->new(Peer => '/.tianqi/run/agent.sock') or last; push @silent, $one }
    for (1..200) { my $one = IO::Socket::UNIX->new(Peer => '/.tianqi/run/agent.sock') or last; syswrite($one, "\xff" x 4096) }
    for (1..200) { my $one = IO::Socket::UNIX->new(Peer => '/.tianqi/run/agent.sock') or last; say_frame($one, "\x01" . ("\x00" x 16)) }
}
my $control = dial(); say_frame($control, "\x00\x01");
print "dialled\n"; STDOUT->flush; $| = 1;
while (sysread($control, my $head, 4) == 4) {
    sysread($control, my $asked, unpack('V', $head));
    my $stream = dial(); say_frame($stream, "\x01" . substr($asked, 1));
    next if fork();
    sysread($stream, my $open, 65536);
    if ($mode eq 'silent') { sleep 60 }
    if ($mode eq 'garbage') { syswrite($stream, pack('V', 1) . "\x00" . ("\xff" x 100000)); sleep 5 }
    if ($mode eq 'forged') { say_frame($stream, "\x00"); say_frame($stream, "\x00\x05typed"); sleep 5 }
    if ($mode eq 'flood') { say_frame($stream, "\x00"); my $piece = "\x02\x80\x80\x02" . ('x' x 32768); while (syswrite($stream, pack('V', length $piece) . $piece)) {} }
    exit 0;
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_guest_harms_nobody_but_its_own_instance() {
    let mut world = World::start(images::debian).await;
    let other = world.admin.create_instance("two", &first_image(&world).await, &world.spec).await;
    world.admin.wait_phase(&other, "running").await;
    for mode in ["garbage", "forged", "silent", "flood"] {
        world.exec(&["true"]);
        let container = world.container();
        let redirected = format!("exec perl -e \"$0\" {mode} >/tmp/{mode} 2>&1");
        world.engine.docker(&["exec", "-d", &container, "sh", "-c", &redirected, HOSTILE]);
        let deadline = Deadline::after(PATIENCE);
        loop {
            let said =
                world.engine.try_docker(&["exec", &container, "cat", &format!("/tmp/{mode}")]);
            if said.stdout == b"dialled\n" {
                break;
            }
            deadline.pause_async(&format!("the hostile guest serves: {said:?}")).await;
        }

        // Its own streams fail or are served by the engine; each comes to an end.
        let mut own = world.cluster.command_of(&["exec", &world.id, "--", "echo", "own"]);
        let mut own = own.stdout(std::process::Stdio::null()).spawn().unwrap();
        let deadline = Deadline::after(Duration::from_secs(8));
        while mode != "flood" && own.try_wait().unwrap().is_none() {
            deadline.pause_async(&format!("{mode}: the stream comes to an end")).await;
        }
        // A flood has no end but the reader's.
        tokio::time::sleep(Duration::from_secs(if mode == "flood" { 3 } else { 0 })).await;
        own.kill().unwrap();
        own.wait().unwrap();
        let memory = world.agent_memory_kib();
        assert!(memory < 100 << 10, "{mode}: the agent has {memory} KiB");

        // Those of its neighbour go on, and the node stays what it was.
        let neighbour = world.cluster.run(&["exec", &other, "--", "echo", "unharmed"]);
        assert_eq!(
            String::from_utf8_lossy(&neighbour.stdout),
            "unharmed\n",
            "{mode}: {neighbour:?}"
        );
        let node = world.admin.get(&format!("/nodes/{}", world.agent.node_id())).await;
        assert_eq!(node["online"], true, "{mode}");
        world.admin.act(&world.id, "restart").await;
        world.admin.wait_phase(&world.id, "running").await;
        let deadline = Deadline::after(PATIENCE);
        while world.cluster.run(&["exec", &world.id, "--", "true"]).status.code() != Some(0) {
            deadline.pause_async("the restarted instance serves again").await;
        }
    }
}

async fn first_image(world: &World) -> String {
    world.admin.get("/images").await["items"][0]["id"].as_str().unwrap().to_owned()
}
