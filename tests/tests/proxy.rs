//! The console behind Debian's nginx: whose word about the client is believed.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{ADMIN_PASSWORD, AgentOptions, Cluster};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tianqi_tests::nginx::Nginx;
use tianqi_tests::raw_http::{connect_from, shake_hands};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const PATIENCE: Duration = Duration::from_secs(30);
/// Where the person sits; the proxy connects from 127.0.0.1.
const PERSON: &str = "127.0.0.77";
const TRUSTS: (&str, &str) = ("TIANQI_HTTP__TRUSTED_PROXIES", "127.0.0.1/32");

struct World {
    cluster: Cluster,
    nginx: Nginx,
}

impl World {
    fn start(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start_with(settings);
        let nginx = Nginx::before(cluster.http());
        Self { cluster, nginx }
    }

    /// A browser at the person's address that trusts nginx's certificate.
    fn browser(&self) -> reqwest::Client {
        tianqi_tests::install_crypto();
        let root = reqwest::Certificate::from_pem(self.nginx.certificate().as_bytes()).unwrap();
        let own: IpAddr = PERSON.parse().unwrap();
        let builder = reqwest::Client::builder().no_proxy().local_address(own);
        builder.tls_certs_only([root]).build().unwrap()
    }

    fn origin(&self) -> String {
        format!("https://{}", self.nginx.address())
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.origin())
    }

    async fn log_in(&self, name: &str, headers: &[(&'static str, &str)]) -> reqwest::Response {
        let body = json!({ "username": name, "password": ADMIN_PASSWORD });
        let mut request = self.browser().post(self.url("/session")).json(&body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn logins_of(&self, name: &str) -> Vec<Value> {
        let admin = self.cluster.admin().await;
        let page = admin.get("/audit-events?action=session:login&page_size=200").await;
        let rows = page["items"].as_array().unwrap().clone();
        rows.into_iter().filter(|row| row["actor_name"] == name).collect()
    }
}

fn cookie_of(headers: &HeaderMap) -> String {
    headers["set-cookie"].to_str().unwrap().to_owned()
}

async fn person(admin: &Client, name: &str) {
    let body = json!({ "name": name, "password": ADMIN_PASSWORD, "must_change_password": false });
    admin.post("/users", &body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_by_cookie_through_a_trusted_proxy_is_the_clients_own() {
    let world = World::start(&[TRUSTS]);
    person(&world.cluster.admin().await, "alice").await;
    let origin = world.origin();

    let forged = [("x-forwarded-for", "9.9.9.9"), ("origin", origin.as_str())];
    let answer = world.log_in("alice", &forged).await;

    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(answer.headers().contains_key("strict-transport-security"), "nginx speaks TLS");
    let cookie = cookie_of(answer.headers());
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    let rows = world.logins_of("alice").await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["remote_address"], PERSON, "neither nginx nor what the client says");

    let session = cookie.split(';').next().unwrap();
    let write = async |origin: &str| {
        let request = world.browser().delete(world.url("/session")).header("cookie", session);
        request.header("origin", origin).send().await.unwrap().status()
    };
    assert_eq!(write("https://evil.example.org").await, StatusCode::FORBIDDEN);
    assert_eq!(write(&origin.replace("https", "http")).await, StatusCode::FORBIDDEN);
    assert_eq!(write(&origin).await, StatusCode::NO_CONTENT);
    for foreign in ["https://evil.example.org", "null"] {
        let refused = world.log_in("alice", &[("origin", foreign)]).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{foreign}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_not_trusted_speaks_for_nobody() {
    let world = World::start(&[]);
    person(&world.cluster.admin().await, "bob").await;

    let forged = [("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "https")];
    let through = world.log_in("bob", &forged).await;
    assert_eq!(through.status(), StatusCode::CREATED);
    let rows = world.logins_of("bob").await;
    assert_eq!(rows[0]["remote_address"], "127.0.0.1", "all that is known is the proxy");
    assert!(
        !cookie_of(through.headers()).contains("Secure"),
        "nobody who is believed spoke of TLS"
    );
    assert!(!through.headers().contains_key("strict-transport-security"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_no_proxy_is_not_believed_where_one_is_trusted() {
    let world = World::start(&[TRUSTS]);
    person(&world.cluster.admin().await, "carol").await;
    let own: IpAddr = PERSON.parse().unwrap();
    let direct = reqwest::Client::builder().no_proxy().local_address(own).build().unwrap();

    let body = json!({ "username": "carol", "password": ADMIN_PASSWORD });
    let url = format!("http://{}/api/v1/session", world.cluster.http());
    let request = direct.post(url).header("x-forwarded-for", "9.9.9.9");
    let answer = request.header("x-forwarded-proto", "https").json(&body).send().await.unwrap();

    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(!cookie_of(answer.headers()).contains("Secure"));
    assert!(!answer.headers().contains_key("strict-transport-security"));
    assert_eq!(world.logins_of("carol").await[0]["remote_address"], PERSON);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_trusted_proxy_are_limited_each_for_itself() {
    let limits =
        [TRUSTS, ("TIANQI_LIMITS__ADDRESS_PER_SECOND", "1"), ("TIANQI_LIMITS__ADDRESS_BURST", "5")];
    let world = World::start(&limits);
    let ask = async |own: &str| {
        let root = reqwest::Certificate::from_pem(world.nginx.certificate().as_bytes()).unwrap();
        let own: IpAddr = own.parse().unwrap();
        let builder = reqwest::Client::builder().no_proxy().local_address(own);
        let client = builder.tls_certs_only([root]).build().unwrap();
        client.get(world.url("/session")).send().await.unwrap().status()
    };
    tianqi_tests::install_crypto();

    let mut refused = 0;
    for _ in 0..12 {
        refused += u32::from(ask("127.0.0.81").await == StatusCode::TOO_MANY_REQUESTS);
    }

    assert!(refused > 0);
    assert_eq!(ask("127.0.0.82").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_a_followed_output_go_through_and_outlast_the_limits_of_requests() {
    let engine = Dockerd::start();
    let world = World::start(&[
        TRUSTS,
        ("TIANQI_HTTP__HEAD_SECONDS", "2"),
        ("TIANQI_HTTP__REQUEST_SECONDS", "2"),
    ]);
    let admin = world.cluster.admin().await;
    let _agent = world.cluster.add_agent(&admin, AgentOptions::on(&engine)).await;
    let image = admin.create_image("busybox", images::busybox(&engine)).await;
    let spec = admin.create_cpu_spec("small").await;
    let id = admin.create_instance("one", &image, &spec).await;
    admin.wait_phase(&id, "running").await;
    let origin = world.origin();
    let answer = world.log_in("admin", &[("origin", origin.as_str())]).await;
    let cookie = cookie_of(answer.headers()).split(';').next().unwrap().to_owned();

    let open = async |origin: &str| {
        let stream = connect_from(PERSON, world.nginx.address()).await.unwrap();
        let stream = shake_hands(stream, world.nginx.certificate()).await.unwrap();
        let url = world.url(&format!("/instances/{id}/terminal?shell=sh"));
        let mut request = url.replacen("https", "wss", 1).into_client_request().unwrap();
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        request.headers_mut().insert("origin", origin.parse().unwrap());
        client_async(request, stream).await
    };
    assert!(open("https://evil.example.org").await.is_err(), "a page of another site");
    let (mut terminal, _) = open(&origin).await.unwrap();
    let follow = format!("/instances/{id}/logs?follow=true&tail=1");
    let request = world.browser().get(world.url(&follow)).header("cookie", &cookie);
    // nginx holds the head of an HTTP/2 answer back until its first byte.
    let output = tokio::time::timeout(PATIENCE, request.send()).await.unwrap();
    let mut output = output.unwrap();
    assert_eq!(output.chunk().await.unwrap().as_deref(), Some(b"ready\n".as_slice()));

    // Longer than a head or a request may take.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let typed = "echo sum=$((40+2)); echo from-one >/proc/1/fd/1\r";
    terminal.send(Message::Binary(typed.as_bytes().to_vec().into())).await.unwrap();

    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("sum=42") {
        let next = tokio::time::timeout(PATIENCE, terminal.next()).await.unwrap();
        if let Message::Binary(bytes) = next.unwrap().unwrap() {
            seen.extend_from_slice(&bytes);
        }
    }
    let chunk = tokio::time::timeout(PATIENCE, output.chunk()).await.unwrap().unwrap();
    assert_eq!(chunk.as_deref(), Some(b"from-one\n".as_slice()));
    let page = admin.get("/audit-events?action=instances:exec").await;
    assert_eq!(text(&page["items"][0], "remote_address"), PERSON);
}
