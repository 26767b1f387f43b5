//! A second person with an account, whole path: what they reach, and how all of it ends.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_controller::authz::challenge::{Challenge, solve};
use tianqi_tests::api::operations;
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::terminal::Terminal;

const PASSWORD: &str = "correct horse battery";
/// How soon everything of an account ends.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What a person may do with instances and their own account.
const PERMISSIONS: &[&str] = &[
    "me:read",
    "images:read",
    "specs:read",
    "placements:read",
    "instances:read",
    "instances:create",
    "instances:write",
    "instances:delete",
    "instances:logs",
    "instances:exec",
    "instances:ssh",
];

async fn account(admin: &Client, name: &str) -> String {
    let body = json!({ "name": name, "password": PASSWORD, "must_change_password": false });
    text(&admin.post("/users", &body).await, "id")
}

/// Makes an API token and returns the client that comes by it.
async fn api_token(person: &Client, name: &str, permissions: &[&str]) -> Client {
    let body = json!({ "name": name, "permissions": permissions });
    let token = text(&person.post("/me/tokens", &body).await, "token");
    person.with_token(&token)
}

/// A running instance of Alice's on a real engine; the fields are dropped in this order.
struct World {
    admin: Client,
    alice: Client,
    id: String,
    image: String,
    spec: String,
    _agent: Agent,
    cluster: Cluster,
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
        account(&admin, "alice").await;
        let alice = Client::anonymous(cluster.http()).login_by_cookie("alice", PASSWORD).await;
        let id = alice.create_instance("one", &image, &spec).await;
        alice.wait_phase(&id, "running").await;
        Self { admin, alice, id, image, spec, _agent: agent, cluster, _engine: engine }
    }

    fn anybody(&self) -> Client {
        Client::anonymous(self.cluster.http())
    }
}

/// Everything that one account has open.
struct Open {
    cookie: Client,
    session: Client,
    token: Client,
    terminals: Vec<Terminal>,
    output: reqwest::Response,
}

impl Open {
    async fn start(world: &World) -> Self {
        let cookie = world.alice.clone();
        let session = world.anybody().login("alice", PASSWORD).await;
        let token = api_token(&cookie, "robot", PERMISSIONS).await;
        let mut terminals = Vec::new();
        for client in [&cookie, &session, &token] {
            let mut terminal = Terminal::open(client, &world.id, "").await.unwrap();
            assert_eq!(terminal.told().await["type"], "opened");
            terminal.type_in("echo sum=$((40+2))\r").await;
            terminal.until("sum=42").await;
            terminals.push(terminal);
        }
        let path = format!("/instances/{}/logs?follow=true", world.id);
        let output = token.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(output.status(), StatusCode::OK);
        Self { cookie, session, token, terminals, output }
    }

