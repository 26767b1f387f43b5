//! Files and connections through the jumpbox, with OpenSSH's own clients, into an image that holds
//! neither sshd nor sftp-server. They travel through the guest in the instance.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;

use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::ssh::Person;

const PASSWORD: &str = "correct horse battery";

struct World {
    admin: Client,
    ssh: Person,
    _agent: Agent,
    _cluster: Cluster,
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
        let body = json!({ "name": "alice", "password": PASSWORD, "must_change_password": false });
        admin.post("/users", &body).await;
        let alice = Client::anonymous(cluster.http()).login("alice", PASSWORD).await;
        let ssh = Person::new(cluster.ssh(), "ed25519");
        let key = json!({ "name": "laptop", "public_key": ssh.public_key() });
        alice.post("/me/ssh-keys", &key).await;
        let id = alice.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "running").await;
        Self { admin, ssh, _agent: agent, _cluster: cluster, _engine: engine }
    }

    /// Starts two servers in the instance: at port 8888 one that answers what it was sent, and at
    /// 8889 of 127.0.0.1 alone one that gives the file `hello`.
    fn serve(&self) {
        let serve = "mkdir -p /tmp/www; echo hello >/tmp/www/hello; httpd -p 127.0.0.1:8889 -h /tmp/www; \
             setsid nc -ll -p 8888 -e cat >/dev/null 2>&1 </dev/null & \
             i=0; while [ $i -lt 100 ] && ! netstat -ltn | grep -q :8888; do \
             i=$((i+1)); sleep 0.1; done; netstat -ltn";
        let served = self.run("ssh", &["alice+one@jump", serve]);
        let shown = String::from_utf8_lossy(&served.stdout);
        let is_there = shown.contains(":8888") && shown.contains("127.0.0.1:8889");
        assert!(is_there, "{shown} {}", err(&served));
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        self.ssh.run(program, args)
    }

    fn path(&self, name: &str) -> String {
        self.ssh.path(name).to_str().unwrap().to_owned()
    }

    async fn closed(&self, face: &str) -> Value {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let list = self.admin.get("/audit-events?action=instances:ssh&page_size=200").await;
            let rows = list["items"].as_array().cloned().unwrap_or_default();
            let is_it =
                |row: &&Value| row["detail"]["face"] == face && row["detail"]["event"] == "closed";
            if let Some(row) = rows.iter().find(is_it) {
                return row["detail"].clone();
            }
            deadline.pause_async(&format!("no {face} was closed: {rows:?}")).await;
        }
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends something, ends sending, and reads everything that comes back.
fn echoed(port: u16, sent: &[u8]) -> Vec<u8> {
    let deadline = Deadline::after(PATIENCE);
    let mut socket = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(socket) => break socket,
            Err(_) => deadline.pause("the forward does not listen"),
        }
    };
    let mut writer = socket.try_clone().unwrap();
    let sent = sent.to_vec();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    socket.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_and_sftp_copy_both_ways_and_end_with_0() {
    let world = World::start().await;
    let bytes: Vec<u8> =
        (0..20_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(world.path("up"), &bytes).unwrap();
    fs::create_dir_all(world.path("tree/deep")).unwrap();
    fs::write(world.path("tree/deep/leaf"), "leaf").unwrap();

    // Today's protocol goes by sftp, the one before by a program in the instance.
    for legacy in [&[][..], &["-O"]] {
        let with = |rest: &[&str]| {
            let args: Vec<&str> = legacy.iter().chain(rest).copied().collect();
            world.run("scp", &args)
        };
        let up = with(&[&world.path("up"), "alice+one@jump:/tmp/up"]);
        assert_eq!(up.status.code(), Some(0), "{legacy:?}: {}", err(&up));
        let down = with(&["alice+one@jump:/tmp/up", &world.path("down")]);
        assert_eq!(down.status.code(), Some(0), "{legacy:?}: {}", err(&down));
        assert!(fs::read(world.path("down")).unwrap() == bytes);
        let tree = with(&["-r", &world.path("tree"), "alice+one@jump:/tmp/"]);
        assert_eq!(tree.status.code(), Some(0), "{legacy:?}: {}", err(&tree));
        let missing = with(&["alice+one@jump:/tmp/none", &world.path("none")]);
        assert_eq!(missing.status.code(), Some(1), "{legacy:?}: {}", err(&missing));
    }
    let jumped =
        world.run("scp", &["-J", "alice@jump", "one:/tmp/tree/deep/leaf", &world.path("leaf")]);
    assert_eq!(jumped.status.code(), Some(0), "{}", err(&jumped));
    assert_eq!(fs::read_to_string(world.path("leaf")).unwrap(), "leaf");

    fs::write(world.path("batch"), "mkdir /tmp/d\nput up /tmp/d/x\nls -l /tmp/d\nget /tmp/d/x got\nrm /tmp/d/x\nrmdir /tmp/d\n").unwrap();
    let mut sftp = world.ssh.command("sftp", &["-b", "batch", "alice+one@jump"]);
    let sftp = sftp.current_dir(world.ssh.path("")).output().unwrap();
    assert_eq!(sftp.status.code(), Some(0), "{}", err(&sftp));
    assert!(fs::read(world.path("got")).unwrap() == bytes);
    let closed = world.closed("ssh:sftp").await;
    assert_eq!(closed["reason"], "ended", "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_reach_what_listens_inside_alone_and_keep_half_closes() {
    let world = World::start().await;
    world.serve();
    let bytes: Vec<u8> =
        (0..8_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();

    let port = free_port();
    let rule = format!("{port}:127.0.0.1:8888");
    let _local = world.ssh.start(&["-N", "-L", &rule, "alice+one@jump"]);
    assert!(echoed(port, &bytes) == bytes, "a half that was closed is passed on");
    let together: Vec<_> = (0..20_u8)
        .map(|i| std::thread::spawn(move || echoed(port, &vec![i; 100_000]) == vec![i; 100_000]))
        .collect();
    assert!(together.into_iter().all(|one| one.join().unwrap()));

    let direct = world.ssh.ssh_with(&["-W", "127.0.0.1:8888", "alice+one@jump"], b"hello");
    assert_eq!(direct.stdout, b"hello", "{}", err(&direct));
    let closed_port = world.run("ssh", &["-W", "127.0.0.1:1", "alice+one@jump"]);
    assert!(!closed_port.status.success());
    let inside = world.ssh.ssh_with(&["-J", "alice@jump", "-W", "localhost:8888", "one"], b"hello");
    assert_eq!(inside.stdout, b"hello", "{}", err(&inside));

    let socks = free_port();
    let _dynamic = world.ssh.start(&["-N", "-D", &socks.to_string(), "alice+one@jump"]);
    let deadline = Deadline::after(PATIENCE);
    let mut socket = loop {
        match TcpStream::connect(("127.0.0.1", socks)) {
            Ok(socket) => break socket,
            Err(_) => deadline.pause("the proxy does not listen"),
        }
    };
    let alone = world
        .ssh
        .ssh_with(&["-W", "127.0.0.1:8889", "alice+one@jump"], b"GET /hello HTTP/1.0\r\n\r\n");
    assert!(alone.stdout.ends_with(b"\r\n\r\nhello\n"), "{alone:?}");
    // SOCKS 5: no authentication, then 127.0.0.1:8888.
    socket.write_all(&[5, 1, 0]).unwrap();
    socket.read_exact(&mut [0; 2]).unwrap();
    socket.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, 0x22, 0xb8]).unwrap();
    let mut answer = [0; 10];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[1], 0, "{answer:?}");
    socket.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");

    let closed = world.closed("ssh:forward").await;
    assert!(closed["bytes_out"].as_u64().is_some(), "{closed}");
    assert!(text(&world.admin.get("/me").await, "name") == "admin");
}
