//! SSH through the jumpbox into an instance, beside OpenSSH on the same machine: through a jump host
//! of its own, and straight to the far side.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tianqi_tests::client::Client;
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

use crate::proc::{free_addresses, machine_cpu_seconds, rss_mb};
use crate::report::{Line, Report, Times, count};

const ROUNDS: usize = 3;
const LOGINS: usize = 15;
const GIB: usize = 1 << 30;
const FILE_MIB: usize = 256;
const IDLE: usize = 200;
/// An instance takes 64 programs at once.
const PER_INSTANCE: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// Dropped in this order.
struct World {
    agent: Agent,
    cluster: Cluster,
    peers: Peers,
    keys: TempDir,
    _engine: Dockerd,
}

/// A way to the far side, as the options and the address that `ssh` takes.
struct Way {
    name: &'static str,
    options: Vec<String>,
    target: String,
}

impl World {
    async fn start() -> (Self, Client, Vec<String>) {
        let keys = tempfile::Builder::new().prefix("tianqi-ssh-").tempdir().expect("folder");
        let key = keys.path().join("key");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
        let engine = Dockerd::start();
        let cluster = Cluster::start_with(&[("TIANQI_JUMPBOX__SESSIONS_PER_ACCOUNT", "400")]);
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let public_key = fs::read_to_string(key.with_extension("pub")).expect("a key");
        admin.post("/me/ssh-keys", &json!({ "name": "bench", "public_key": public_key })).await;
        let image = admin.create_image("busybox", images::busybox(&engine)).await;
        // Most of two cores, so that the limit of the instance is not what is measured; the others
        // only hold sessions.
        let busy = admin.create_spec("busy", &json!({ "cpu_cores": 1.6 })).await;
        let idle = admin.create_spec("idle", &json!({ "cpu_cores": 0.1 })).await;
        let mut names = Vec::new();
        for number in 0..=IDLE / PER_INSTANCE {
            let (name, spec) = (format!("one-{number}"), if number == 0 { &busy } else { &idle });
            let id = admin.create_instance(&name, &image, spec).await;
            admin.wait_phase(&id, "running").await;
            names.push(name);
        }
        let peers = Peers::start(keys.path());
        (Self { agent, cluster, peers, keys, _engine: engine }, admin, names)
    }

    fn options(&self, port: u16) -> Vec<String> {
        let key = self.keys.path().join("key");
        let known = self.keys.path().join("known_hosts");
        let mut words: Vec<String> = vec!["-F".into(), "/dev/null".into()];
        for option in [
            format!("IdentityFile={}", key.display()),
            "IdentitiesOnly=yes".into(),
            format!("UserKnownHostsFile={}", known.display()),
            "StrictHostKeyChecking=no".into(),
            "BatchMode=yes".into(),
            "LogLevel=ERROR".into(),
            format!("Port={port}"),
        ] {
            words.extend(["-o".into(), option]);
        }
        words
    }

    fn ours(&self, instance: &str) -> Way {
        Way {
            name: "jumpbox",
            options: self.options(self.cluster.ssh()),
            target: format!("admin+{instance}@127.0.0.1"),
        }
    }

    fn direct(&self) -> Way {
        let target = "root@127.0.0.1".to_owned();
        Way { name: "OpenSSH direct", options: self.options(self.peers.far.port), target }
    }

    fn jump(&self) -> Way {
        let hop = self.options(self.peers.jump.port).join(" ");
        let proxy = format!("ProxyCommand=ssh {hop} -W %h:%p root@127.0.0.1");
        let mut options = self.options(self.peers.far.port);
        options.extend(["-o".into(), proxy]);
        Way { name: "OpenSSH by a jump host", options, target: "root@127.0.0.1".into() }
    }
}

impl Way {
    fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(&self.options).arg(&self.target).arg(command).stdin(Stdio::null());
        ssh
    }

    fn copy(&self, program: &str, words: &[String]) {
        run(Command::new(program).arg("-q").args(&self.options).args(words).stdin(Stdio::null()));
    }
}

/// Two SSH servers: a jump host, and the far side.
struct Peers {
    jump: Sshd,
    far: Sshd,
}

struct Sshd {
    child: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peers {
    fn start(keys: &Path) -> Self {
        fs::create_dir_all("/run/sshd").expect("/run/sshd");
        Self { jump: Sshd::start(keys, "jump"), far: Sshd::start(keys, "far") }
    }
}

impl Sshd {
    fn start(keys: &Path, name: &str) -> Self {
        let port: u16 = free_addresses().0.rsplit(':').next().unwrap().parse().unwrap();
        let host_key = keys.join(format!("host-{name}"));
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&host_key));
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\nPrintMotd no\nPrintLastLog no\n\
             PidFile none\nMaxStartups 400\nSubsystem sftp internal-sftp\n",
            host_key.display(),
            keys.join("key.pub").display()
        );
        let file = keys.join(format!("sshd-{name}"));
        fs::write(&file, config).expect("configuration");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sshd is installed");
        let deadline = Deadline::after(PATIENCE);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            deadline.pause("sshd does not listen");
        }
        Self { child, port }
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Measures everything that goes by SSH.
pub async fn measure(report: &mut Report) {
    let (mut world, _admin, names) = World::start().await;
    let ways = [world.ours(&names[0]), world.jump(), world.direct()];
    // Guests start, host keys become known, files are in memory.
    for way in
        ways.iter().chain(names.iter().map(|name| world.ours(name)).collect::<Vec<_>>().iter())
    {
        run(&mut way.ssh("true"));
    }
    logins(report, &ways);
    bulk(report, &ways);
    copies(report, &world, &ways);
    idle(report, &mut world, &names);
}

