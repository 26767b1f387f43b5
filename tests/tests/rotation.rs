//! `tianqi-controller secrets rotate`: the master key is exchanged under a running controller.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::raw_http::{Pair, connect};
use tianqi_tests::registry::{PASSWORD, Registry, USERNAME};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose engine fetches from a private registry. Dropped in this order.
struct World {
    admin: Client,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
    registry: Registry,
    image: String,
    reference: String,
    spec: String,
}

impl World {
    async fn start() -> Self {
        let registry = Registry::start();
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let agent = cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
        let reference = registry.take(&engine, images::busybox(&engine), "team/tool:1");
        let body = json!({
            "name": "private", "address": reference,
            "registry_username": USERNAME, "registry_password": PASSWORD,
        });
        let image = text(&admin.post("/images", &body).await, "id");
        let spec = admin.create_cpu_spec("small").await;
        let world = Self { admin, agent, cluster, engine, registry, image, reference, spec };
        world.give_pems().await;
        world
    }

    fn node(&self) -> String {
        format!("/nodes/{}", self.agent.node_id())
    }

    async fn give_pems(&self) {
        let Pair { certificate, key } = Pair::make();
        let body = json!({
            "docker_tls_ca": certificate, "docker_tls_cert": certificate, "docker_tls_key": key,
        });
        self.admin.patch(&self.node(), &body).await;
    }

    fn key(&self) -> Vec<u8> {
        std::fs::read(self.cluster.data_dir().join("master.key")).unwrap()
    }

