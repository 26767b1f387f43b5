//! Forwards into instances, whole path: a controller, an agent, a Docker engine, and servers in real
//! containers, most of them on the container's own 127.0.0.1 alone, reached through the guest.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

const PASSWORD: &str = "correct horse battery";
/// Answers whatever it gets, at port 8888; sums what it got up at 8887; gives files at 8889 of 127.0.0.1
/// alone, which busybox's `nc` cannot.
const SERVERS: &str = "mkdir -p /tmp/www; [ -f /tmp/www/big ] || dd if=/dev/urandom of=/tmp/www/big bs=1M count=20; \
     httpd -p 127.0.0.1:8889 -h /tmp/www; \
     nc -ll -p 8888 -e cat </dev/null >/dev/null 2>&1 & \
     nc -ll -p 8887 -e sha256sum </dev/null >/dev/null 2>&1 & \
     for port in 8887 8888 8889; do \
     i=0; while [ $i -lt 100 ] && ! netstat -ltn | grep -q :$port; do \
     i=$((i+1)); sleep 0.1; done; done; netstat -ltn";
/// Answers datagrams in capitals, at port 9999.
const UPPER: &str = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', \
     LocalPort => 9999, Proto => 'udp') or die $!; open(my $f, '>', '/tmp/up'); close $f; \
     while (defined(my $from = recv($s, my $said, 65535, 0))) { send($s, uc $said, 0, $from) }";

/// The fields are dropped in this order.
struct World {
    admin: Client,
    alice: Client,
    bob: Client,
    id: String,
    agent: Agent,
    _cluster: Cluster,
    engine: Dockerd,
}

impl World {
    async fn start() -> Self {
        Self::start_on(images::busybox).await
    }

    async fn start_on(image: fn(&Dockerd) -> &'static str) -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start_with(&[
            ("TIANQI_FORWARDS__USER_ADDRESSES", "127.0.0.1"),
            ("TIANQI_FORWARDS__USER_PORTS", "20000-61000"),
        ]);
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let image = admin.create_image("image", image(&engine)).await;
        let spec = admin.create_cpu_spec("small").await;
        for name in ["alice", "bob"] {
            let account =
                json!({ "name": name, "password": PASSWORD, "must_change_password": false });
            admin.post("/users", &account).await;
        }
        let anybody = Client::anonymous(cluster.http());
        let alice = anybody.login("alice", PASSWORD).await;
        let bob = anybody.login("bob", PASSWORD).await;
        let id = alice.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "running").await;
        Self { admin, alice, bob, id, agent, _cluster: cluster, engine }
    }

    /// Runs a script in the container, beside the platform.
    async fn run(&self, program: &[&str]) -> String {
        let container = text(&self.admin.instance(&self.id).await, "container_id");
        let words = [&["exec", &container][..], program].concat();
        self.engine.docker(&words)
    }

    async fn serve(&self) {
        let listening = self.run(&["sh", "-c", SERVERS]).await;
        for at in [":8887", ":8888", "127.0.0.1:8889"] {
            assert!(listening.contains(at), "{listening}");
        }
    }

    /// Asks for a forward of `who` into the instance.
    async fn ask(&self, who: &Client, port: u16, fields: Value) -> (StatusCode, Value) {
        let mut body = json!({
            "listen_ip": "127.0.0.1", "listen_port": free_port(), "instance_id": self.id,
            "instance_port": port,
        });
        for (key, value) in fields.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        who.try_call(Method::POST, "/forwards", Some(&body)).await
    }

    /// Makes a forward of alice's; returns its path and its port.
    async fn forward(&self, port: u16, fields: Value) -> (String, u16) {
        let (status, made) = self.ask(&self.alice, port, fields).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        assert_eq!(made["live"]["state"], "listening", "{made}");
        let listen = made["listen_port"].as_u64().and_then(|port| u16::try_from(port).ok());
        (format!("/forwards/{}", text(&made, "id")), listen.unwrap())
    }

    /// Waits until a forward stands as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let live = self.admin.get(path).await["live"].clone();
            if wanted(&live) {
                return live;
            }
            deadline.pause_async(&format!("{live}")).await;
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a line and reads it back.
fn is_echoed(stream: &mut TcpStream, line: &str) -> bool {
    let mut got = vec![0; line.len()];
    stream.write_all(line.as_bytes()).is_ok()
        && stream.read_exact(&mut got).is_ok()
        && got == line.as_bytes()
}