/// Runs a command of one line, from `ssh` to its first output.
fn logins(report: &mut Report, ways: &[Way; 3]) {
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..LOGINS {
        for (way, times) in ways.iter().zip(&mut times) {
            let began = Instant::now();
            run(&mut way.ssh("echo ready"));
            times.push(began.elapsed());
        }
    }
    let [ours, jump, direct] = times.map(|times| Times::new(times).median_ms());
    report.add(&Line {
        what: "ssh: log in, run a command, leave",
        ours: format!("{ours:.0} ms, median of {LOGINS}"),
        peer: format!("{} {jump:.0} ms; {} {direct:.0} ms", ways[1].name, ways[2].name),
        ratio: format!("{:.2}; {:.2}", ours / jump, ours / direct),
        bar: "<= 1 time OpenSSH by a jump host",
        met: ours <= jump,
        ..Line::default()
    });
}

fn bulk(report: &mut Report, ways: &[Way; 3]) {
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut cpu = [0.0; 3];
    for _ in 0..ROUNDS {
        for ((way, times), cpu) in ways.iter().zip(&mut times).zip(&mut cpu) {
            let (began, before) = (Instant::now(), machine_cpu_seconds());
            let mut ssh = way.ssh(&format!("head -c {GIB} /dev/zero"));
            let status = ssh.stdout(Stdio::null()).status().expect("ssh runs");
            assert!(status.success());
            times.push(began.elapsed());
            *cpu += (machine_cpu_seconds() - before) / count(ROUNDS);
        }
    }
    let rate = |times: Vec<Duration>| 1_073.7 / Times::new(times).at(50).as_secs_f64();
    let [ours, jump, direct] = times.map(rate);
    report.add(&Line {
        what: "ssh: 1 GiB out of an instance, one stream",
        ours: format!("{ours:.0} MB/s, {:.1} CPU s per GiB, median of {ROUNDS}", cpu[0]),
        peer: format!(
            "{} {jump:.0} MB/s, {:.1} CPU s; {} {direct:.0} MB/s, {:.1} CPU s",
            ways[1].name, cpu[1], ways[2].name, cpu[2]
        ),
        ratio: format!("{:.2}; {:.2}", ours / jump, ours / direct),
        bar: ">= 1 time OpenSSH by a jump host",
        met: ours >= jump,
        ..Line::default()
    });
}

/// Copies a file in and out with `scp` and `sftp`.
fn copies(report: &mut Report, world: &World, ways: &[Way; 3]) {
    let local = world.keys.path().join("file");
    run(Command::new("sh")
        .args(["-c", &format!("head -c {}M /dev/urandom >\"$0\"", FILE_MIB)])
        .arg(&local));
    let local = local.display().to_string();
    for (program, what) in [
        ("scp", "scp: a file of 256 MiB in, and out again"),
        ("sftp", "sftp: a file of 256 MiB in, and out again"),
    ] {
        let mut times: [Vec<Duration>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (way, times) in ways.iter().zip(&mut times) {
                let began = Instant::now();
                copy(program, way, &local);
                times.push(began.elapsed());
            }
        }
        let rate = |times: Vec<Duration>| {
            2.0 * count(FILE_MIB) * 1.048_576 / Times::new(times).at(50).as_secs_f64()
        };
        let [ours, jump, direct] = times.map(rate);
        report.add(&Line {
            what,
            ours: format!("{ours:.0} MB/s, median of {ROUNDS}"),
            peer: format!("{} {jump:.0} MB/s; {} {direct:.0} MB/s", ways[1].name, ways[2].name),
            ratio: format!("{:.2}; {:.2}", ours / jump, ours / direct),
            ..Line::default()
        });
    }
}

fn copy(program: &str, way: &Way, local: &str) {
    let remote = "/tmp/tianqi-bench-file";
    let back = format!("{local}-back");
    if program == "scp" {
        way.copy("scp", &[local.to_owned(), format!("{}:{remote}", way.target)]);
        way.copy("scp", &[format!("{}:{remote}", way.target), back]);
    } else {
        let batch = format!("{local}-batch");
        fs::write(&batch, format!("put {local} {remote}\nget {remote} {back}\n")).expect("batch");
        way.copy("sftp", &["-b".to_owned(), batch, way.target.clone()]);
    }
}

/// Holds many sessions with nothing to do.
fn idle(report: &mut Report, world: &mut World, names: &[String]) {
    let controller = world.cluster.controller().pid();
    let agent = world.agent.process().pid();
    let before = (rss_mb(controller), rss_mb(agent));
    let mut held = Vec::new();
    for number in 0..IDLE {
        let way = world.ours(&names[1 + number % (names.len() - 1)]);
        let mut ssh = way.ssh("echo here; exec sleep 600");
        let mut ssh = ssh.stdout(Stdio::piped()).spawn().expect("ssh runs");
        let mut first = [0; 1];
        std::io::Read::read_exact(ssh.stdout.as_mut().expect("piped"), &mut first)
            .expect("a session");
        held.push(ssh);
    }
    let after = (rss_mb(controller), rss_mb(agent));
    for mut ssh in held {
        let _ = ssh.kill();
        let _ = ssh.wait();
    }
    let each = |before: f64, after: f64| (after - before) * 1_000.0 / count(IDLE);
    report.add(&Line {
        what: "200 idle SSH sessions",
        ours: format!(
            "controller {:.0} KB each ({:.0} to {:.0} MB), agent {:.0} KB each",
            each(before.0, after.0),
            before.0,
            after.0,
            each(before.1, after.1)
        ),
        peer: "OpenSSH has two processes for each, some MB".to_owned(),
        ..Line::default()
    });
}
