//! Forwards into instances, from the listening port to the agent's end of the stream: a controller in
//! this process, a real link over loopback, and an agent whose instances are this machine's loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tianqi_agent::enroll::{self, IdentityStore, Join};
use tianqi_agent::link::{LinkParts, SAMPLE_QUEUE, StreamService};
use tianqi_common::clock::SystemClock;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::VERSION;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::{Datagram, StreamOpen, StreamRefusal, StreamReply};
use tianqi_controller::app::{self, Running};
use tianqi_controller::config::{Config, Limits};
use tianqi_controller::core::db::Value as Sql;
use tianqi_controller::core::event::Event;
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::deadline::Deadline;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const PASSWORD: &str = "a-long-enough-password";
/// How soon what is open ends when the right to it has.
const AT_ONCE: Duration = Duration::from_secs(2);

/// An agent's end whose instances all are this machine.
#[derive(Clone, Copy, Debug)]
struct Inside;

impl StreamService for Inside {
    async fn serve<R, W>(&self, open: StreamOpen, reader: R, mut writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let refused =
            |code, message: &str| StreamReply::Refused { code, message: message.to_owned() };
        match open {
            StreamOpen::Tcp(dial) => {
                assert_eq!(dial.host, "127.0.0.1");
                match TcpStream::connect(("127.0.0.1", dial.port)).await {
                    Ok(inner) => tcp(inner, reader, writer).await,
                    Err(error) => {
                        let reply = refused(StreamRefusal::ConnectFailed, &error.to_string());
                        frame::write(&mut writer, &reply, Limit::OPEN).await.unwrap();
                    }
                }
            }
            StreamOpen::Udp(dial) => udp(dial.port, reader, writer).await,
            StreamOpen::Exec(_)
            | StreamOpen::Logs(_)
            | StreamOpen::Pull(_)
            | StreamOpen::Check(_)
            | StreamOpen::Terminal(_)
            | StreamOpen::Sftp(_)
            | StreamOpen::LogQuery(_) => {
                let reply = refused(StreamRefusal::Unsupported, "not here");
                let _ = frame::write(&mut writer, &reply, Limit::OPEN).await;
            }
        }
    }
}

async fn tcp<R, W>(mut inner: TcpStream, mut reader: R, mut writer: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    frame::write(&mut writer, &StreamReply::Open, Limit::OPEN).await.unwrap();
    let (mut from_inner, mut to_inner) = inner.split();
    let inwards = async {
        tokio::io::copy(&mut reader, &mut to_inner).await?;
        to_inner.shutdown().await
    };
    let outwards = async {
        tokio::io::copy(&mut from_inner, &mut writer).await?;
        writer.shutdown().await
    };
    let _ = tokio::try_join!(inwards, outwards);
}

async fn udp<R, W>(port: u16, mut reader: R, mut writer: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let inner = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    inner.connect(("127.0.0.1", port)).await.unwrap();
    frame::write(&mut writer, &StreamReply::Open, Limit::OPEN).await.unwrap();
    let inwards = async {
        while let Ok(Some(Datagram(bytes))) = frame::read(&mut reader, Limit::STREAM).await {
            let _ = inner.send(&bytes).await;
        }
    };
    let outwards = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = inner.recv(&mut buffer).await {
            let datagram = Datagram(Bytes::copy_from_slice(&buffer[..length]));
            if frame::write(&mut writer, &datagram, Limit::STREAM).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
    }
}

/// A controller, an agent, alice and her instance.
struct World {
    running: Running,
    admin: Client,
    alice: Client,
    instance: InstanceId,
    stopping: CancellationToken,
    _folders: (TempDir, TempDir),
}