    fn key_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cluster.data_dir()).unwrap();
        let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("master.key")).collect();
        names.sort();
        names
    }

    /// Fetches the private image anew, and changes one of the PEMs, for which the others are opened.
    async fn assert_secrets_work(&self, name: &str) {
        self.forget_image();
        let id = self.admin.create_instance(name, &self.image, &self.spec).await;
        self.admin.wait_phase(&id, "running").await;
        self.admin.delete(&format!("/instances/{id}")).await;
        self.admin.wait_gone(&id).await;
        let Pair { certificate, .. } = Pair::make();
        let body = json!({ "docker_tls_ca": certificate });
        let saved = self.admin.patch(&self.node(), &body).await;
        assert_eq!(saved["has_docker_tls"], true, "{saved}");
        assert!(!self.cluster.log().contains("cannot be opened"), "a secret does not open");
    }

    /// Takes the image off the engine, so that it is fetched with the password.
    fn forget_image(&self) {
        let list = self.engine.docker(&["image", "ls", "-q", &self.reference]);
        if !list.trim().is_empty() {
            self.engine.docker(&["image", "rm", "-f", &self.reference]);
        }
        assert!(self.reference.starts_with(self.registry.address()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_work_after_a_rotation_and_after_a_start_with_the_new_key() {
    let mut world = World::start().await;
    let old = world.key();
    world.assert_secrets_work("before").await;

    let output = world.cluster.run(&["secrets", "rotate"]);

    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The authority of the agents, the key of the audit's chain, the registry's password, the PEMs.
    assert!(said.starts_with("4 secrets are sealed with a new master key"), "{said}");
    assert_eq!(world.key_files(), ["master.key"]);
    assert_ne!(world.key()[..32], old[..32]);
    world.assert_secrets_work("after").await;
    world.cluster.kill_and_restart_controller();
    world.agent.wait_until_ready(&world.admin).await;
    world.assert_secrets_work("restarted").await;

    let page = world.admin.get("/audit-events?action=local:secrets-rotate").await;
    assert_eq!((&page["total"], &page["items"][0]["outcome"]), (&json!(1), &json!("done")));
    // With the old key, the rows say that they want another one.
    world.cluster.controller().stop();
    std::fs::write(world.cluster.data_dir().join("master.key"), old).unwrap();
    let refused = world.cluster.run(&["serve"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("another master key"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_loses_nothing_and_the_next_start_ends_it() {
    let mut world = World::start().await;
    let old = world.key();
    let create = json!({ "name": "keyed", "address": "tianqi/none:1", "registry_username": "u",
        "registry_password": "a password of the keyed image" });
    let keyed = async |world: &World| -> Value {
        let request = world.admin.request(Method::POST, "/images");
        let answer = request.header("idempotency-key", "the-same").json(&create).send().await;
        answer.unwrap().json().await.unwrap()
    };
    let made = keyed(&world).await;

    // A request whose body does not end may still seal something with the old key.
    let mut held = connect(world.cluster.http()).await;
    let head = format!(
        "POST /api/v1/images HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 1000\r\n\
         expect: 100-continue\r\n\r\n",
        world.admin.token().unwrap()
    );
    held.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    held.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 Continue"), "its handler waits for the body");
    let mut rotation = world.cluster.command_of(&["secrets", "rotate"]);
    let mut rotation = rotation.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Deadline::after(PATIENCE);
    while world.key_files().len() < 2 {
        deadline.pause_async("the new key is not there").await;
    }
    assert_eq!(world.key(), old, "the old key stays until the end");
    // In between, what either key sealed opens.
    world.give_pems().await;
    world.assert_secrets_work("between").await;
    let twice = world.cluster.run(&["secrets", "rotate"]);
    assert!(String::from_utf8_lossy(&twice.stderr).contains("already"), "{twice:?}");
    assert!(rotation.try_wait().unwrap().is_none(), "it waits for the request");

    world.cluster.controller().kill();
    assert_eq!(world.key_files(), ["master.key", "master.key.new"]);
    rotation.wait().unwrap();
    world.cluster.start_controller();

    assert_eq!(world.key_files(), ["master.key"]);
    assert_ne!(world.key()[..32], old[..32]);
    world.agent.wait_until_ready(&world.admin).await;
    world.assert_secrets_work("afterwards").await;
    assert_eq!(keyed(&world).await["id"], made["id"], "a request that is repeated is recognised");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_moment_lose_nothing() {
    let mut cluster = Cluster::start();
    let mut images = Vec::new();
    let admin = cluster.admin().await;
    for n in 0..30 {
        let body = json!({
            "name": format!("image-{n}"), "address": "tianqi/none:1",
            "registry_username": "u", "registry_password": format!("password of image {n}"),
        });
        images.push(text(&admin.post("/images", &body).await, "id"));
    }

    for round in 0..8 {
        let mut rotation = cluster.command_of(&["secrets", "rotate"]);
        let mut rotation = rotation.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Another moment in each round: from before it begins to after it ends.
        tokio::time::sleep(Duration::from_millis(round * 8)).await;
        cluster.kill_and_restart_controller();
        rotation.wait().unwrap();

        let seal = opened(&cluster.data_dir());
        let rows = sealed_passwords(&cluster.data_dir()).await;
        assert_eq!(rows.len(), images.len());
        for (id, sealed) in rows {
            let n = images.iter().position(|image| *image == id.to_string()).unwrap();
            let row = format!("images/{id}/registry_password");
            let plain = seal.open(&row, &sealed).unwrap();
            assert_eq!(*plain, format!("password of image {n}").into_bytes(), "round {round}");
        }
        assert!(!cluster.data_dir().join("master.key.new").exists(), "the start ends it");
    }
}

fn opened(data_dir: &Path) -> tianqi_controller::core::seal::Seal {
    tianqi_controller::core::seal::Seal::open_or_create(&data_dir.join("master.key")).unwrap()
}

async fn sealed_passwords(data_dir: &Path) -> Vec<(uuid::Uuid, Vec<u8>)> {
    use sqlx::{ConnectOptions as _, Row as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data_dir.join("tianqi.db"));
    let mut db = options.read_only(true).connect().await.unwrap();
    let sql = "select id, sealed_registry_password from images";
    let rows = sqlx::query(sql).fetch_all(&mut db).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}
