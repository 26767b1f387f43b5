//! Every operation of the API description, called by those who may and by those who may not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_controller::authz::policy::{PERMISSIONS, Reach};
use tianqi_controller::authz::role::{Allowance, AllowedReach};
use tianqi_controller::authz::{Role, RoleName};
use tianqi_tests::api::{Operation, operations};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{ADMIN_PASSWORD, AgentOptions, Cluster};

/// What anybody may call.
const PUBLIC: &str = "";

/// Which permission each operation asks for. An operation that is missing here fails the test.
const TABLE: &[(&str, &str, &str)] = &[
    ("get", "/audit-events", "audit:read"),
    ("get", "/audit-events/export", "audit:read"),
    ("get", "/forwards", "forwards:read"),
    ("post", "/forwards", "forwards:write"),
    ("get", "/forwards/addresses", "forwards:read"),
    ("get", "/forwards/totals", "forwards:read"),
    ("post", "/forwards/delete", "forwards:write"),
    ("get", "/forwards/{id}", "forwards:read"),
    ("delete", "/forwards/{id}", "forwards:write"),
    ("patch", "/forwards/{id}", "forwards:write"),
    ("put", "/forwards/{id}/enabled", "forwards:write"),
    ("get", "/images", "images:read"),
    ("post", "/images", "images:write"),
    ("get", "/images/{id}", "images:read"),
    ("delete", "/images/{id}", "images:write"),
    ("patch", "/images/{id}", "images:write"),
    ("get", "/instances", "instances:read"),
    ("post", "/instances", "instances:create"),
    ("get", "/instances/{id}", "instances:read"),
    ("delete", "/instances/{id}", "instances:delete"),
    ("patch", "/instances/{id}", "instances:write"),
    ("post", "/instances/delete", "instances:delete"),
    ("post", "/instances/{id}/start", "instances:write"),
    ("post", "/instances/{id}/stop", "instances:write"),
    ("post", "/instances/{id}/restart", "instances:write"),
    ("get", "/instances/{id}/events", "instances:read"),
    ("get", "/instances/{id}/logs", "instances:logs"),
    ("get", "/instances/{id}/stats", "instances:read"),
    ("get", "/instances/{id}/ssh", "instances:ssh"),
    ("get", "/instances/{id}/terminal", "instances:exec"),
    ("get", "/instances/{id}/terminals", "instances:exec"),
    ("delete", "/instances/{id}/terminals/{terminal}", "instances:exec"),
    ("get", "/placements", "placements:read"),
    ("get", "/nodes", "nodes:read"),
    ("get", "/nodes/{id}", "nodes:read"),
    ("delete", "/nodes/{id}", "nodes:write"),
    ("patch", "/nodes/{id}", "nodes:write"),
    ("post", "/nodes/{id}/cordon", "nodes:write"),
    ("post", "/nodes/{id}/uncordon", "nodes:write"),
    ("post", "/nodes/{id}/drain", "nodes:write"),
    ("get", "/nodes/{id}/gpus", "nodes:read"),
    ("get", "/nodes/{id}/telemetry", "nodes:read"),
    ("patch", "/nodes/{id}/gpus/{uuid}", "nodes:write"),
    ("get", "/join-tokens", "join_tokens:write"),
    ("post", "/join-tokens", "join_tokens:write"),
    ("delete", "/join-tokens/{id}", "join_tokens:write"),
    ("get", "/quotas", "quotas:read"),
    ("get", "/quotas/users/{id}", "quotas:read"),
    ("put", "/quotas/users/{id}", "quotas:write"),
    ("delete", "/quotas/users/{id}", "quotas:write"),
    ("get", "/quotas/roles/{id}", "quotas:read"),
    ("put", "/quotas/roles/{id}", "quotas:write"),
    ("delete", "/quotas/roles/{id}", "quotas:write"),
    ("get", "/me/quota", "me:quota"),
    ("get", "/permissions", "roles:read"),
    ("get", "/roles", "roles:read"),
    ("post", "/roles", "roles:write"),
    ("get", "/roles/{id}", "roles:read"),
    ("delete", "/roles/{id}", "roles:write"),
    ("patch", "/roles/{id}", "roles:write"),
    ("get", "/specs", "specs:read"),
    ("post", "/specs", "specs:write"),
    ("get", "/specs/{id}", "specs:read"),
    ("delete", "/specs/{id}", "specs:write"),
    ("patch", "/specs/{id}", "specs:write"),
    ("get", "/session", "session:own"),
    ("post", "/session", PUBLIC),
    ("delete", "/session", "session:own"),
    ("put", "/me/password", "me:password"),
    ("get", "/me", "me:read"),
    ("patch", "/me", "me:write"),
    ("get", "/me/sessions", "me:sessions"),
    ("delete", "/me/sessions/{id}", "me:sessions"),
    ("get", "/me/tokens", "me:tokens"),
    ("post", "/me/tokens", "me:tokens"),
    ("delete", "/me/tokens/{id}", "me:tokens"),
    ("get", "/me/ssh-keys", "me:ssh_keys"),
    ("post", "/me/ssh-keys", "me:ssh_keys"),
    ("delete", "/me/ssh-keys/{id}", "me:ssh_keys"),
    ("get", "/users", "users:read"),
    ("post", "/users", "users:write"),
    ("get", "/users/{id}", "users:read"),
    ("delete", "/users/{id}", "users:write"),
    ("patch", "/users/{id}", "users:write"),
    ("put", "/users/{id}/password", "users:write"),
    ("get", "/users/{id}/sessions", "users:read"),
    ("delete", "/users/{id}/sessions", "users:write"),
    ("delete", "/users/{id}/sessions/{session}", "users:write"),
    ("get", "/users/{id}/tokens", "users:read"),
    ("delete", "/users/{id}/tokens", "users:write"),
    ("delete", "/users/{id}/tokens/{token}", "users:write"),
    ("get", "/users/{id}/ssh-keys", "users:read"),
    ("delete", "/users/{id}/ssh-keys/{key}", "users:write"),
];

