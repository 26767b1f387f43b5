//! Secrets are planted by every way in, and looked for everywhere: in the database, in every log line
//! at the most talkative level, in every answer, in every file of both programs.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{ADMIN_PASSWORD, Agent, AgentOptions, Cluster};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::dump::{self, Planted};
use tianqi_tests::images;
use tianqi_tests::raw_http::Pair;
use tianqi_tests::registry::{PASSWORD, Registry, USERNAME};
use tianqi_tests::ssh::Person;
use tianqi_tests::terminal::Terminal;

const LOUD: (&str, &str) = ("TIANQI_LOG__LEVEL", "trace");
/// Files that hold keys on purpose: the controller's own, and what a node needs to reach its engine
/// without a controller.
const OWN_KEYS: &[&str] = &["master.key", "jumpbox_host_key", "settings.json"];
const FIRST: &str = "first zebra under lantern";
const SECOND: &str = "second walnut over harbour";
const THIRD: &str = "third kettle beside glacier";
const WRONG: &str = "a-password-that-is-wrong";
const SSH_WRONG: &str = "a-wrong-word-typed-by-ssh";
const REGISTRY_WRONG: &str = "not-the-rosebud-at-all";

/// Dropped in this order.
struct World {
    planted: Planted,
    answers: Mutex<Vec<String>>,
    admin: Client,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
    registry: Registry,
}

impl World {
    async fn start() -> Self {
        let registry = Registry::start();
        let engine = Dockerd::start();
        let cluster = Cluster::start_with(&[LOUD]);
        let admin = cluster.admin().await;
        let mut planted = Planted::default();
        planted.add("the admin's password", ADMIN_PASSWORD);
        planted.add("the token of the admin's session", admin.token().unwrap());
        let token = admin.post("/join-tokens", &json!({ "ttl_seconds": 600, "max_uses": 1 })).await;
        let token = text(&token, "token");
        planted.add("a join token", &token);
        let mut options = AgentOptions::on(&engine);
        options.settings.push((LOUD.0.to_owned(), LOUD.1.to_owned()));
        let mut agent = cluster.join(&token, options).unwrap();
        agent.start();
        agent.wait_until_ready(&admin).await;
        let answers = Mutex::default();
        Self { planted, answers, admin, agent, cluster, engine, registry }
    }

