//! Everything that changes something leaves a row in the audit, with who, what and how it ended.

use std::sync::atomic::{AtomicU16, Ordering};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tianqi_tests::api::{Operation, operations};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{ADMIN_PASSWORD, Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;

const PASSWORD: &str = "a-long-enough-password";
const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICvjztBQGh62NfsD9vZHmN0xBvHMLyuBefme95mo6XeX";

/// A call that succeeds.
struct Call {
    client: Client,
    /// What stands for `{id}`.
    id: String,
    body: Value,
}

struct World {
    cluster: Cluster,
    admin: Client,
    agent: Agent,
    image: String,
    spec: String,
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let agent = joined(&cluster, &admin).await;
        let image = admin.create_image("image", "tianqi/busybox:1").await;
        let spec = admin.create_cpu_spec("spec").await;
        Self { cluster, admin, agent, image, spec }
    }

    /// Makes what an operation needs and returns a call of it that changes something.
    async fn call(&self, operation: &Operation) -> Call {
        let (id, body) = match operation.template.split('/').nth(1).unwrap() {
            "forwards" => self.on_forwards(operation).await,
            "images" => self.on_images(operation).await,
            "specs" => self.on_specs(operation).await,
            "instances" => self.on_instances(operation).await,
            "users" => self.on_users(operation).await,
            "roles" => self.on_roles(operation).await,
            "quotas" => self.on_quotas(operation).await,
            "nodes" | "join-tokens" => self.on_nodes(operation).await,
            "session" | "me" => return self.on_oneself(operation).await,
            _ => panic!("no call of {operation:?} is known: add one here"),
        };
        Call { client: self.admin.clone(), id, body }
    }

    async fn on_forwards(&self, operation: &Operation) -> (String, Value) {
        static NEXT: AtomicU16 = AtomicU16::new(20_000);
        let forward = json!({
            "listen_ip": "127.0.0.1", "listen_port": NEXT.fetch_add(1, Ordering::Relaxed),
            "target_ip": "192.0.2.1", "target_port": 80, "enabled": false,
        });
        if (operation.method.as_str(), operation.template.as_str()) == ("post", "/forwards") {
            return (String::new(), forward);
        }
        let id = text(&self.admin.post("/forwards", &forward).await, "id");
        let body = match (operation.method.as_str(), operation.template.as_str()) {
            ("post", "/forwards/delete") => json!({ "ids": [id] }),
            ("put", "/forwards/{id}/enabled") => json!({ "enabled": false }),
            ("patch" | "delete", "/forwards/{id}") => json!({ "remark": "changed" }),
            _ => panic!("no call of {operation:?} is known: add one here"),
        };
        (id, body)
    }

    async fn on_images(&self, operation: &Operation) -> (String, Value) {
        let name = unique();
        match operation.method.as_str() {
            "post" => (String::new(), json!({ "name": name, "address": "tianqi/busybox:1" })),
            "patch" | "delete" => {
                let id = self.admin.create_image(&name, "tianqi/busybox:1").await;
                (id, json!({ "remark": "changed" }))
            }
            _ => panic!("no call of {operation:?} is known: add one here"),
        }
    }

    async fn on_specs(&self, operation: &Operation) -> (String, Value) {
        let name = unique();
        match operation.method.as_str() {
            "post" => {
                let body = json!({
                    "name": name, "gpu_count": 0, "cpu_cores": 0.5, "memory_mib": 64,
                    "system_disk_gib": 0, "data_disk_gib": 1, "price_per_hour": "0",
                });
                (String::new(), body)
            }
            "patch" | "delete" => {
                (self.admin.create_cpu_spec(&name).await, json!({ "remark": "changed" }))
            }
            _ => panic!("no call of {operation:?} is known: add one here"),
        }
    }

    async fn on_instances(&self, operation: &Operation) -> (String, Value) {
        let name = unique();
        let create = json!({ "name": name, "image_id": self.image, "spec_id": self.spec });
        match (operation.method.as_str(), operation.template.as_str()) {
            ("post", "/instances") => (String::new(), create),
            ("post", "/instances/delete") => {
                let id = text(&self.admin.post("/instances", &create).await, "id");
                (id.clone(), json!({ "ids": [id] }))
            }
            ("patch" | "delete", _) | ("post", "/instances/{id}/stop") => {
                let id = text(&self.admin.post("/instances", &create).await, "id");
                (id, json!({ "remark": "changed" }))
            }
            ("post", "/instances/{id}/start" | "/instances/{id}/restart") => {
                let id = text(&self.admin.post("/instances", &create).await, "id");
                self.admin.act(&id, "stop").await;
                (id, json!({}))
            }
            _ => panic!("no call of {operation:?} is known: add one here"),
        }
    }

    async fn on_users(&self, operation: &Operation) -> (String, Value) {
        let account = json!({
            "name": format!("u{}", unique()), "password": PASSWORD, "must_change_password": false,
        });
        let body = match (operation.method.as_str(), operation.template.as_str()) {
            ("post", "/users") => return (String::new(), account),
            ("patch", _) => json!({ "display_name": "changed" }),
            ("delete", _) => json!({}),
            ("put", "/users/{id}/password") => json!({ "password": "another-long-password" }),
            _ => panic!("no call of {operation:?} is known: add one here"),
        };
        (text(&self.admin.post("/users", &account).await, "id"), body)
    }

    async fn on_roles(&self, operation: &Operation) -> (String, Value) {
        let role = json!({ "name": format!("r{}", unique()), "permissions": [] });
        let body = match operation.method.as_str() {
            "post" => return (String::new(), role),
            "patch" => json!({ "permissions": [{ "permission": "nodes:read", "reach": "all" }] }),
            "delete" => json!({}),
            _ => panic!("no call of {operation:?} is known: add one here"),
        };
        (text(&self.admin.post("/roles", &role).await, "name"), body)
    }

    /// Sets and removes quotas of an account, or of a role, that has one.
    async fn on_quotas(&self, operation: &Operation) -> (String, Value) {
        let id = if operation.template.starts_with("/quotas/roles") {
            "auditor".to_owned()
        } else {
            let account = json!({ "name": format!("u{}", unique()), "password": PASSWORD });
            text(&self.admin.post("/users", &account).await, "id")
        };
        let request = self.admin.request(reqwest::Method::PUT, &operation.path(&id));
        let before = request.json(&json!({ "gpus": 1 })).send().await.unwrap();
        assert!(before.status().is_success(), "{operation:?}: {}", before.status());
        (id, json!({ "instances": 3 }))
    }

    async fn on_nodes(&self, operation: &Operation) -> (String, Value) {
        let node = self.agent.node_id().to_owned();
        let token = json!({ "ttl_seconds": 600, "max_uses": 1 });
        match (operation.method.as_str(), operation.template.as_str()) {
            ("post", "/join-tokens") => (String::new(), token),
            ("delete", "/join-tokens/{id}") => {
                (text(&self.admin.post("/join-tokens", &token).await, "id"), json!({}))
            }
            ("patch", "/nodes/{id}") => (node, json!({ "remark": "changed" })),
            ("patch", "/nodes/{id}/gpus/{uuid}") => (node, json!({ "max_shares": 3 })),
            ("delete", "/nodes/{id}") => {
                let token = text(&self.admin.post("/join-tokens", &token).await, "token");
                let other = self.cluster.join(&token, AgentOptions::default()).unwrap();
                (other.node_id().to_owned(), json!({}))
            }
            ("post", "/nodes/{id}/cordon" | "/nodes/{id}/uncordon" | "/nodes/{id}/drain") => {
                (node, json!({}))
            }
            _ => panic!("no call of {operation:?} is known: add one here"),
        }
    }

    /// Sessions and one's own password, as somebody whose session nobody else needs.
    async fn on_oneself(&self, operation: &Operation) -> Call {
        let name = format!("u{}", unique());
        let account = json!({ "name": name, "password": PASSWORD, "must_change_password": false });
        self.admin.post("/users", &account).await;
        let client = Client::anonymous(self.cluster.http());
        let (client, body) = match (operation.method.as_str(), operation.template.as_str()) {
            ("post", "/session") => {
                (client, json!({ "username": name, "password": PASSWORD, "mode": "token" }))
            }
            ("delete", "/session") => (client.login(&name, PASSWORD).await, json!({})),
            ("patch", "/me") => (client.login(&name, PASSWORD).await, json!({ "phone": "110" })),
            ("post", "/me/tokens") => {
                let token = json!({ "name": "robot", "permissions": ["me:read"] });
                (client.login(&name, PASSWORD).await, token)
            }
            ("post", "/me/ssh-keys") => {
                (client.login(&name, PASSWORD).await, json!({ "name": "k", "public_key": SSH_KEY }))
            }
            ("delete", "/me/sessions/{id}" | "/me/tokens/{id}" | "/me/ssh-keys/{id}") => {
                let client = client.login(&name, PASSWORD).await;
                let id = self.credential(&client, &operation.template).await;
                return Call { client, id, body: json!({}) };
            }
            ("put", "/me/password") => {
                let change =
                    json!({ "current_password": PASSWORD, "new_password": ADMIN_PASSWORD });
                (client.login(&name, PASSWORD).await, change)
            }
            _ => panic!("no call of {operation:?} is known: add one here"),
        };
        Call { client, id: String::new(), body }
    }

    /// Makes another session, an API token or an SSH key of somebody's and returns its id.
    async fn credential(&self, person: &Client, template: &str) -> String {
        if template.contains("/tokens/") {
            let token = json!({ "name": "robot", "permissions": ["me:read"] });
            return text(&person.post("/me/tokens", &token).await, "id");
        }
        if template.contains("/ssh-keys/") {
            let key = json!({ "name": "k", "public_key": SSH_KEY });
            return text(&person.post("/me/ssh-keys", &key).await, "id");
        }
        let name = text(&person.get("/me").await, "name");
        Client::anonymous(self.cluster.http()).login(&name, PASSWORD).await;
        let sessions = person.get("/me/sessions").await;
        let all = sessions["items"].as_array().cloned().unwrap_or_default();
        text(all.iter().find(|it| it["is_current"] == false).expect("another session"), "id")
    }

    /// Returns the path of a call, with the first card of the node in place of `{uuid}`, and a session,
    /// a token or a key of the account in place of `{session}`, `{token}` and `{key}`.
    async fn path(&self, operation: &Operation, id: &str) -> String {
        let template = &operation.template;
        if ["{session}", "{token}", "{key}"].iter().any(|it| template.contains(it)) {
            let name = text(&self.admin.get(&format!("/users/{id}")).await, "name");
            let person = Client::anonymous(self.cluster.http()).login(&name, PASSWORD).await;
            let inner = self.credential(&person, template).await;
            let path = template.replace("{id}", id).replace("{session}", &inner);
            return path.replace("{token}", &inner).replace("{key}", &inner);
        }
        if template.contains("{terminal}") {
            let terminal = self.left_terminal(id).await;
            return template.replace("{id}", id).replace("{terminal}", &terminal);
        }
        if !operation.template.contains("{uuid}") {
            return operation.path(id);
        }
        let cards = self.admin.get(&format!("/nodes/{id}/gpus")).await;
        let card = text(&cards[0], "uuid");
        operation.template.replace("{id}", id).replace("{uuid}", &card)
    }

    /// Writes a terminal of the admin's, because there is no engine here to open one, and returns its id.
    async fn left_terminal(&self, instance: &str) -> String {
        let me = text(&self.admin.get("/me").await, "id");
        let id = uuid::Uuid::now_v7();
        let bytes = |id: &str| id.parse::<uuid::Uuid>().unwrap().into_bytes().to_vec();
        let file = self.cluster.data_dir().join("tianqi.db");
        let mut db = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
        let sql = "insert into terminals (id, instance_id, user_id, ticket_hash, attachment, shell, \
             created_at, detached_at) values (?, ?, ?, ?, ?, 'sh', ?, ?)";
        let now = tianqi_common::clock::SystemClock::shared().now().0;
        let row = sqlx::query(sql).bind(bytes(&id.to_string())).bind(bytes(instance));
        let row = row.bind(bytes(&me)).bind(vec![7_u8; 32]).bind(bytes(&id.to_string()));
        row.bind(now).bind(now).execute(&mut db).await.unwrap();
        id.to_string()
    }

    /// Returns the audit's rows about a request.
    async fn rows(&self, request_id: &str) -> Vec<Value> {
        let page = self.admin.get("/audit-events?page_size=200").await;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().filter(|row| row["request_id"] == request_id).collect()
    }
}