/// Permissions that no operation asks for by itself: they widen what others allow.
const WITHIN: &[&str] = &["catalogue:unlisted", "forwards:host", "instances:priority"];

const PASSWORD: &str = "a-long-enough-password";

/// A custom role: it sees everybody's instances, steers none, and looks after nodes.
fn operator() -> Vec<Allowance> {
    let allow = |permission: &str, reach| Allowance { permission: permission.to_owned(), reach };
    vec![
        allow("instances:read", AllowedReach::All),
        allow("instances:logs", AllowedReach::Own),
        allow("nodes:read", AllowedReach::All),
        allow("nodes:write", AllowedReach::All),
        allow("users:read", AllowedReach::All),
    ]
}

/// Somebody who calls.
struct Caller {
    name: &'static str,
    role: Role,
    client: Client,
}

/// A controller with people in it, and what the calls are aimed at.
struct World {
    cluster: Cluster,
    admin: Client,
    owner: Client,
    image: String,
    spec: String,
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start_with(&[
            ("TIANQI_FORWARDS__USER_ADDRESSES", "127.0.0.1"),
            ("TIANQI_FORWARDS__USER_PORTS", "20000-65535"),
            ("TIANQI_FORWARDS__USER_RULES", "1000"),
        ]);
        let admin = cluster.admin().await;
        admin.post("/roles", &json!({ "name": "operator", "permissions": operator() })).await;
        for (name, role) in [
            ("owner", "user"),
            ("stranger", "user"),
            ("auditor", "auditor"),
            ("operator", "operator"),
        ] {
            let account = json!({
                "name": name, "password": PASSWORD, "role": role, "must_change_password": false,
            });
            admin.post("/users", &account).await;
        }
        let owner = Client::anonymous(cluster.http()).login("owner", PASSWORD).await;
        let image = admin.create_image("image", "tianqi/busybox:1").await;
        let spec = admin.create_cpu_spec("spec").await;
        Self { cluster, admin, owner, image, spec }
    }

    /// Logs everybody in anew: some operations end sessions. From the least to the most powerful.
    async fn callers(&self) -> Vec<Caller> {
        let anybody = Client::anonymous(self.cluster.http());
        let mut callers = Vec::new();
        let operator = Role::custom(RoleName::new("operator"), &operator());
        for (name, role) in [
            ("stranger", Role::user()),
            ("auditor", Role::auditor()),
            ("owner", Role::user()),
            ("operator", operator),
        ] {
            let client = anybody.login(name, PASSWORD).await;
            callers.push(Caller { name, role, client });
        }
        let client = anybody.login("admin", ADMIN_PASSWORD).await;
        callers.push(Caller { name: "admin", role: Role::admin(), client });
        callers
    }

    /// Makes something that this operation can be aimed at, and returns its id.
    async fn target(&self, operation: &Operation) -> String {
        let unique = uuid::Uuid::now_v7().simple().to_string();
        let name = &unique[unique.len() - 20..];
        let mut parts = operation.template.split('/').skip(1);
        match parts.next().unwrap() {
            "quotas" => {
                let whose = parts.next().unwrap();
                let id = self.subject(whose, name).await;
                let path = format!("/quotas/{whose}/{id}");
                let (status, answer) =
                    self.admin.try_call(Method::PUT, &path, Some(&json!({ "gpus": 1 }))).await;
                assert!(status.is_success(), "{answer}");
                id
            }
            "images" => self.admin.create_image(name, "tianqi/busybox:1").await,
            "specs" => self.admin.create_cpu_spec(name).await,
            kind @ ("roles" | "users") => self.subject(kind, name).await,
            "instances" => self.owner.create_instance(name, &self.image, &self.spec).await,
            "forwards" => {
                let instance = self.owner.create_instance(name, &self.image, &self.spec).await;
                let body = json!({
                    "listen_ip": "127.0.0.1", "listen_port": next_port(), "enabled": false,
                    "instance_id": instance, "instance_port": 22,
                });
                text(&self.owner.post("/forwards", &body).await, "id")
            }
            // Sessions and API tokens are asked for by an id that nobody has.
            "me" => unknown_id(),
            "join-tokens" => text(&self.join_token().await, "id"),
            "nodes" => {
                let token = text(&self.join_token().await, "token");
                let agent = self.cluster.join(&token, AgentOptions::default()).unwrap();
                agent.node_id().to_owned()
            }
            other => panic!("nothing is known of /{other}: say here how one is made"),
        }
    }

    /// Makes an account or a role and returns its id.
    async fn subject(&self, kind: &str, name: &str) -> String {
        if kind == "roles" {
            let role = json!({ "name": format!("r{name}"), "permissions": [] });
            return text(&self.admin.post("/roles", &role).await, "name");
        }
        let account = json!({ "name": format!("u{name}"), "password": PASSWORD });
        text(&self.admin.post("/users", &account).await, "id")
    }

    async fn join_token(&self) -> Value {
        self.admin.post("/join-tokens", &json!({ "ttl_seconds": 600, "max_uses": 1 })).await
    }
}

