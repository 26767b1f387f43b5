//! Forwards that are asked for wrongly, lead to nobody, or run out of descriptors.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tianqi_tests::client::{Client, PATIENCE, text};
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;

/// How long the controller is watched while it has no descriptors left.
const WATCHED: Duration = Duration::from_secs(3);
/// Most of this time that it may work: pauses between tries, not tries, are what fills it.
const MOST_WORK: f64 = 0.25;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn body(listen: u16, target: u16, fields: &Value) -> Value {
    let mut body = json!({
        "listen_ip": "127.0.0.1", "listen_port": listen, "target_ip": "127.0.0.1",
        "target_port": target,
    });
    for (key, value) in fields.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

async fn forward(admin: &Client, listen: u16, target: u16) -> String {
    let made = admin.post("/forwards", &body(listen, target, &json!({}))).await;
    assert_eq!(made["live"]["state"], "listening", "{made}");
    format!("/forwards/{}", text(&made, "id"))
}

async fn until(admin: &Client, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Deadline::after(PATIENCE);
    loop {
        let live = admin.get(path).await["live"].clone();
        if wanted(&live) {
            return live;
        }
        deadline.pause_async(&format!("{live}")).await;
    }
}

/// Answers everybody with what they sent.
fn echoing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (&stream, &stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    port
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_echoed(stream: &mut TcpStream) -> bool {
    let mut got = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut got).is_ok() && &got == b"hello"
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_refused_with_a_word_for_it() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let [a, b, c, target] = [(); 4].map(|()| free_port());
    forward(&admin, a, target).await;
    forward(&admin, b, a).await;
    let nobody = json!({ "target_ip": null, "target_port": null, "instance_port": 22,
        "instance_id": "01900000-0000-7000-8000-000000000000" });

    for (listen, leads_to, fields, code) in [
        (a, target, json!({}), "listen_taken"),
        (a, target, json!({ "listen_ip": "0.0.0.0" }), "listen_taken"),
        (c, c, json!({}), "forward_loop"),
        (c, c, json!({ "listen_ip": "0.0.0.0" }), "forward_loop"),
        (target, b, json!({}), "forward_loop"),
        (cluster.ssh(), target, json!({}), "port_reserved"),
        (0, target, json!({}), "bad_field"),
        (c, 0, json!({}), "bad_field"),
        (c, target, json!({ "listen_ip": "224.0.0.1" }), "bad_field"),
        (c, target, json!({ "target_ip": "169.254.169.254" }), "bad_target"),
        (c, target, json!({ "target_ip": "255.255.255.255" }), "bad_target"),
        (c, target, json!({ "instance_id": nobody["instance_id"] }), "bad_field"),
        (c, target, json!({ "target_port": null }), "bad_field"),
        (c, target, json!({ "max_connections": 0 }), "bad_field"),
        (c, target, json!({ "allowed_sources": ["everybody"] }), "bad_field"),
        (c, target, nobody.clone(), "no_such_instance"),
    ] {
        let body = body(listen, leads_to, &fields);
        let (status, answer) = admin.try_call(Method::POST, "/forwards", Some(&body)).await;
        assert!(status.is_client_error(), "{body}: {answer}");
        assert_eq!(answer["code"], code, "{body}: {answer}");
    }
    for fields in [
        json!({ "listen_port": 70_000 }),
        json!({ "listen_port": -1 }),
        json!({ "listen_ip": "localhost" }),
        json!({ "protocol": "sctp" }),
        json!({ "no_such_field": 1 }),
    ] {
        let body = body(c, target, &fields);
        let (status, answer) = admin.try_call(Method::POST, "/forwards", Some(&body)).await;
        assert!(status.is_client_error() && answer["code"].is_string(), "{body}: {answer}");
    }
    let list = admin.get("/forwards").await;
    assert_eq!(list["total"], 2, "nothing of it was kept: {list}");
    // A circle is refused as well when a rule is turned into one.
    let rows = list["items"].as_array().unwrap();
    let first = rows.iter().find(|row| row["listen_port"] == a).unwrap();
    let path = format!("/forwards/{}", text(first, "id"));
    let turned = json!({ "target_port": b });
    let (_, answer) = admin.try_call(Method::PATCH, &path, Some(&turned)).await;
    assert_eq!(answer["code"], "forward_loop", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_has_is_listened_on_once_it_is_free() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();

    let made = admin.post("/forwards", &body(port, echoing(), &json!({}))).await;

    assert_eq!(made["live"]["state"], "error", "{made}");
    assert!(text(&made["live"], "reason").contains("taken by another program"), "{made}");
    drop(taken);
    let path = format!("/forwards/{}", text(&made, "id"));
    until(&admin, &path, |live| live["state"] == "listening").await;
    assert!(is_echoed(&mut connect(port)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_never_answers_is_given_up_and_told_of() {
    let cluster = Cluster::start_with(&[("TIANQI_FORWARDS__CONNECT_SECONDS", "1")]);
    let admin = cluster.admin().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let target = full.local_addr().unwrap();
    // Once its queue is full, the kernel answers nobody.
    let mut queued = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&target, Duration::from_millis(500)) {
        queued.push(one);
        assert!(queued.len() < 100, "the queue has no end");
    }
    let listen = free_port();
    let path = forward(&admin, listen, target.port()).await;

    let read = connect(listen).read(&mut [0]);

    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let live = until(&admin, &path, |live| live["last_error"].is_string()).await;
    assert!(text(&live, "last_error").contains("no answer within 1s"), "{live}");
    let live = until(&admin, &path, |live| live["connections"] == 0).await;
    assert_eq!(live["state"], "listening", "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_taking_in_pauses_without_spinning_and_goes_on_by_itself() {
    let mut cluster = Cluster::start();
    let admin = cluster.admin().await;
    let listen = free_port();
    let path = forward(&admin, listen, echoing()).await;
    let pid = cluster.controller().pid();
    let mut open = connect(listen);
    assert!(is_echoed(&mut open));

    // What is open stays open; nothing more can be opened.
    limit_files(pid, 3);
    let waiting: Vec<_> = (0..5).map(|_| connect(listen)).collect();
    let before = worked(pid);
    tokio::time::sleep(WATCHED).await;
    let share = (worked(pid) - before).as_secs_f64() / WATCHED.as_secs_f64();

    assert!(share < MOST_WORK, "it works {share:.2} of the time");
    assert!(!cluster.controller().has_ended());
    assert!(is_echoed(&mut open), "what is open works on");
    limit_files(pid, 4_096);
    for mut client in waiting {
        assert!(is_echoed(&mut client), "who waited is taken in");
    }
    let live = until(&admin, &path, |live| live["last_error"].is_string()).await;
    assert!(text(&live, "last_error").contains("cannot be taken in"), "{live}");
}

fn limit_files(pid: u32, most: usize) {
    let (pid, most) = (pid.to_string(), format!("--nofile={most}:4096"));
    let status = Command::new("prlimit").args(["--pid", &pid, &most]).status().unwrap();
    assert!(status.success());
}

/// Returns how long a process has kept cores busy, from `/proc/PID/stat` in hundredths of a second.
fn worked(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|it| it.parse().unwrap_or(0)).collect())
        .unwrap();
    Duration::from_millis((fields[11] + fields[12]) * 10)
}