/// Joins and starts an agent with simulated cards and no Docker, so that instances stay queued.
async fn joined(cluster: &Cluster, admin: &Client) -> Agent {
    let options = AgentOptions {
        docker: "unix:///nonexistent/docker.sock".to_owned(),
        simulate: "1xNVIDIA-L40:46068".to_owned(),
        ..AgentOptions::default()
    };
    let token = admin.post("/join-tokens", &json!({ "ttl_seconds": 600, "max_uses": 1 })).await;
    let mut agent = cluster.join(&text(&token, "token"), options).unwrap();
    agent.start();
    let deadline = Deadline::after(tianqi_tests::client::PATIENCE);
    let cards = format!("/nodes/{}/gpus", agent.node_id());
    while admin.get(&cards).await.as_array().is_none_or(Vec::is_empty) {
        deadline.pause_async("the agent's cards are not there").await;
    }
    agent
}

fn unique() -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    id[id.len() - 20..].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_that_changes_something_leaves_a_row_in_the_audit() {
    let world = World::start().await;
    let mut silent = Vec::new();

    for operation in operations(&world.cluster).into_iter().filter(|it| it.method != "get") {
        let Call { client, id, body } = world.call(&operation).await;
        let path = world.path(&operation, &id).await;
        let request = client.request(operation.method(), &path).json(&body);
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let answer = response.text().await.unwrap();
        assert!(status.is_success(), "{operation:?}: {status} {answer}");

        let request_id = headers["x-request-id"].to_str().unwrap();
        let rows = world.rows(request_id).await;
        let is_whole = |row: &Value| {
            let has = |field: &str| row[field].as_str().is_some_and(|it| !it.is_empty());
            row["outcome"] == "done" && has("actor_name") && has("action") && has("target_kind")
        };
        if !rows.iter().any(is_whole) {
            silent.push(format!("{} {}: {rows:?}", operation.method, operation.template));
        }
        let secrets = [PASSWORD, ADMIN_PASSWORD, "another-long-password"];
        let written = Value::from(rows).to_string();
        assert!(!secrets.iter().any(|it| written.contains(it)), "{operation:?}: {written}");
    }

    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_leaves_a_row_too() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let account = json!({ "name": "curious", "password": PASSWORD, "must_change_password": false });
    admin.post("/users", &account).await;
    let curious = Client::anonymous(cluster.http()).login("curious", PASSWORD).await;

    let (status, _) = curious.try_call(reqwest::Method::GET, "/users", None).await;
    assert_eq!(status, StatusCode::FORBIDDEN);

    let page = admin.get("/audit-events?outcome=refused&actor=curious").await;
    assert_eq!(page["total"], 1, "{page}");
    assert_eq!(page["items"][0]["action"], "users:read", "{page}");
}