    /// Checks that all of it is over within two seconds from now.
    async fn wait_for_its_end(mut self) {
        let ends = async {
            for terminal in &mut self.terminals {
                let ended = terminal.ended().await;
                assert_eq!(ended.last["code"], "unauthorised", "{ended:?}");
            }
            let mut rest = Vec::new();
            while let Some(chunk) = self.output.chunk().await.unwrap() {
                rest.extend_from_slice(&chunk);
            }
            let rest = String::from_utf8(rest).unwrap();
            assert!(rest.contains("[tianqi] "), "the output says why it ends: {rest}");
            for client in [&self.cookie, &self.session, &self.token] {
                let (status, answer) = client.try_call(Method::GET, "/instances", None).await;
                assert_eq!((status.as_u16(), &answer["code"]), (401, &json!("unauthorised")));
            }
        };
        tokio::time::timeout(AT_ONCE, ends).await.expect("something was still open after 2 s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disabling_an_account_ends_everything_of_it_within_two_seconds() {
    let world = World::start().await;
    let id = text(&world.alice.get("/me").await, "id");
    let open = Open::start(&world).await;

    world.admin.patch(&format!("/users/{id}"), &json!({ "disabled": true })).await;

    open.wait_for_its_end().await;
    let credentials = json!({ "username": "alice", "password": PASSWORD });
    let (status, answer) =
        world.anybody().try_call(Method::POST, "/session", Some(&credentials)).await;
    assert_eq!((status.as_u16(), &answer["code"]), (403, &json!("account_disabled")));
    assert_eq!(world.admin.instance(&world.id).await["phase"], "running", "work goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_account_needs_a_new_owner_for_its_instances_and_ends_everything_of_it() {
    let world = World::start().await;
    let (admin, alice) = (&world.admin, text(&world.alice.get("/me").await, "id"));
    let bob = account(admin, "bob").await;
    let as_bob = world.anybody().login("bob", PASSWORD).await;
    let namesake = as_bob.create_instance("one", &world.image, &world.spec).await;
    as_bob.wait_phase(&namesake, "running").await;
    let open = Open::start(&world).await;

    let path = format!("/users/{alice}");
    let (status, answer) = admin.try_call(Method::DELETE, &path, None).await;
    assert_eq!((status.as_u16(), &answer["code"]), (409, &json!("in_use")), "{answer}");
    admin.delete(&format!("{path}?hand_over_to={bob}")).await;

    open.wait_for_its_end().await;
    let moved = as_bob.instance(&world.id).await;
    assert_eq!((&moved["name"], &moved["phase"]), (&json!("one-2"), &json!("running")), "{moved}");
    let events = as_bob.get(&format!("/instances/{}/events", world.id)).await;
    let told = events["items"].as_array().unwrap().iter().find(|it| it["kind"] == "handed_over");
    let message = text(told.unwrap(), "message");
    assert!(message.contains("from alice to bob") && message.contains("named one"), "{message}");
    let audit = admin.get("/audit-events?action=instances:hand_over").await;
    assert_eq!(audit["total"], 1, "{audit}");
    assert_eq!(audit["items"][0]["target_id"], json!(world.id));
    let mut terminal = Terminal::open(&as_bob, &world.id, "").await.unwrap();
    assert_eq!(terminal.told().await["type"], "opened", "its new owner gets in");
    let (status, _) = admin.try_call(Method::GET, &path, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_or_session_that_is_withdrawn_ends_what_was_opened_by_it_and_nothing_else() {
    let world = World::start().await;
    let mut open = Open::start(&world).await;
    let tokens = world.alice.get("/me/tokens").await;
    let sessions = world.alice.get("/me/sessions").await;
    let other = sessions["items"].as_array().unwrap().iter().find(|it| it["is_current"] == false);

    let token = text(&tokens["items"][0], "id");
    world.alice.delete(&format!("/me/tokens/{token}")).await;
    let ended = tokio::time::timeout(AT_ONCE, open.terminals[2].ended()).await.unwrap();
    assert_eq!(ended.last["code"], "unauthorised", "{ended:?}");
    let other = text(other.unwrap(), "id");
    world.alice.delete(&format!("/me/sessions/{other}")).await;
    let ended = tokio::time::timeout(AT_ONCE, open.terminals[1].ended()).await.unwrap();
    assert_eq!(ended.last["code"], "unauthorised", "{ended:?}");

    open.terminals[0].type_in("echo still=$((6*7))\r").await;
    open.terminals[0].until("still=42").await;
    for client in [&open.session, &open.token] {
        let (status, _) = client.try_call(Method::GET, "/me", None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_opens_no_terminal_and_reads_no_stream() {
    let world = World::start().await;
    let own = world.alice.headers();
    let origin = |value: &str| {
        let mut headers: Vec<_> = own.iter().filter(|it| it.0 != "origin").cloned().collect();
        if !value.is_empty() {
            headers.push(("origin", value.to_owned()));
        }
        headers
    };

    for (origin, headers) in
        [("none", origin("")), ("foreign", origin("http://evil.test")), ("null", origin("null"))]
    {
        let opened = Terminal::open_with(&world.alice, &world.id, "", &headers).await;
        let (status, answer) = opened.unwrap_err();
        assert_eq!((status.as_u16(), &answer["code"]), (403, &json!("foreign_origin")), "{origin}");
    }
    let path = world.alice.url(&format!("/instances/{}/logs?follow=true", world.id));
    for (foreign, status) in [("http://evil.test", 403), ("null", 403)] {
        let request = reqwest::Client::builder().no_proxy().build().unwrap().get(&path);
        let request = origin(foreign).into_iter().fold(request, |it, (k, v)| it.header(k, v));
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{foreign}");
    }
    let mut terminal = Terminal::open_with(&world.alice, &world.id, "", &own).await.unwrap();
    assert_eq!(terminal.told().await["type"], "opened");
    // What a page of one's own site sends when it reads a stream: the cookie and no origin.
    let request = reqwest::Client::builder().no_proxy().build().unwrap().get(&path);
    let request = origin("").into_iter().fold(request, |it, (k, v)| it.header(k, v));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

/// Calls every path of an instance that the API describes; returns what was not "there is none".
async fn reached(cluster: &Cluster, caller: &Client, id: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for operation in operations(cluster) {
        if !operation.template.starts_with("/instances/{id}") {
            continue;
        }
        tried += 1;
        let body = (operation.method != "get").then(|| json!({ "remark": "mine", "name": "mine" }));
        let path = operation.path(id);
        let (status, answer) = caller.try_call(operation.method(), &path, body.as_ref()).await;
        if (status.as_u16(), &answer["code"]) != (404, &json!("no_such_instance")) {
            wrong.push(format!("{} {path}: {status} {answer}", operation.method));
        }
    }
    assert!(tried >= 8, "only {tried} paths of an instance are described");
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_person_sees_only_their_own_and_reaches_nobody_elses_instance_by_any_path() {
    let world = World::start().await;
    account(&world.admin, "mallory").await;
    let cookie = world.anybody().login_by_cookie("mallory", PASSWORD).await;
    let session = world.anybody().login("mallory", PASSWORD).await;
    let token = api_token(&cookie, "robot", PERMISSIONS).await;
    let own = cookie.create_instance("mine", &world.image, &world.spec).await;
    let before = world.admin.instance(&world.id).await;
    let owner = text(&before, "owner_id");

    for caller in [&cookie, &session, &token] {
        assert_eq!(caller.get("/me").await["name"], "mallory");
        let wrong = reached(&world.cluster, caller, &world.id).await;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let refused = Terminal::open(caller, &world.id, "").await.unwrap_err();
        assert_eq!(refused.0, StatusCode::NOT_FOUND, "{refused:?}");
        let many = caller.post("/instances/delete", &json!({ "ids": [world.id] })).await;
        assert_eq!(many["items"][0]["code"], "no_such_instance", "{many}");
        for query in ["", "?page_size=200", &format!("?owner_id={owner}"), "?name=one"] {
            let (status, list) =
                caller.try_call(Method::GET, &format!("/instances{query}"), None).await;
            let is_elsewhere = |it: &Value| it["id"] != json!(own);
            let others = list["items"].as_array().is_some_and(|all| all.iter().any(is_elsewhere));
            assert!(!others && !status.is_server_error(), "{query}: {list}");
        }
        for path in [format!("/users/{owner}"), "/users".to_owned(), "/audit-events".to_owned()] {
            let (status, _) = caller.try_call(Method::GET, &path, None).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        }
    }
    let after = world.admin.instance(&world.id).await;
    for field in ["name", "remark", "phase", "desired", "owner_id"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    cookie.wait_phase(&own, "running").await;
    let mut terminal = Terminal::open(&token, &own, "").await.unwrap();
    assert_eq!(terminal.told().await["type"], "opened", "their own opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_failures_are_answered_with_a_challenge_that_a_program_solves() {
    let settings = [("TIANQI_PASSWORDS__CHALLENGE_TRIES", "20")];
    let cluster = Cluster::start_with(&settings);
    account(&cluster.admin().await, "alice").await;
    let anybody = Client::anonymous(cluster.http());
    let mut body = json!({ "username": "alice", "password": "wrong", "mode": "token" });
    for _ in 0..3 {
        let (status, _) = anybody.try_call(Method::POST, "/session", Some(&body)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }

    body["password"] = json!(PASSWORD);
    let (status, refused) = anybody.try_call(Method::POST, "/session", Some(&body)).await;
    assert_eq!((status.as_u16(), &refused["code"]), (403, &json!("challenge_required")));
    let challenge: Challenge =
        serde_json::from_value(refused["data"]["challenge"].clone()).unwrap();
    body["challenge_solution"] = serde_json::to_value(solve(&challenge).unwrap()).unwrap();
    let session = anybody.post("/session", &body).await;

    assert_eq!(session["user"]["name"], "alice");
}