    /// Calls, and keeps what was answered.
    async fn call(&self, who: &Client, method: Method, path: &str, body: &Value) -> Value {
        let body = Some(body).filter(|body| !body.is_null());
        let request = who.request(method.clone(), path);
        let request = body.into_iter().fold(request, |request, body| request.json(body));
        let answer = request.send().await.unwrap();
        let head = format!("{method} {path}: {} {:?}", answer.status(), answer.headers());
        let text = answer.text().await.unwrap();
        self.answers.lock().unwrap().push(format!("{head}\n{text}"));
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Logs in and keeps the token, which is shown this once.
    async fn log_in(&mut self, name: &str, password: &str) -> Client {
        let client = Client::anonymous(self.cluster.http()).login(name, password).await;
        self.planted.add(&format!("a session token of {name}"), client.token().unwrap());
        client
    }

    /// Sessions and passwords by every way there is.
    async fn plant_accounts(&mut self) {
        for (what, secret) in
            [("first", FIRST), ("second", SECOND), ("third", THIRD), ("wrong", WRONG)]
        {
            self.planted.add(&format!("the {what} password"), secret);
        }
        let account = json!({ "name": "eve", "password": FIRST });
        let eve = self.call(&self.admin.clone(), Method::POST, "/users", &account).await;
        let nobody = Client::anonymous(self.cluster.http());
        let wrong = json!({ "username": "eve", "password": WRONG, "mode": "token" });
        self.call(&nobody, Method::POST, "/session", &wrong).await;
        let client = self.log_in("eve", FIRST).await;
        let change = json!({ "current_password": FIRST, "new_password": SECOND });
        self.call(&client, Method::PUT, "/me/password", &change).await;
        let mistaken = json!({ "current_password": WRONG, "new_password": THIRD });
        self.call(&client, Method::PUT, "/me/password", &mistaken).await;
        let path = format!("/users/{}/password", text(&eve, "id"));
        self.call(&self.admin.clone(), Method::PUT, &path, &json!({ "password": THIRD })).await;
        let reset = self.cluster.run(&["reset-password", "eve"]);
        let said = String::from_utf8_lossy(&reset.stdout).into_owned();
        let generated = said.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
        self.planted.add("a generated password", &generated);
        self.log_in("eve", &generated).await;

        let body = json!({ "username": "admin", "password": ADMIN_PASSWORD });
        let answer = nobody.request(Method::POST, "/session").json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        let token = cookie.split(['=', ';']).nth(1).unwrap();
        self.planted.add("the cookie of a session", token);
        let read = nobody.request(Method::GET, "/session").header("cookie", &cookie);
        let answer = read.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let text = answer.text().await.unwrap();
        self.answers.lock().unwrap().push(text);
    }

    /// An API token, used once.
    async fn plant_token(&mut self) {
        let body = json!({ "name": "reader", "permissions": ["instances:read"] });
        let made = self.admin.post("/me/tokens", &body).await;
        let token = text(&made, "token");
        self.planted.add("an API token", &token);
        let program = Client::anonymous(self.cluster.http()).with_token(&token);
        self.call(&program, Method::GET, "/instances", &Value::Null).await;
        self.call(&program, Method::POST, "/me/tokens", &body).await;
    }

    /// A private image, first with a wrong password, and an instance of it.
    async fn plant_registry(&mut self) -> String {
        self.planted.add("the registry's password", PASSWORD);
        self.planted.add("a wrong password of the registry", REGISTRY_WRONG);
        let reference = self.registry.take(&self.engine, images::busybox(&self.engine), "team/t:1");
        let admin = self.admin.clone();
        let body = json!({
            "name": "private", "address": reference,
            "registry_username": USERNAME, "registry_password": REGISTRY_WRONG,
        });
        let image = text(&self.call(&admin, Method::POST, "/images", &body).await, "id");
        let spec = admin.create_cpu_spec("small").await;
        let id = admin.create_instance("one", &image, &spec).await;
        admin.wait_phase(&id, "failed").await;
        let right = json!({ "registry_password": PASSWORD });
        self.call(&admin, Method::PATCH, &format!("/images/{image}"), &right).await;
        admin.act(&id, "start").await;
        admin.wait_phase(&id, "running").await;
        id
    }

    /// The ticket of a terminal, shown to its owner once and used to come back.
    async fn plant_ticket(&mut self, instance: &str) {
        let mut terminal = Terminal::open(&self.admin, instance, "").await.unwrap();
        let opened = terminal.told().await;
        let ticket = text(&opened, "ticket");
        self.planted.add("the ticket of a terminal", &ticket);
        terminal.type_in("echo sum=$((40+2))\r").await;
        terminal.until("sum=42").await;
        terminal.leave().await;
        let mut back = Terminal::attach(&self.admin, instance, &ticket, None).await.unwrap();
        let opened = back.told().await;
        self.planted.add("the next ticket of a terminal", &text(&opened, "ticket"));
        // A ticket is good once.
        let used = Terminal::attach(&self.admin, instance, &ticket, None).await;
        let refused = used.unwrap().told().await;
        self.answers.lock().unwrap().push(refused.to_string());
    }

    /// Passwords by SSH, right and wrong, in both ways of asking, and a private key that somebody pastes
    /// where a public one belongs.
    async fn plant_ssh(&mut self) {
        let person = Person::new(self.cluster.ssh(), "ed25519");
        for method in ["keyboard-interactive", "password"] {
            let by = format!("PreferredAuthentications={method}");
            let args = ["-o", &by, "admin+one@jump", "echo sum=$((40+2))"];
            let right = person.ssh_by_password(ADMIN_PASSWORD, &args);
            assert_eq!(right.stdout, b"sum=42\n", "{method}: {right:?}");
            let wrong = person.ssh_by_password(SSH_WRONG, &args);
            assert!(!wrong.status.success(), "{method}: {wrong:?}");
        }
        self.planted.add("a wrong password by SSH", SSH_WRONG);
        let admin = self.admin.clone();
        for kind in ["ed25519", "rsa"] {
            let owner = Person::new(self.cluster.ssh(), kind);
            let private = std::fs::read_to_string(owner.path("key")).unwrap();
            self.planted.add_pem(&format!("a pasted private key ({kind})"), &private);
            let bare: String = private.lines().filter(|line| !line.starts_with('-')).collect();
            for pasted in [private.as_str(), private.replace('\n', " ").as_str(), &bare] {
                let body = json!({ "name": "laptop", "public_key": pasted });
                let answer = self.call(&admin, Method::POST, "/me/ssh-keys", &body).await;
                assert_eq!(answer["code"], "bad_ssh_key", "{answer}");
                let is_clear = pasted == bare || text(&answer, "detail").contains("private key");
                assert!(is_clear, "{answer}");
            }
        }
    }

    /// PEMs of the node's Docker endpoint, good ones and ones that are refused.
    async fn plant_pems(&mut self) {
        let (pair, refused) = (Pair::make(), Pair::make());
        self.planted.add_pem("the key of a Docker endpoint", &pair.key);
        self.planted.add_pem("a key that was refused", &refused.key);
        let path = format!("/nodes/{}", self.agent.node_id());
        let admin = self.admin.clone();
        let body = json!({
            "docker_tls_ca": pair.certificate, "docker_tls_cert": pair.certificate,
            "docker_tls_key": pair.key,
        });
        self.call(&admin, Method::PATCH, &path, &body).await;
        let half = json!({ "docker_tls_key": refused.key, "docker_tls_cert": null });
        let answer = self.call(&admin, Method::PATCH, &path, &half).await;
        assert_eq!(answer["code"], "bad_pem", "{answer}");
    }

    /// Reads everything that can be read.
    async fn read_everything(&self) {
        let lists = [
            "/images",
            "/instances",
            "/nodes",
            "/specs",
            "/users",
            "/join-tokens",
            "/session",
            "/me/sessions",
            "/me/tokens",
            "/me/ssh-keys",
            "/audit-events/export",
            "/audit-events?page_size=200",
            "/images?page_size=x",
            "/no-such-path",
        ];
        for path in lists {
            let answer = self.call(&self.admin, Method::GET, path, &Value::Null).await;
            for item in answer["items"].as_array().into_iter().flatten() {
                let Some(id) = item["id"].as_str() else { continue };
                let one = format!("{}/{id}", path.split('?').next().unwrap());
                self.call(&self.admin, Method::GET, &one, &Value::Null).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_database_a_log_an_answer_or_a_file() {
    let mut world = World::start().await;
    world.plant_accounts().await;
    world.plant_token().await;
    let instance = world.plant_registry().await;
    world.plant_ticket(&instance).await;
    world.plant_ssh().await;
    world.plant_pems().await;
    let rotated = world.cluster.run(&["secrets", "rotate"]);
    assert!(rotated.status.success(), "{rotated:?}");
    world.agent.kill_and_restart();
    world.agent.wait_until_ready(&world.admin).await;
    world.read_everything().await;
    let output = world.admin.request(Method::GET, &format!("/instances/{instance}/logs"));
    let output = output.send().await.unwrap().text().await.unwrap();
    world.answers.lock().unwrap().push(output);

    let mut leaks = Vec::new();
    let mut searched = 0;
    let search = world.planted.search();
    let mut look = |place: &str, bytes: &[u8]| {
        searched += bytes.len();
        let found = search.found_in(bytes);
        leaks.extend(found.into_iter().map(|what| format!("{what} is in {place}")));
    };
    for answer in world.answers.lock().unwrap().iter() {
        look(answer.lines().next().unwrap_or_default(), answer.as_bytes());
    }
    look("the agent's log", world.agent.log().as_bytes());
    look("the controller's log", world.cluster.log().as_bytes());
    for (column, value) in dump::tables(&world.cluster.data_dir().join("tianqi.db")).await {
        look(&column, &value);
    }
    for folder in [world.cluster.data_dir(), world.agent.data_dir()] {
        for (file, bytes) in dump::files(&folder, OWN_KEYS) {
            look(&file.display().to_string(), &bytes);
        }
    }

    for file in
        [world.cluster.data_dir().join("master.key"), world.agent.data_dir().join("settings.json")]
    {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }

    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
    assert!(world.planted.count() > 12, "{} secrets were planted", world.planted.count());
    assert!(world.cluster.log().contains("TRACE"), "the log is not at its most talkative");
    assert!(world.agent.log().contains("TRACE"), "the log is not at its most talkative");
    println!("{} secrets looked for in {searched} bytes", world.planted.count());
    // The same search finds what is there.
    let mut present = Planted::default();
    present.add("the registry's account", &format!("\"registry_username\":\"{USERNAME}\""));
    let present = present.search();
    let answers = world.answers.lock().unwrap();
    assert!(answers.iter().any(|answer| !present.found_in(answer.as_bytes()).is_empty()));
}
