//! The port over real SSH, without a node: logging in, limits, and clients that mean harm.

use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, AuthResult, Handle};
use russh::keys::PublicKeyOrCertificate;
use russh::{ChannelMsg, Disconnect};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::bind;
use crate::authz::RoleName;
use crate::config::{Config, Jumpbox as Rules};
use crate::core::db::args;
use crate::testing::{Api, PASSWORD};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

struct World {
    api: Api,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start(rules: Rules) -> Self {
        let mut api = Api::sqlite().await;
        let jumpbox = Rules { listen: ([127, 0, 0, 1], 0).into(), ..rules };
        let config = Config { jumpbox, ..(*api.ctx.config).clone() };
        api.ctx.config = Arc::new(config);
        api.person("alice", RoleName::USER).await;
        let jumpbox = bind(&api.ctx).await.unwrap().unwrap();
        let (address, stop) = (jumpbox.address(), CancellationToken::new());
        let served = tokio::spawn(jumpbox.serve(stop.clone()));
        Self { api, address, stop, served }
    }

    async fn connect(&self) -> Handle<Anyone> {
        let config = Arc::new(client::Config::default());
        client::connect(config, self.address, Anyone).await.unwrap()
    }

    async fn log_in(&self) -> Handle<Anyone> {
        let mut client = self.connect().await;
        let outcome = client.authenticate_password("alice", PASSWORD).await.unwrap();
        assert!(matches!(outcome, AuthResult::Success), "{outcome:?}");
        client
    }

    async fn count(&self, what: &str) -> i64 {
        self.api.ctx.db.number(&format!("select count(*) from {what}"), args![]).await.unwrap()
    }
}

async fn is_let_in(client: &mut Handle<Anyone>, name: &str, password: &str) -> bool {
    let outcome = client.authenticate_password(name, password).await;
    matches!(outcome, Ok(AuthResult::Success))
}

#[tokio::test]
async fn a_session_lives_as_long_as_its_connection() {
    let world = World::start(Rules::default()).await;

    let client = world.log_in().await;
    assert_eq!(world.count("sessions where kind = 'ssh'").await, 1);
    client.disconnect(Disconnect::ByApplication, "", "").await.unwrap();

    let gone = async {
        while world.count("sessions where kind = 'ssh'").await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    let done = "audit_events where action = 'session:login' and outcome = 'done' and via = 'ssh'";
    assert_eq!(world.count(done).await, 1);
}

#[tokio::test]
async fn wrong_passwords_at_speed_are_slowed_down_whether_the_account_exists_or_not() {
    for name in ["alice", "nobody"] {
        let world = World::start(Rules::default()).await;
        let before = world.api.ctx.authz.hasher.runs();
        for _ in 0..5 {
            let mut client = world.connect().await;
            assert!(!is_let_in(&mut client, name, "wrong").await);
        }
        // The clock stands still, so after the third failure nothing is compared any more.
        assert_eq!(world.api.ctx.authz.hasher.runs() - before, 3, "{name}");
        assert!(!is_let_in(&mut world.connect().await, name, PASSWORD).await, "{name}");

        world.api.clock.advance(Duration::from_secs(61));
        let is_in = is_let_in(&mut world.connect().await, name, PASSWORD).await;
        assert_eq!(is_in, name == "alice");
    }
}

#[tokio::test]
async fn whoever_must_change_their_password_is_told_so_and_does_nothing() {
    let world = World::start(Rules::default()).await;
    let sql = "update users set must_change_password = $1 where name = 'alice'";
    world.api.ctx.db.run(sql, args![true]).await.unwrap();
    let client = world.log_in().await;

    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "one").await.unwrap();
    let (mut said, mut code) = (String::new(), None);
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::ExtendedData { data, .. } = &message {
            said += &String::from_utf8_lossy(data);
        }
        if let ChannelMsg::ExitStatus { exit_status } = message {
            code = Some(exit_status);
        }
    }

    assert!(said.contains("Set your own password first"), "{said}");
    assert_eq!(code, Some(255));
    let forward = client.channel_open_direct_tcpip("one", 22, "127.0.0.1", 1).await;
    assert!(forward.is_err());
}