/// Whether the other side ends the connection while somebody waits for it.
fn ends(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn curl(port: u16, path: &str) -> Vec<u8> {
    let url = format!("http://127.0.0.1:{port}/{path}");
    let output = Command::new("curl").args(["-sSf", "--max-time", "60", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_pages_and_20_mb_unchanged_from_a_server_inside() {
    let world = World::start().await;
    world.serve().await;
    let expected = world.run(&["sha256sum", "/tmp/www/big"]).await;
    world.run(&["sh", "-c", "echo hello >/tmp/www/page"]).await;
    let (path, listen) = world.forward(8889, json!({})).await;

    let (page, big) = (curl(listen, "page"), curl(listen, "big"));

    assert_eq!(page, b"hello\n");
    assert_eq!(big.len(), 20 << 20);
    assert_eq!(expected.split_whitespace().next().unwrap(), sha256(&big));
    let live = world.until(&path, |live| live["connections"] == 0).await;
    assert!(live["bytes_out"].as_u64().unwrap() > 20 << 20, "{live}");
    assert_eq!(live["last_error"], Value::Null, "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_reach_a_server_inside_and_100_connections_stand_side_by_side() {
    let world = World::start().await;
    world.serve().await;
    let (_, sums) = world.forward(8887, json!({})).await;
    let (path, echoes) = world.forward(8888, json!({})).await;
    let sent: Vec<u8> =
        (0..8_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();

    // The sum is known only when the sender has ended.
    let mut client = connect(sums);
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut sum = String::new();
    client.read_to_string(&mut sum).unwrap();
    assert_eq!(sum.split_whitespace().next(), Some(sha256(&sent).as_str()));

    let mut clients: Vec<_> = (0..100).map(|_| connect(echoes)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert!(is_echoed(client, &format!("{number} of 100")), "{number}");
    }
    assert_eq!(world.admin.get(&path).await["live"]["connections"], 100);
    for (number, client) in clients.iter_mut().enumerate().rev() {
        assert!(is_echoed(client, &format!("{number} again")), "{number}");
    }
    drop(clients);
    let live = world.until(&path, |live| live["connections"] == 0).await;
    assert_eq!(live["total_connections"], 100, "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_reach_a_server_inside_and_each_client_gets_its_own_answers() {
    let world = World::start_on(images::debian).await;
    let container = text(&world.admin.instance(&world.id).await, "container_id");
    world.engine.docker(&["exec", "-d", &container, "perl", "-e", UPPER]);
    world.run(&["sh", "-c", "while [ ! -e /tmp/up ]; do sleep 0.1; done"]).await;
    let (path, listen) = world.forward(9999, json!({ "protocol": "udp" })).await;
    let clients = [0, 1].map(|_| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(("127.0.0.1", listen)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    });

    let long = "x".repeat(1_400);
    for round in 0..20 {
        for (number, client) in clients.iter().enumerate() {
            let said = format!("client {number} round {round} {long}");
            client.send(said.as_bytes()).unwrap();
            let mut got = [0; 2_000];
            let length = client.recv(&mut got).unwrap();
            assert_eq!(got[..length], *said.to_uppercase().as_bytes());
        }
    }

    assert_eq!(world.admin.get(&path).await["live"]["connections"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn people_lead_into_own_instances_on_the_ports_that_an_admin_set_aside() {
    let world = World::start().await;
    world.serve().await;
    let (_, listen) = world.forward(8888, json!({})).await;
    assert!(is_echoed(&mut connect(listen), "mine"));

    let refused = async |who: &Client, fields: Value| {
        let (status, answer) = world.ask(who, 8888, fields.clone()).await;
        assert!(status.is_client_error(), "{fields}: {answer}");
        text(&answer, "code")
    };

    for port in [1, 80, 1_023, 19_999, 61_001, 65_535] {
        let code = refused(&world.alice, json!({ "listen_port": port })).await;
        assert_eq!(code, "port_not_allowed", "{port}");
    }
    let code = refused(&world.alice, json!({ "listen_ip": "0.0.0.0" })).await;
    assert_eq!(code, "address_not_allowed");
    let code = refused(&world.alice, json!({ "listen_port": listen })).await;
    assert_eq!(code, "listen_taken");
    // Somebody else's instance is like one that does not exist.
    let (theirs_status, theirs) = world.ask(&world.bob, 8888, json!({})).await;
    let nowhere = json!({ "instance_id": "01900000-0000-7000-8000-000000000000" });
    let (none_status, none) = world.ask(&world.bob, 8888, nowhere).await;
    assert_eq!(theirs["code"], "no_such_instance", "{theirs}");
    assert_eq!((theirs_status, &theirs["detail"]), (none_status, &none["detail"]));
    let list = world.bob.get("/forwards").await;
    assert_eq!(list["total"], 0, "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_with_the_instances_run_and_the_forward_works_again_after_a_start() {
    let world = World::start().await;
    world.serve().await;
    let (path, listen) = world.forward(8888, json!({})).await;
    let mut open = connect(listen);
    assert!(is_echoed(&mut open, "before"));

    world.alice.act(&world.id, "stop").await;
    assert!(ends(&mut open), "it is still open");
    world.admin.wait_phase(&world.id, "exited").await;
    // A client that keeps its half open holds nothing up.
    world.until(&path, |live| live["connections"] == 0).await;
    drop(open);
    let before = world.admin.get(&path).await["live"]["total_connections"].as_u64().unwrap();
    assert!(ends(&mut connect(listen)), "somebody is let in");
    let live = world
        .until(&path, |live| {
            live["total_connections"].as_u64() > Some(before) && live["connections"] == 0
        })
        .await;
    let said = text(&live, "last_error");
    assert!(said.contains("does not run; start it first"), "{live}");

    world.alice.act(&world.id, "start").await;
    world.admin.wait_phase(&world.id, "running").await;
    world.serve().await;
    assert!(is_echoed(&mut connect(listen), "after"), "{}", world.admin.get(&path).await);

    let mut open = connect(listen);
    assert!(is_echoed(&mut open, "to the end"));
    world.alice.delete(&format!("/instances/{}", world.id)).await;
    assert!(ends(&mut open), "it is still open");
    let deadline = Deadline::after(PATIENCE);
    while world.admin.try_call(Method::GET, &path, None).await.0 != StatusCode::NOT_FOUND {
        deadline.pause_async("the forward stays without its instance").await;
    }
    let again = TcpListener::bind(("127.0.0.1", listen));
    assert!(again.is_ok(), "the port is still taken: {again:?}");
    let rows = world.admin.get("/audit-events?action=forwards:write&page_size=200").await;
    let rows = rows["items"].as_array().unwrap();
    let row = rows.iter().find(|row| row["detail"]["verb"] == "delete").expect("a row");
    assert_eq!(row["detail"]["reason"], "instance_deleted", "{row}");
    assert_eq!(row["via"], "system", "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_port_is_told_of_and_a_restarted_agent_carries_on() {
    let mut world = World::start().await;
    world.serve().await;
    let (silent, nobody) = world.forward(8080, json!({})).await;
    assert!(ends(&mut connect(nobody)), "somebody listens");
    let live = world.until(&silent, |live| live["last_error"].is_string()).await;
    let said = text(&live, "last_error").to_lowercase();
    assert!(said.contains("refused"), "{live}");
    assert_eq!(live["state"], "listening", "{live}");

    let (path, listen) = world.forward(8888, json!({})).await;
    let mut open = connect(listen);
    assert!(is_echoed(&mut open, "before"));
    world.agent.kill_and_restart();
    assert!(ends(&mut open), "it is still open");
    let deadline = Deadline::after(PATIENCE);
    let mut client = connect(listen);
    client.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    while !is_echoed(&mut client, "after") {
        let live = world.admin.get(&path).await["live"].clone();
        deadline.pause_async(&format!("the agent does not carry on: {live}")).await;
        client = connect(listen);
        client.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    }
}