/// Returns the permission that the table names.
fn permission(operation: &Operation) -> &'static str {
    let row = TABLE.iter().find(|(method, template, _)| {
        *method == operation.method && *template == operation.template
    });
    row.unwrap_or_else(|| panic!("{operation:?} has no row in the table of this test")).2
}

/// Returns what is wrong with an answer, if anything is.
fn wrong(
    caller: &Caller,
    operation: &Operation,
    permission: &str,
    status: StatusCode,
    answer: &Value,
) -> Option<String> {
    let is_somebody_elses = ["stranger", "operator"].contains(&caller.name)
        && ["/instances/{id}", "/forwards/{id}"]
            .iter()
            .any(|it| operation.template.starts_with(it));
    // Whoever gets so far as to be told that these do not exist was let in.
    let is_inner = |code: &str| {
        [
            "no_such_join_token",
            "no_such_gpu",
            "no_such_session",
            "no_such_token",
            "no_such_terminal",
            "no_such_ssh_key",
        ]
        .contains(&code)
    };
    let missing =
        answer["code"].as_str().is_some_and(|code| code.starts_with("no_such_") && !is_inner(code));
    let (expected, is_right) = match caller.role.reach(permission) {
        Reach::None => ("403", status == StatusCode::FORBIDDEN && answer["code"] == "forbidden"),
        Reach::Own if is_somebody_elses => ("404", status == StatusCode::NOT_FOUND && missing),
        Reach::Own | Reach::All => (
            "to be let in",
            status != StatusCode::UNAUTHORIZED
                && status != StatusCode::FORBIDDEN
                && !missing
                && !status.is_server_error(),
        ),
    };
    let Operation { method, template } = operation;
    let name = caller.name;
    (!is_right)
        .then(|| format!("{method} {template}: {name} has {expected}, got {status} {answer}"))
}