#[tokio::test]
async fn connections_that_say_nothing_or_nonsense_are_ended_and_bounded() {
    let rules = Rules { unauthenticated_per_address: 3, login_seconds: 1, ..Rules::default() };
    let world = World::start(rules).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
        let mut greeting = [0; 14];
        silent.last_mut().unwrap().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"SSH-2.0-Tianqi");
    }

    let mut refused = TcpStream::connect(world.address).await.unwrap();
    let heard = refused.read(&mut [0; 8]).await.unwrap_or_default();
    assert_eq!(heard, 0, "a fourth is not talked to");
    for mut socket in silent {
        let mut heard = Vec::new();
        let ended = socket.read_to_end(&mut heard);
        let _ = tokio::time::timeout(PATIENCE, ended).await.expect("it is ended in time");
    }
    for garbage in [&[b'x'; 100_000][..], b"\0\0\0\0", b"SSH-1.0-old\r\n"] {
        let mut socket = TcpStream::connect(world.address).await.unwrap();
        let _ = socket.write_all(garbage).await;
        let mut heard = Vec::new();
        let ended = socket.read_to_end(&mut heard);
        let _ = tokio::time::timeout(PATIENCE, ended).await.expect("it is ended");
    }

    world.log_in().await;
}

#[tokio::test]
async fn ten_thousand_channels_are_not_opened() {
    let rules = Rules { channels_per_connection: 8, ..Rules::default() };
    let world = World::start(rules).await;
    let client = world.log_in().await;

    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..10_000 {
        match client.channel_open_session().await {
            Ok(channel) => open.push(channel),
            Err(_) => refused += 1,
        }
    }

    assert_eq!((open.len(), refused), (8, 9_992));
    open[0].close().await.unwrap();
    let again = async {
        while client.channel_open_session().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("a place that was given back is taken");
}

#[tokio::test]
async fn an_account_has_so_many_connections_and_is_told_so() {
    let world = World::start(Rules { sessions_per_account: 1, ..Rules::default() }).await;
    let first = world.log_in().await;
    let second = world.log_in().await;

    let mut channel = second.channel_open_session().await.unwrap();
    channel.exec(true, "one").await.unwrap();
    let mut said = String::new();
    while let Some(message) = channel.wait().await {
        if let ChannelMsg::ExtendedData { data, .. } = message {
            said += &String::from_utf8_lossy(&data);
        }
    }

    assert!(said.contains("as many SSH connections"), "{said}");
    assert!(first.channel_open_session().await.is_ok(), "the first is not concerned");
}

#[tokio::test]
async fn ending_the_session_and_stopping_the_port_end_connections() {
    let world = World::start(Rules::default()).await;
    let client = world.log_in().await;
    let alice = world.api.log_in("alice").await;
    let list = world.api.call(&alice, "GET", "/me/sessions", None).await;
    let items = list.body["items"].as_array().unwrap().clone();
    let ssh = items.iter().find(|it| it["kind"] == json!("ssh")).unwrap();
    let path = format!("/me/sessions/{}", ssh["id"].as_str().unwrap());

    assert_eq!(world.api.call(&alice, "DELETE", &path, None).await.code(), 204);
    let ended = async {
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), ended).await.expect("it ends at once");

    let other = world.log_in().await;
    world.stop.cancel();
    tokio::time::timeout(PATIENCE, world.served).await.unwrap().unwrap();
    while !other.is_closed() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_connection_that_nobody_uses_ends() {
    let world = World::start(Rules { idle_minutes: 1, ..Rules::default() }).await;
    let client = world.log_in().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!client.is_closed());

    // The clock of the controller and the runtime's are moved together.
    tokio::time::pause();
    world.api.clock.advance(Duration::from_secs(61));
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();

    let ended = async {
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it is ended");
}
