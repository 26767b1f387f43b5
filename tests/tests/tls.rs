//! TLS on the console's port, with real connections.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tianqi_tests::cluster::{ADMIN_PASSWORD, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::raw_http::{Pair, ask, connect, connect_tls, get};
use tokio::io::AsyncWriteExt as _;

const PATIENCE: Duration = Duration::from_secs(30);
/// How soon an answer must come while others are slow.
const SOON: Duration = Duration::from_secs(5);

struct World {
    cluster: Cluster,
    pair: Pair,
    folder: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::make();
        std::fs::write(folder.path().join("cert.pem"), &pair.certificate).unwrap();
        std::fs::write(folder.path().join("key.pem"), &pair.key).unwrap();
        let path = |name| folder.path().join(name).display().to_string();
        let cluster = Cluster::start_with(&[
            ("TIANQI_HTTP__TLS_CERT", &path("cert.pem")),
            ("TIANQI_HTTP__TLS_KEY", &path("key.pem")),
        ]);
        Self { cluster, pair, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn status(&self, pair: &Pair) -> Option<u16> {
        let stream = connect_tls(self.cluster.http(), &pair.certificate).await.ok()?;
        ask(stream, &get("/healthz", "")).await.status()
    }

    /// Waits until new connections get the certificate of `pair`.
    async fn wait_for(&self, pair: &Pair) {
        let deadline = Deadline::after(PATIENCE);
        while self.status(pair).await != Some(200) {
            deadline.pause_async("the new certificate is not served").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let mut world = World::start();
    assert_eq!(world.status(&world.pair).await, Some(200));
    let mut held = connect_tls(world.cluster.http(), &world.pair.certificate).await.unwrap();
    held.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();

    let renewed = Pair::make();
    // Between the two writes the files do not belong together.
    std::fs::write(world.file("cert.pem"), &renewed.certificate).unwrap();
    std::fs::write(world.file("key.pem"), &renewed.key).unwrap();
    world.wait_for(&renewed).await;
    assert_eq!(world.status(&world.pair).await, None, "the old one is gone");
    let rest = ask(held, b"connection: close\r\n\r\n").await;
    assert_eq!(rest.status(), Some(200), "who came before goes on");

    std::fs::write(world.file("key.pem"), &world.pair.key).unwrap();
    let deadline = Deadline::after(PATIENCE);
    while !world.cluster.controller().log().contains("the new certificate cannot be used") {
        deadline.pause_async("a broken pair is not told").await;
    }
    assert_eq!(world.status(&renewed).await, Some(200), "the one before it is served on");
    let log = world.cluster.controller().log();
    assert_eq!(log.matches("the new certificate cannot be used").count(), 1, "{log}");

    let third = Pair::make();
    std::fs::write(world.file("key.pem"), &third.key).unwrap();
    std::fs::write(world.file("cert.pem"), &third.certificate).unwrap();
    world.wait_for(&third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_to_the_tls_port_ends_at_once_and_slow_handshakes_delay_nobody() {
    let world = World::start();
    let plain = ask(connect(world.cluster.http()).await, &get("/", "")).await;
    assert!(plain.status().is_none() && plain.took < SOON, "{plain:?}");

    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(world.cluster.http()).await;
        // The first bytes of a handshake that never goes on.
        stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
        silent.push(stream);
    }
    let began = Instant::now();
    assert_eq!(world.status(&world.pair).await, Some(200));
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_cookies_are_secure_and_only_pages_of_the_same_site_may_write() {
    let world = World::start();
    let root = reqwest::Certificate::from_pem(world.pair.certificate.as_bytes()).unwrap();
    // Speaks HTTP/2, which has no Host header.
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    let port = world.cluster.http().rsplit(':').next().unwrap().to_owned();
    let url = format!("https://localhost:{port}/api/v1/session");
    let log_in = async |origin: &str| {
        let body = json!({ "username": "admin", "password": ADMIN_PASSWORD });
        http.post(&url).header("origin", origin).json(&body).send().await.unwrap()
    };

    let answer = log_in(&format!("https://localhost:{port}")).await;

    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(answer.status(), 201);
    assert!(answer.headers().contains_key("strict-transport-security"));
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.ends_with("; Secure") && cookie.contains("; HttpOnly; SameSite=Strict"));
    assert_eq!(log_in(&format!("http://localhost:{port}")).await.status(), 403);
    assert_eq!(log_in("https://localhost").await.status(), 403);
    assert_eq!(log_in("https://evil.example.org").await.status(), 403);

    let session = cookie.split(';').next().unwrap();
    let read = http.get(&url).header("cookie", session).send().await.unwrap();
    assert_eq!(read.status(), 200);
    let log_out = |origin: Option<String>| {
        let request = http.delete(&url).header("cookie", session);
        origin.into_iter().fold(request, |it, origin| it.header("origin", origin)).send()
    };
    assert_eq!(log_out(None).await.unwrap().status(), 403);
    let own = format!("https://localhost:{port}");
    assert_eq!(log_out(Some(own)).await.unwrap().status(), 204);
}
