//! Port forwards, whole path, with real clients: curl, socat, iperf3.

use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;

/// How soon what is open ends when it is switched off.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A program that ends with the test.
struct Running(Child);

impl Running {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tcp_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until somebody listens there.
fn wait_for_tcp(port: u16) {
    let deadline = Deadline::after(PATIENCE);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        deadline.pause("nobody listens");
    }
}

async fn forward(admin: &Client, listen: u16, target: u16, fields: Value) -> String {
    let mut body = json!({
        "listen_ip": "127.0.0.1", "listen_port": listen, "target_ip": "127.0.0.1",
        "target_port": target,
    });
    for (key, value) in fields.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    let made = admin.post("/forwards", &body).await;
    assert_eq!(made["live"]["state"], "listening", "{made}");
    text(&made, "id")
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || {
        // A program that ends early takes no more.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// A web server of curl's taste: busybox serves a folder.
fn web_server(port: u16) -> (Running, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("big"), vec![42; 20_000_000]).unwrap();
    let at = format!("127.0.0.1:{port}");
    let path = folder.path().to_str().unwrap();
    let server = Running::start("busybox", &["httpd", "-f", "-p", &at, "-h", path]);
    wait_for_tcp(port);
    (server, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_fetches_through_a_forward_also_after_the_controller_was_killed() {
    let mut cluster = Cluster::start();
    let admin = cluster.admin().await;
    let (web, listen) = (tcp_port(), tcp_port());
    let (_server, _folder) = web_server(web);
    let id = forward(&admin, listen, web, json!({})).await;
    let url = format!("http://127.0.0.1:{listen}/big");
    let fetch = || run("curl", &["-s", "-f", "--max-time", "60", &url], b"");

    let first = fetch();
    assert!(first.status.success(), "{first:?}");
    assert_eq!(first.stdout.len(), 20_000_000);
    cluster.kill_and_restart_controller();
    wait_for_tcp(listen);
    assert_eq!(fetch().stdout.len(), 20_000_000, "after the restart");

    let admin = cluster.admin().await;
    let live = admin.get(&format!("/forwards/{id}")).await["live"].clone();
    assert!(live["bytes_out"].as_u64().unwrap() > 20_000_000, "{live}");
    let deleted = admin.post("/forwards/delete", &json!({ "ids": [id] })).await;
    assert_eq!(deleted["items"][0]["deleted"], true, "{deleted}");
    assert!(!fetch().status.success(), "it is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn socat_that_closed_its_sending_side_still_gets_the_reply() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let (target, listen) = (tcp_port(), tcp_port());
    // The sum of what was sent is known only when the sender has ended.
    let server = format!("TCP-LISTEN:{target},bind=127.0.0.1,fork,reuseaddr");
    let _server = Running::start("socat", &["-t", "30", &server, "EXEC:sha256sum"]);
    wait_for_tcp(target);
    forward(&admin, listen, target, json!({})).await;

    let input = vec![7; 5_000_000];
    let to = format!("TCP:127.0.0.1:{listen}");
    let output = run("socat", &["-t", "30", "-", &to], &input);

    let expected = run("sha256sum", &[], &input);
    assert!(!expected.stdout.is_empty());
    assert_eq!(output.stdout, expected.stdout, "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_off_ends_a_client_that_is_connected() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let (target, listen) = (tcp_port(), tcp_port());
    let server = format!("TCP-LISTEN:{target},bind=127.0.0.1,fork,reuseaddr");
    let _server = Running::start("socat", &[&server, "EXEC:cat"]);
    wait_for_tcp(target);
    let id = forward(&admin, listen, target, json!({})).await;
    let to = format!("TCP:127.0.0.1:{listen}");
    let mut client = Running::start("socat", &["-u", &to, "OPEN:/dev/null"]);
    let path = format!("/forwards/{id}");
    let deadline = Deadline::after(PATIENCE);
    while admin.get(&path).await["live"]["connections"] != 1 {
        deadline.pause_async("the client is not connected").await;
    }

    admin.patch(&path, &json!({ "enabled": false })).await;

    let deadline = Deadline::after(AT_ONCE);
    while !client.has_ended() {
        deadline.pause_async("the client is still connected").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn socat_and_iperf3_get_their_datagrams_through() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let (target, listen) = (udp_port(), udp_port());
    let server = format!("UDP-LISTEN:{target},bind=127.0.0.1,fork,reuseaddr");
    let _server = Running::start("socat", &[&server, "EXEC:cat"]);
    forward(&admin, listen, target, json!({ "protocol": "udp" })).await;
    let to = format!("UDP:127.0.0.1:{listen}");
    let deadline = Deadline::after(PATIENCE);
    loop {
        let output = run("socat", &["-t", "1", "-", &to], b"over and back");
        if output.stdout == b"over and back" {
            break;
        }
        deadline.pause_async(&format!("no answer came: {output:?}")).await;
    }

    // iperf3 talks to one port over TCP for its orders and over UDP for the load.
    let (server, both) = (tcp_port(), tcp_port());
    let port = server.to_string();
    let _iperf = Running::start("iperf3", &["-s", "-p", &port, "-B", "127.0.0.1"]);
    wait_for_tcp(server);
    forward(&admin, both, server, json!({})).await;
    forward(&admin, both, server, json!({ "protocol": "udp" })).await;
    let port = both.to_string();
    let args = ["-c", "127.0.0.1", "-p", &port, "-u", "-l", "1000", "-b", "20M", "-t", "1", "-J"];
    let output = run("iperf3", &args, b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let sum = &report["end"]["sum"];
    assert!(sum["packets"].as_u64().is_some_and(|packets| packets > 100), "{output:?}");
    assert!(sum["lost_percent"].as_f64().is_some_and(|lost| lost < 20.0), "{sum}");
}