impl World {
    async fn start() -> Self {
        tianqi_tests::install_crypto();
        let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let mut config = Config {
            data_dir: folders.0.path().join("controller"),
            limits: Limits::none(),
            ..Config::default()
        };
        config.http.listen = any;
        config.agents.listen = any;
        config.jumpbox.listen = any;
        config.forwards.user_addresses = vec![any.ip()];
        config.forwards.user_ports = "1024-65535".parse().unwrap();
        let first = config.data_dir.join("initial-admin-password");
        let running = app::start(config, SystemClock::shared()).await.unwrap();
        let anybody = Client::anonymous(&running.http.to_string());
        let first = std::fs::read_to_string(first).unwrap();
        let admin = anybody.login("admin", first.trim()).await;
        let change = json!({ "current_password": first.trim(), "new_password": PASSWORD });
        let (status, answer) = admin.try_call(Method::PUT, "/me/password", Some(&change)).await;
        assert!(status.is_success(), "{answer}");
        let admin = anybody.login("admin", PASSWORD).await;
        let account =
            json!({ "name": "alice", "password": PASSWORD, "must_change_password": false });
        admin.post("/users", &account).await;
        let alice = anybody.login("alice", PASSWORD).await;
        let stopping = CancellationToken::new();
        let node = join(&running, &admin, folders.1.path(), stopping.clone()).await;
        let instance = placed(&running, &admin, &alice, node).await;
        Self { running, admin, alice, instance, stopping, _folders: folders }
    }

    /// Makes a forward of alice's into her instance and returns its path and where it listens.
    async fn forward(&self, port: u16, protocol: &str) -> (String, SocketAddr) {
        let listen = if protocol == "udp" {
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
        } else {
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
        };
        let body = json!({
            "listen_ip": listen.ip(), "listen_port": listen.port(), "protocol": protocol,
            "instance_id": self.instance, "instance_port": port,
        });
        let made = self.alice.post("/forwards", &body).await;
        assert_eq!(made["live"]["state"], "listening", "{made}");
        (format!("/forwards/{}", text(&made, "id")), listen)
    }

    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let forward = self.admin.get(path).await;
            if wanted(&forward["live"]) {
                return forward;
            }
            deadline.pause_async(&format!("{forward}")).await;
        }
    }

    async fn end(self) {
        self.stopping.cancel();
        self.running.stop().await;
    }
}

/// Joins an agent and waits until the controller serves it.
async fn join(
    running: &Running,
    admin: &Client,
    data_dir: &std::path::Path,
    stopping: CancellationToken,
) -> NodeId {
    let token = admin.post("/join-tokens", &json!({ "ttl_seconds": 600, "max_uses": 1 })).await;
    let join = Join {
        controller: running.agents.to_string(),
        token: text(&token, "token").parse().unwrap(),
        data_dir: data_dir.to_owned(),
        force: true,
        hostname: "gpu-07".to_owned(),
        version: VERSION,
    };
    let clock = SystemClock::shared();
    enroll::join(&join, clock.clone()).await.unwrap();
    let parts = LinkParts {
        identity: IdentityStore::open(data_dir).unwrap(),
        clock,
        desired: watch::channel(None).0,
        settings: watch::channel(None).0,
        observed: watch::channel(None).1,
        inventory: watch::channel(None).1,
        samples: mpsc::channel(SAMPLE_QUEUE).1,
        streams: Inside,
        version: VERSION,
    };
    tokio::spawn(tianqi_agent::link::run(parts, stopping));
    let deadline = Deadline::after(PATIENCE);
    loop {
        if let Some(node) = running.ctx.link.connected_nodes().first() {
            return *node;
        }
        deadline.pause_async("the agent is not connected").await;
    }
}

/// Makes an instance of alice's that is on a node, as far as the rows say.
async fn placed(running: &Running, admin: &Client, alice: &Client, node: NodeId) -> InstanceId {
    let image = admin.create_image("busybox", "busybox:latest").await;
    let spec = admin.create_cpu_spec("small").await;
    let instance = alice.create_instance("one", &image, &spec).await;
    let instance = InstanceId(instance.parse().unwrap());
    let sql = "update instances set node_id = $1, phase = 'running' where id = $2";
    running.ctx.db.run(sql, vec![Sql::from(node), Sql::from(instance)]).await.unwrap();
    running.ctx.events.send(Event::Instance(instance));
    instance
}

async fn echoing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    port
}

async fn echo(stream: &mut TcpStream) {
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.unwrap().unwrap();
    assert_eq!(&answer, b"hello");
}

