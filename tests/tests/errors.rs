//! Errors of every kind say what to do and nothing about what the controller is made of.

use std::time::Duration;

use serde_json::json;
use tianqi_common::clock::SystemClock;
use tianqi_controller::app;
use tianqi_controller::config::{Config, Limits};
use tianqi_tests::client::Client;
use tianqi_tests::raw_http::{Heard, ask, connect};

const PASSWORD: &str = "correct-horse-battery-staple";
/// Words that would tell an attacker what runs here, in small letters.
const TELLTALE: &[&str] = &[
    "sqlx",
    "sqlite",
    "postgres",
    "mysql",
    "mariadb",
    "select ",
    "insert ",
    "update ",
    "delete from",
    "no such table",
    "pool",
    "axum",
    "hyper",
    "serde",
    "rustls",
    "rustc",
    "tokio",
    "panicked",
    "backtrace",
    "thread '",
    ".rs",
    "src/",
    "/usr",
    "/root",
    "/home",
    "/var",
    "/tmp",
    "server:",
    "x-powered-by",
    env!("CARGO_PKG_VERSION"),
];

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Requests that go wrong in as many ways as there are.
fn wrong(token: &str) -> Vec<Vec<u8>> {
    let login = format!("authorization: Bearer {token}\r\n");
    let json = format!("{login}content-type: application/json\r\n");
    let id = "01890000-0000-7000-8000-000000000000";
    let post = |path: &str, body: &[u8]| request("POST", path, &json, body);
    let get = |path: &str| request("GET", path, &login, b"");
    let mut all = vec![
        post("/api/v1/images", b"{"),
        post("/api/v1/images", b"[]"),
        post("/api/v1/images", b"null"),
        post("/api/v1/images", b"{\"name\":{}}"),
        post("/api/v1/images", b"{\"no_such_field\":1}"),
        post("/api/v1/images", b"\xff\xfe\x00"),
        post("/api/v1/images", b"{\"name\":\"\xff\"}"),
        post("/api/v1/images", &[b'['; 10_000]),
        post("/api/v1/specs", b"{\"name\":\"x\",\"gpu_count\":1e99}"),
        post("/api/v1/specs", b"{\"name\":\"x\",\"price_per_hour\":\"NaN\"}"),
        post("/api/v1/instances", b"{\"name\":\"'; drop table users; --\"}"),
        post("/api/v1/users", b"{\"name\":\"x\"}"),
        post("/api/v1/session", b"{\"username\":\"a\\u0000b\",\"password\":\"c\"}"),
        request("POST", "/api/v1/images", &login, b"name=x"),
        request("POST", "/api/v1/images", "", b"{}"),
        request("GET", "/api/v1/session", "authorization: Basic eDp5\r\n", b""),
        request("GET", "/api/v1/session", "authorization: Bearer ä\r\n", b""),
        request("GET", "/api/v1/session", "cookie: tianqi_session='--\r\n", b""),
        request("BREW", "/api/v1/session", &login, b""),
        request("DELETE", "/api/v1/openapi.json", &login, b""),
        get("/api/v1/images?page=-1"),
        get("/api/v1/images?page=99999999999999999999"),
        get("/api/v1/images?sort=name;drop%20table%20users"),
        get("/api/v1/images?name=%ff%fe"),
        get("/api/v1/images?name=%00"),
        get("/api/v1/audit-events?since=yesterday"),
        get(&format!("/api/v1/images/{id}")),
        get("/api/v1/images/%2e%2e%2fetc%2fpasswd"),
        get("/api/v1/instances/%ff"),
        get(&format!("/api/v1/instances/{id}/terminal")),
        get(&format!("/api/v1/instances/{id}/logs?tail=x")),
        get("/api/v2/"),
        get("/.git/config"),
        get("/api/docs/../../../etc/passwd"),
        get(&format!("/{}", "x".repeat(9_000))),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"nonsense\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ];
    for path in ["images", "specs", "instances", "nodes", "users", "audit-events", "session"] {
        all.push(get(&format!("/api/v1/{path}")));
        all.push(get(&format!("/api/v1/{path}/{id}")));
        all.push(request("DELETE", &format!("/api/v1/{path}/{id}"), &login, b""));
    }
    all
}

/// Returns what of an answer tells too much. The request's own words do not count.
fn telltales(sent: &[u8], heard: &Heard) -> Vec<&'static str> {
    let sent = String::from_utf8_lossy(sent).to_lowercase();
    let said = String::from_utf8_lossy(&heard.bytes).to_lowercase();
    let told = TELLTALE.iter().filter(|word| said.contains(**word) && !sent.contains(**word));
    told.copied().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_tells_what_the_controller_is_made_of() {
    tianqi_tests::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    config.limits = Limits::none();
    config.http.listen = "127.0.0.1:0".parse().unwrap();
    config.http.head_seconds = 1;
    config.agents.listen = "127.0.0.1:0".parse().unwrap();
    config.jumpbox.enabled = false;
    let running = app::start(config, SystemClock::shared()).await.unwrap();
    let address = running.http.to_string();
    let first = std::fs::read_to_string(folder.path().join("initial-admin-password")).unwrap();
    let admin = Client::anonymous(&address).login("admin", first.trim()).await;
    let change = json!({ "current_password": first.trim(), "new_password": PASSWORD });
    admin.try_call(reqwest::Method::PUT, "/me/password", Some(&change)).await;
    let wrong = wrong(admin.token().unwrap());

    let mut told = Vec::new();
    let mut failures = 0;
    for is_broken in [false, true] {
        if is_broken {
            running.ctx.db.close().await;
        }
        for bytes in &wrong {
            let heard = ask(connect(&address).await, bytes).await;
            let line = String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().to_owned();
            let telltales = telltales(bytes, &heard);
            if !telltales.is_empty() {
                told.push(format!(
                    "{line}: {telltales:?} in {}",
                    String::from_utf8_lossy(&heard.bytes)
                ));
            }
            let is_failure = heard.status().is_some_and(|status| status >= 500);
            assert!(is_broken || !is_failure, "{line}: {heard:?}");
            if is_failure {
                let problem = heard.json();
                assert_eq!(problem["code"], "internal", "{line}: {heard:?}");
                assert_eq!(problem["request_id"].as_str().map(str::len), Some(36));
                failures += 1;
            }
            assert!(heard.took < Duration::from_secs(30), "{line}");
        }
    }

    assert!(told.is_empty(), "{}", told.join("\n"));
    assert!(failures > 10, "{failures} requests failed with the database closed under them");
    running.stop().await;
}
