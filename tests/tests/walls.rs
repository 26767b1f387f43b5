//! The walls around HTTP, on the wire: time, size, number and rate of what clients send, TLS, and
//! what every answer says and does not say.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tianqi_tests::client::{Client, text};
use tianqi_tests::cluster::{ADMIN_PASSWORD, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::raw_http::{Heard, ask, connect, connect_from, drip, get, listen};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between the bytes of a slow client, and how soon it must be over with limits of a second.
const DRIP: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(10);

/// What every answer says.
const ALWAYS: &[(&str, &str)] = &[
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Calls of every kind of answer: method, path, whether as admin, body, status.
fn calls() -> Vec<(Method, String, bool, Option<&'static str>, u16)> {
    let call = |method: &str, path: &str, admin, body, status| {
        (method.parse().unwrap(), path.to_owned(), admin, body, status)
    };
    let missing = "/api/v1/images/01890000-0000-7000-8000-000000000000";
    vec![
        call("GET", "/healthz", false, None, 200),
        call("HEAD", "/healthz", false, None, 200),
        call("GET", "/readyz", false, None, 200),
        call("GET", "/api/docs", false, None, 200),
        call("GET", "/api/docs.js", false, None, 200),
        call("GET", "/api/docs.css", false, None, 200),
        call("GET", "/api/v1/openapi.json", false, None, 200),
        call("GET", "/api/v1/session", true, None, 200),
        call("GET", "/api/v1/images?page_size=0", true, None, 422),
        call("GET", "/api/v1/images?page=x", true, None, 400),
        call("GET", "/api/v1/session", false, None, 401),
        call("GET", "/", false, None, 404),
        call("GET", "/../../etc/passwd", false, None, 404),
        call("GET", missing, true, None, 404),
        call("GET", "/api/v1/images/not-an-id", true, None, 400),
        call("POST", "/healthz", false, Some("{}"), 405),
        call("TRACE", "/api/v1/session", false, None, 405),
        call("OPTIONS", "/api/v1/session", false, None, 405),
        call("POST", "/api/v1/images", true, Some("{\"name\": \u{1}"), 400),
        call("POST", "/api/v1/images", true, Some("{\"name\": 7}"), 422),
        call(
            "POST",
            "/api/v1/session",
            false,
            Some("{\"username\":\"a\",\"password\":\"b\"}"),
            401,
        ),
        call("GET", &format!("/{}", "long".repeat(2_500)), false, None, 414),
    ]
}

async fn send(
    cluster: &Cluster,
    admin: &Client,
    (method, path, is_admin, body, _): &(Method, String, bool, Option<&'static str>, u16),
) -> reqwest::Response {
    let url = format!("http://{}{path}", cluster.http());
    let mut request =
        reqwest::Client::builder().no_proxy().build().unwrap().request(method.clone(), url);
    if *is_admin {
        request = request.bearer_auth(admin.token().unwrap());
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(*body);
    }
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_the_headers_that_keep_a_browser_safe() {
    for (settings, is_secure) in
        [(vec![], false), (vec![("TIANQI_HTTP__PUBLIC_URL", "https://gpu.example.org")], true)]
    {
        let cluster = Cluster::start_with(&settings);
        let admin = cluster.admin().await;
        for call in calls() {
            let answer = send(&cluster, &admin, &call).await;
            let (status, headers) = (answer.status(), answer.headers());
            let header = |name: &str| headers.get(name).map(|it| it.to_str().unwrap());

            assert_eq!(status, call.4, "{call:?}");
            for (name, value) in ALWAYS {
                assert_eq!(header(name), Some(*value), "{name} of {call:?}");
            }
            let policy = header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'"), "{policy}");
            for word in ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
                assert!(policy.contains(word), "{word} in the policy of {call:?}");
            }
            assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy} of {call:?}");
            assert!(header("permissions-policy").unwrap().contains("camera=()"));
            assert!(header("x-request-id").is_some_and(|id| id.len() == 36), "{call:?}");
            assert_eq!(header("strict-transport-security").is_some(), is_secure, "{call:?}");
            for name in ["server", "x-powered-by", "via", "x-aspnet-version"] {
                assert_eq!(header(name), None, "{name} of {call:?}");
            }
            if status.as_u16() >= 400 && call.0 != Method::HEAD {
                assert_eq!(header("content-type"), Some("application/problem+json"), "{call:?}");
                let problem: Value = answer.json().await.unwrap();
                assert!(!text(&problem, "code").is_empty() && !text(&problem, "detail").is_empty());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_the_api_needs_nothing_that_its_policy_forbids() {
    let cluster = Cluster::start();
    let read = async |path: &str| {
        let answer = reqwest::get(format!("http://{}{path}", cluster.http())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        (kind, policy, answer.text().await.unwrap())
    };

    let (kind, policy, page) = read("/api/docs").await;

    assert_eq!(kind, "text/html; charset=utf-8");
    for word in ["script-src 'self'", "style-src 'self'", "connect-src 'self'"] {
        assert!(policy.contains(word), "{policy}");
    }
    for inline in ["<style", " style=", "<script>", "javascript:", " onload=", " onclick=", "<img"]
    {
        assert!(!page.contains(inline), "{inline} would not work under {policy}");
    }
    let mut linked = 0;
    for part in page.split(['"']).filter(|part| part.starts_with('/')) {
        let (kind, ..) = read(part).await;
        let expected = match part.rsplit('.').next() {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "application/json",
        };
        assert_eq!(kind, expected, "{part}; with nosniff the type must be right");
        linked += 1;
    }
    assert_eq!(linked, 3, "the style, the description and the script");
    let (_, _, script) = read("/api/docs.js").await;
    for needs_more in ["innerHTML", ".style", "eval(", "http://", "https://", "import("] {
        assert!(!script.contains(needs_more), "{needs_more} would not work under {policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_slowly_is_cut_off() {
    let cluster = Cluster::start_with(&[
        ("TIANQI_HTTP__HEAD_SECONDS", "1"),
        ("TIANQI_HTTP__REQUEST_SECONDS", "2"),
    ]);
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}", "a".repeat(1_000));
    let silent = async { listen(connect(cluster.http()).await, std::time::Instant::now()).await };
    let slow_head = async { drip(connect(cluster.http()).await, head.as_bytes(), DRIP).await };
    // The first bytes of HTTP/2, which are the same for long.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let slow_preface = async { drip(connect(cluster.http()).await, preface, DRIP).await };
    let idle_http2 = async { drip(connect(cluster.http()).await, preface, Duration::ZERO).await };

    let heard = tokio::join!(silent, slow_head, slow_preface, idle_http2);

    for (heard, who) in [
        (heard.0, "who says nothing"),
        (heard.1, "who sends a head slowly"),
        (heard.2, "who begins HTTP/2 slowly"),
        (heard.3, "who begins HTTP/2 and asks nothing"),
    ] {
        assert_eq!(heard.status(), None, "{who}: {heard:?}");
        assert!(heard.took >= Duration::from_millis(900) && heard.took < SOON, "{who}: {heard:?}");
    }

    let mut stream = connect(cluster.http()).await;
    let head = "POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let heard = drip(stream, &[b' '; 1_000], DRIP).await;
    assert_eq!(heard.status(), Some(408), "{heard:?}");
    assert_eq!(heard.json()["code"], "took_too_long");
    assert!(heard.took >= Duration::from_millis(1_900) && heard.took < SOON, "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_serves_again_and_ends_when_it_stands_idle() {
    let cluster = Cluster::start_with(&[("TIANQI_HTTP__HEAD_SECONDS", "1")]);
    let mut stream = connect(cluster.http()).await;

    for _ in 0..3 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4_096];
        let n = stream.read(&mut answer).await.unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 200 OK\r\n"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let rest = listen(stream, std::time::Instant::now()).await;
    assert!(rest.bytes.is_empty() && rest.took < SOON, "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_is_refused_with_a_problem() {
    let cluster = Cluster::start();
    let send = async |bytes: Vec<u8>| ask(connect(cluster.http()).await, &bytes).await;

    let path = send(get(&format!("/{}", "p".repeat(9_000)), "")).await;
    assert_eq!((path.status(), &path.json()["code"]), (Some(414), &json!("uri_too_long")));
    let query = send(get(&format!("/healthz?{}", "q".repeat(9_000)), "")).await;
    assert_eq!(query.status(), Some(200), "{query:?}");
    let header = send(get("/", &format!("x-long: {}\r\n", "h".repeat(20_000)))).await;
    let code = json!("headers_too_large");
    assert_eq!((header.status(), &header.json()["code"]), (Some(431), &code), "{header:?}");
    let many: String = (0..90).map(|n| format!("x-{n}: {}\r\n", "m".repeat(200))).collect();
    let many = send(get("/", &many)).await;
    assert_eq!((many.status(), &many.json()["code"]), (Some(431), &code), "{many:?}");

    let crowd: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let crowd = send(get("/", &crowd)).await;
    assert_eq!(crowd.status(), Some(431), "{crowd:?}");
    let endless = send(get("/", &format!("x-long: {}\r\n", "e".repeat(4 << 20)))).await;
    assert!(matches!(endless.status(), Some(431) | None), "{endless:?}");
    let body = format!(
        "POST /api/v1/session HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        2 << 20
    );
    let body = [body.into_bytes(), vec![b' '; 2 << 20]].concat();
    let body = send(body).await;
    assert_eq!((body.status(), &body.json()["code"]), (Some(413), &json!("too_large")));
}

/// Opens connections that stay, until one is closed at once, and returns them.
async fn fill(own: &str, address: &str) -> Vec<TcpStream> {
    let mut open = Vec::new();
    loop {
        let Ok(mut stream) = connect_from(own, address).await else { return open };
        let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut answer = [0; 4_096];
        let is_written = stream.write_all(request).await.is_ok();
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.unwrap();
        if !is_written || !read.is_ok_and(|n| n > 0) {
            return open;
        }
        open.push(stream);
        assert!(open.len() < 100, "nothing limits the connections");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections_and_all_have_an_end() {
    let cluster = Cluster::start_with(&[
        ("TIANQI_HTTP__CONNECTIONS_PER_ADDRESS", "4"),
        ("TIANQI_HTTP__CONNECTIONS", "6"),
    ]);
    // The connection by which the start was noticed may not be closed yet.
    let deadline = Deadline::after(PATIENCE);
    let first = loop {
        let open = fill("127.0.0.1", cluster.http()).await;
        if open.len() == 4 {
            break open;
        }
        assert!(open.len() < 4, "{} connections of one address", open.len());
        deadline.pause_async("four connections of one address").await;
    };

    let second = fill("127.0.0.2", cluster.http()).await;
    assert_eq!(second.len(), 2, "six in all");
    assert_eq!(fill("127.0.0.3", cluster.http()).await.len(), 0);

    drop(first);
    let deadline = Deadline::after(PATIENCE);
    while fill("127.0.0.1", cluster.http()).await.len() < 4 {
        deadline.pause_async("closed connections do not give their places back").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let cluster = Cluster::start_with(&[
        ("TIANQI_LIMITS__ADDRESS_PER_SECOND", "1"),
        ("TIANQI_LIMITS__ADDRESS_BURST", "8"),
    ]);
    let send = async |own: &str, path: &str, headers: &str| -> Heard {
        let stream = connect_from(own, cluster.http()).await.unwrap();
        ask(stream, &get(path, headers)).await
    };

    let mut refused = Vec::new();
    for n in 0..16 {
        // Forged addresses and wrong tokens do not make it another client.
        let headers = format!("x-forwarded-for: 9.9.9.{n}\r\nauthorization: Bearer {n}\r\n");
        let heard = send("127.0.0.1", "/api/v1/session", &headers).await;
        match heard.status() {
            Some(401) => {}
            Some(429) => refused.push(heard),
            _ => panic!("{heard:?}"),
        }
    }

    assert!((1..=8).contains(&refused.len()), "{} refused", refused.len());
    assert_eq!(refused[0].json()["code"], "too_many_requests");
    assert!(refused[0].head().contains("\r\nretry-after: 1"), "{}", refused[0].head());
    assert_eq!(send("127.0.0.1", "/healthz", "").await.status(), Some(200));
    assert_eq!(send("127.0.0.2", "/api/v1/session", "").await.status(), Some(401));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_limited_whatever_sessions_it_has() {
    let cluster = Cluster::start_with(&[
        ("TIANQI_LIMITS__ACCOUNT_PER_SECOND", "1"),
        ("TIANQI_LIMITS__ACCOUNT_BURST", "10"),
    ]);
    let (one, two) = (cluster.admin().await, cluster.admin().await);
    let account =
        json!({ "name": "calm", "password": ADMIN_PASSWORD, "must_change_password": false });
    one.post("/users", &account).await;
    let calm = Client::anonymous(cluster.http()).login("calm", ADMIN_PASSWORD).await;

    let mut refused = 0;
    for n in 0..20 {
        let client = if n % 2 == 0 { &one } else { &two };
        let (status, body) = client.try_call(Method::GET, "/session", None).await;
        assert!(status.is_success() || body["code"] == "too_many_requests", "{body}");
        refused += u32::from(status == StatusCode::TOO_MANY_REQUESTS);
    }

    assert!(refused >= 5, "{refused} refused");
    calm.get("/session").await;
}
