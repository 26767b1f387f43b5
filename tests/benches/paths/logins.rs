//! Logging in: how fast at the default cost of a password, and what fifty at once take.

use std::time::{Duration, Instant};

use serde_json::json;
use tianqi_tests::client::Client;
use tianqi_tests::cluster::{ADMIN_PASSWORD, Cluster};

use crate::http::{Wire, request};
use crate::proc::rss_mb;
use crate::report::{Line, Report, Times, count, ms};

/// People who log in at once; the controller lets 64 wait.
const AT_ONCE: usize = 50;
/// More than the controller lets wait.
const TOO_MANY: usize = 120;
const ROUNDS: usize = 4;
const SPAN: Duration = Duration::from_secs(8);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Measures all of it.
pub async fn measure(report: &mut Report) {
    let mut cluster = Cluster::start();
    let pid = cluster.controller().pid();
    Client::anonymous(cluster.http()).login("admin", ADMIN_PASSWORD).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rate(report, cluster.http()).await;

    // A fresh one, so that nothing is left of the passwords before.
    cluster.controller().kill();
    cluster.start_controller();
    let fresh = cluster.controller().pid();
    assert_ne!(fresh, pid);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = rss_mb(fresh);
    memory(report, cluster.http(), fresh, idle).await;
    crowd(report, cluster.http()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("    memory {:.1} MB three seconds after the last of them", rss_mb(fresh));
}

/// Logs in over and over, from as many clients as there are cores.
async fn rate(report: &mut Report, address: &str) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let end = Instant::now() + SPAN;
    let clients = (0..cores).map(|_| async move {
        let mut times = Vec::new();
        while Instant::now() < end {
            let (status, time) = log_in(address).await;
            assert_eq!(status, 201);
            times.push(time);
        }
        times
    });
    let times = Times::new(futures_util::future::join_all(clients).await.concat());
    let rate = count(times.count()) / SPAN.as_secs_f64();
    report.add(&Line {
        what: "logins: at the default cost of a password (Argon2id, 19 MiB, two passes)",
        ours: format!(
            "{rate:.1}/s from {cores} clients on {cores} cores, p50 {:.1} ms, p99 {:.1} ms",
            times.median_ms(),
            ms(times.at(99))
        ),
        peer: "no peer publishes one".to_owned(),
        ..Line::default()
    });
}

/// Lets fifty log in at once, a few times, and looks at the controller's memory all the while.
async fn memory(report: &mut Report, address: &str, pid: u32, idle: f64) {
    let mut most = idle;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut everybody = std::pin::pin!(at_once(address, AT_ONCE));
        let answers = loop {
            tokio::select! {
                answers = &mut everybody => break answers,
                () = tokio::time::sleep(LOOK) => most = most.max(rss_mb(pid)),
            }
        };
        for (status, time) in answers {
            assert_eq!(status, 201, "everybody of fifty gets in");
            times.push(time);
        }
    }
    let times = Times::new(times);
    let cores = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    report.add(&Line {
        what: "logins: 50 at once, memory of the controller",
        ours: format!(
            "{most:.1} MB at most, {idle:.1} MB idle; {cores} hashes at a time, others wait: p50 {:.0} ms, longest {:.0} ms",
            times.median_ms(),
            ms(times.at(100))
        ),
        peer: format!("50 hashes side by side would be {:.0} MB more", 50.0 * 19.922_944),
        ratio: format!("+{:.1} MB", most - idle),
        bar: "<= 20 MB for each core beside idle, and 40 MB",
        met: most - idle <= 20.0 * count(cores) + 40.0,
        ..Line::default()
    });
}

/// Lets more log in at once than may wait.
async fn crowd(report: &mut Report, address: &str) {
    let answers = at_once(address, TOO_MANY).await;
    let of = |wanted: u16| answers.iter().filter(|(status, _)| *status == wanted).count();
    let (inside, busy) = (of(201), of(503));
    report.add(&Line {
        what: "logins: 120 at once, more than the controller lets wait",
        ours: format!("{inside} logged in, {busy} told that it is busy (503)"),
        peer: "an outage".to_owned(),
        bar: "every answer is one of the two",
        met: inside + busy == TOO_MANY && inside >= AT_ONCE && busy > 0,
        ..Line::default()
    });
}

async fn at_once(address: &str, people: usize) -> Vec<(u16, Duration)> {
    futures_util::future::join_all((0..people).map(|_| log_in(address))).await
}

/// Logs in on a connection of its own; returns the status and how long it took.
async fn log_in(address: &str) -> (u16, Duration) {
    let body = json!({ "username": "admin", "password": ADMIN_PASSWORD, "mode": "token" });
    let mut wire = Wire::tcp(address).await.expect("the controller listens");
    let began = Instant::now();
    let wanted = request("POST", "/api/v1/session", "", &body.to_string());
    let answer = wire.call(&wanted).await.expect("an answer");
    (answer.status, began.elapsed())
}