async fn call(client: &Client, operation: &Operation, id: &str) -> (StatusCode, Value) {
    let body = (operation.method != "get").then(|| json!({}));
    client.try_call(operation.method(), &operation.path(id), body.as_ref()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_names_every_operation_and_every_permission_once() {
    let cluster = Cluster::start();

    let described: BTreeSet<_> = operations(&cluster).into_iter().collect();

    let listed = TABLE.iter().map(|(method, template, _)| Operation {
        method: (*method).to_owned(),
        template: (*template).to_owned(),
    });
    let listed: BTreeSet<_> = listed.collect();
    assert_eq!(listed, described);
    assert_eq!(listed.len(), TABLE.len());
    let asked = TABLE.iter().map(|row| row.2).filter(|it| *it != PUBLIC);
    let used: BTreeSet<_> = asked.chain(WITHIN.iter().copied()).collect();
    let known: BTreeSet<_> = PERMISSIONS.iter().map(|info| info.name).collect();
    assert_eq!(used, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_what_the_table_of_permissions_says_and_nothing_else() {
    let world = World::start().await;
    let (mut mistakes, mut tried, mut operated) = (Vec::new(), 0_u32, 0_u32);

    for operation in operations(&world.cluster) {
        let permission = permission(&operation);
        operated += 1;
        if permission == PUBLIC {
            continue;
        }
        let is_one = operation.template.contains("{id}");
        let mut id = String::new();
        for caller in world.callers().await {
            // What one caller may end is there again for the next.
            let is_fresh = id.is_empty()
                || operation.method == "delete"
                || operation.template.starts_with("/instances");
            if is_one && is_fresh {
                id = world.target(&operation).await;
            }
            let (status, answer) = call(&caller.client, &operation, &id).await;
            mistakes.extend(wrong(&caller, &operation, permission, status, &answer));
            tried += 1;
        }
    }
    println!(
        "permissions: {operated} operations, {tried} calls by stranger, auditor, owner, operator \
         and admin, {} unexpected answers",
        mistakes.len()
    );

    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_past_any_operation() {
    let cluster = Cluster::start();
    let nobody = Client::anonymous(cluster.http());
    let mut wrong = Vec::new();

    for operation in operations(&cluster) {
        if permission(&operation) == PUBLIC {
            continue;
        }
        let (status, answer) = call(&nobody, &operation, &unknown_id()).await;
        if status != StatusCode::UNAUTHORIZED {
            wrong.push(format!("{} {}: {status} {answer}", operation.method, operation.template));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_many_takes_nothing_of_somebody_else() {
    let world = World::start().await;
    let id = world.owner.create_instance("kept", &world.image, &world.spec).await;
    let stranger = Client::anonymous(world.cluster.http()).login("stranger", PASSWORD).await;

    let answer = stranger.post("/instances/delete", &json!({ "ids": [id] })).await;

    assert_eq!(answer["items"][0]["accepted"], false, "{answer}");
    assert_eq!(answer["items"][0]["code"], "no_such_instance", "{answer}");
    assert_eq!(world.owner.instance(&id).await["desired"], "running");
    let seen = stranger.get("/instances").await;
    assert_eq!(seen["total"], 0, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_and_wrong_bodies_get_a_problem_with_a_code_and_never_a_fault() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let bodies = [json!({}), json!([]), json!("x"), json!({ "name": "../é 名", "gpu_count": -1 })];
    let mut wrong = Vec::new();

    for operation in operations(&cluster) {
        // Ends the session that the test itself uses.
        if operation.template == "/session" {
            continue;
        }
        for body in &bodies {
            let body = (operation.method != "get").then_some(body);
            let path = operation.path(&unknown_id());
            let (status, answer) = admin.try_call(operation.method(), &path, body).await;
            let has_code = answer["code"].as_str().is_some_and(|code| !code.is_empty());
            if status.is_server_error() || (status.is_client_error() && !has_code) {
                wrong.push(format!(
                    "{} {} {body:?}: {status} {answer}",
                    operation.method, operation.template
                ));
            }
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_ten_megabytes_is_refused_with_a_problem() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let body = json!({ "name": "x".repeat(10 * 1024 * 1024) });

    for path in ["/instances", "/session", "/images"] {
        let request = admin.request(Method::POST, path).json(&body);
        let response = request.send().await.unwrap();

        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "application/problem+json", "{path}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["code"], "too_large", "{path}: {answer}");
    }
    assert_eq!(admin.get("/session").await["user"]["name"], "admin");
}

/// Returns a port that no other forward of this test names; nothing listens on it.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn unknown_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