async fn ends_at_once(stream: &mut TcpStream) {
    let read = tokio::time::timeout(AT_ONCE, stream.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "it is still open: {read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_client_of_an_instance_still_gets_the_reply() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let (path, listen) = world.forward(port, "tcp").await;

    let sent: Vec<u8> = (0..5_000_000_usize).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut client = TcpStream::connect(listen).await.unwrap();
    client.write_all(&sent).await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    let read = tokio::time::timeout(PATIENCE, client.read_to_end(&mut got)).await;
    read.unwrap().unwrap();

    assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
    let live = world.until(&path, |live| live["connections"] == 0).await["live"].clone();
    assert_eq!((&live["bytes_in"], &live["bytes_out"]), (&json!(5_000_000), &json!(5_000_000)));
    world.admin.patch(&path, &json!({ "enabled": false })).await;
    let rows = world.admin.get("/audit-events?action=forwards:write&page_size=200").await;
    let rows = rows["items"].as_array().unwrap();
    let closed: Vec<_> = rows.iter().filter(|row| row["detail"]["event"] == "closed").collect();
    assert_eq!(closed.len(), 1, "{rows:?}");
    assert_eq!(closed[0]["detail"]["bytes_out"], 5_000_000, "{closed:?}");
    assert_eq!(closed[0]["actor_name"], "alice", "{closed:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_two_clients_go_into_an_instance_and_come_back_to_each() {
    let world = World::start().await;
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            server.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let (path, listen) = world.forward(port, "udp").await;
    let clients = [
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    ];

    for round in 0..20 {
        for (number, client) in clients.iter().enumerate() {
            let sent = format!("{number}/{round}");
            client.send_to(sent.as_bytes(), listen).await.unwrap();
            let mut buffer = [0; 64];
            let got = tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await;
            let (length, from) = got.unwrap().unwrap();
            assert_eq!((&buffer[..length], from), (sent.as_bytes(), listen));
        }
    }

    assert_eq!(world.admin.get(&path).await["live"]["connections"], 2);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_nobody_listens_on_in_the_instance_is_told_of() {
    let world = World::start().await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (path, listen) = world.forward(unused, "tcp").await;

    let mut client = TcpStream::connect(listen).await.unwrap();
    ends_at_once(&mut client).await;

    let live = world.until(&path, |live| live["last_error"].is_string()).await["live"].clone();
    assert!(live["last_error"].as_str().unwrap().contains("refused"), "{live}");
    assert_eq!(live["state"], "listening", "{live}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_at_once_when_its_owner_or_the_instance_goes() {
    let world = World::start().await;
    let (path, listen) = world.forward(echoing().await, "tcp").await;
    let mut open = TcpStream::connect(listen).await.unwrap();
    echo(&mut open).await;
    let owner = text(&world.admin.get(&path).await, "owner_id");

    world.admin.patch(&format!("/users/{owner}"), &json!({ "disabled": true })).await;
    ends_at_once(&mut open).await;
    assert!(TcpStream::connect(listen).await.is_err(), "the port is still there");

    world.admin.patch(&format!("/users/{owner}"), &json!({ "disabled": false })).await;
    world.running.ctx.events.send(Event::Roles);
    world.until(&path, |live| live["state"] == "listening").await;
    let mut open = TcpStream::connect(listen).await.unwrap();
    echo(&mut open).await;
    world.admin.delete(&format!("/instances/{}", world.instance)).await;
    ends_at_once(&mut open).await;
    let deadline = Deadline::after(PATIENCE);
    while world.admin.try_call(Method::GET, &path, None).await.0 != StatusCode::NOT_FOUND {
        deadline.pause_async("the forward stays without its instance").await;
    }
    assert!(TcpStream::connect(listen).await.is_err(), "the port is still there");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_does_not_hold_up_its_neighbour() {
    let world = World::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, stuck) = world.forward(silent.local_addr().unwrap().port(), "tcp").await;
    let (_, other) = world.forward(echoing().await, "tcp").await;
    let mut client = TcpStream::connect(stuck).await.unwrap();
    let (block, mut sent) = (vec![7_u8; 1 << 20], 0_usize);
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_millis(500), client.write(&block)).await
    {
        sent += taken.unwrap();
        assert!(sent < 128 << 20, "it is kept somewhere");
    }

    echo(&mut TcpStream::connect(other).await.unwrap()).await;
    world.end().await;
}
