//! A controller alone: how soon it is there, how large it is, and how fast it lists.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tianqi_tests::binaries::binary;
use tianqi_tests::client::Client;
use tianqi_tests::cluster::{ADMIN_PASSWORD, UNLIMITED};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::process::Process;

use crate::http::{Wire, request};
use crate::proc::{free_addresses, rss_mb};
use crate::report::{Line, Report, Times, count, ms};
use crate::rows;

const STARTS: usize = 5;
const INSTANCES: u32 = 10_000;
const NODES: u32 = 100;
const CLIENTS: usize = 16;
const WARM_UP: Duration = Duration::from_secs(2);
const SPAN: Duration = Duration::from_secs(8);

/// A controller's program, started and stopped at will.
struct Controller {
    folder: tempfile::TempDir,
    http: String,
    agents: String,
}

impl Controller {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("tianqi-bench-").tempdir().expect("folder");
        let (http, agents) = free_addresses();
        Self { folder, http, agents }
    }

    /// Starts it and returns how long it took to be ready.
    async fn start(&self) -> (Process, Duration) {
        let mut command = Command::new(binary("tianqi-controller"));
        command
            .arg("serve")
            .env("TIANQI_DATA_DIR", self.folder.path().join("data"))
            .env("TIANQI_HTTP__LISTEN", &self.http)
            .envs(UNLIMITED)
            .env("TIANQI_AGENTS__LISTEN", &self.agents)
            .env("TIANQI_JUMPBOX__ENABLED", "false")
            .env("TIANQI_ADMIN_PASSWORD", ADMIN_PASSWORD);
        let began = Instant::now();
        let mut process = Process::start(command, &self.folder.path().join("log"));
        let deadline = Deadline::after(Duration::from_secs(60));
        while !self.is_ready().await {
            assert!(!process.has_ended(), "the controller ended:\n{}", process.log());
            deadline.check("the controller is not ready");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (process, began.elapsed())
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut wire) = Wire::tcp(&self.http).await else { return false };
        let answer = wire.call(&request("GET", "/readyz", "", "")).await;
        answer.is_ok_and(|answer| answer.status == 200)
    }
}

/// Measures all three.
pub async fn measure(report: &mut Report) {
    let controller = Controller::new();
    let (mut process, first) = controller.start().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let rss = rss_mb(process.pid());
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        process.stop();
        let time;
        (process, time) = controller.start().await;
        starts.push(time);
    }
    let starts = Times::new(starts);
    report.add(&Line {
        what: "controller: from its start to ready",
        ours: format!(
            "{:.0} ms, median of {}; the first start, which makes everything, {:.0} ms",
            starts.median_ms(),
            starts.count(),
            ms(first)
        ),
        peer: "dstack server 8 s (published)".to_owned(),
        ratio: format!("{:.3}", starts.at(50).as_secs_f64() / 8.0),
        bar: "<= 1 s",
        met: starts.at(50) <= Duration::from_secs(1) && first <= Duration::from_secs(1),
        ..Line::default()
    });
    report.add(&Line {
        what: "controller: memory when empty",
        ours: format!("{rss:.1} MB"),
        peer: "dstack server 257 MB (published)".to_owned(),
        ratio: format!("{:.2}", rss / 257.0),
        ..Line::default()
    });
    make_instances(&controller, &mut process).await;
    let (mut process, start) = controller.start().await;
    list(report, &controller).await;
    println!("    with {INSTANCES} instances it was ready in {:.0} ms", ms(start));
    process.stop();
}

async fn make_instances(controller: &Controller, process: &mut Process) {
    let admin = Client::anonymous(&controller.http).login("admin", ADMIN_PASSWORD).await;
    let image = admin.create_image("listed", "127.0.0.1:1/none:1").await;
    let slice = json!({
        "gpu_count": 1, "slicing": true, "gpu_memory_mib": 4_096, "gpu_core_percent": 10,
    });
    let spec = admin.create_spec("slice", &slice).await;
    admin.create_instance("listed", &image, &spec).await;
    process.stop();
    let mut db = rows::open(&controller.folder.path().join("data")).await;
    rows::nodes(&mut db, NODES).await;
    let node = format!("(select id from nodes where rowid = 1 + i % {NODES})");
    let changes = [("phase", "'running'"), ("node_id", node.as_str()), ("reason_code", "''")];
    rows::instances(&mut db, INSTANCES, &changes).await;
    let grants = "insert into gpu_grants (instance_id, gpu_uuid, node_id, memory_mib, cores, \
         exclusive, created_at) select i.id, (select uuid from node_gpus g where \
         g.node_id = i.node_id limit 1), i.node_id, 4096, 10, 0, 0 from instances i";
    rows::run(&mut db, grants).await;
}

async fn list(report: &mut Report, controller: &Controller) {
    let admin = Client::anonymous(&controller.http).login("admin", ADMIN_PASSWORD).await;
    let token = admin.token().expect("a token").to_owned();
    let page = admin.get("/instances?page_size=50").await;
    assert_eq!(page["total"], INSTANCES, "{page}");
    assert_eq!(page["items"].as_array().map(Vec::len), Some(50));
    // The first pass of the loop reads all there is; lists are measured beside nothing else.
    tokio::time::sleep(WARM_UP).await;
    ask(&controller.http, &token, 1, WARM_UP).await;
    let alone = ask(&controller.http, &token, 1, WARM_UP).await;
    let times = ask(&controller.http, &token, CLIENTS, SPAN).await;
    let rate = count(times.count()) / SPAN.as_secs_f64();
    report.add(&Line {
        what: "list: a page of 50 among 10 000 instances, 16 clients, on the same machine",
        ours: format!(
            "{rate:.0}/s, p50 {:.1} ms, p99 {:.1} ms; one client alone p50 {:.2} ms",
            times.median_ms(),
            ms(times.at(99)),
            alone.median_ms()
        ),
        peer: "dstack 220/s, p99 401 ms (published)".to_owned(),
        ratio: format!(
            "{:.1} times the rate, {:.3} of the p99",
            rate / 220.0,
            ms(times.at(99)) / 401.0
        ),
        bar: ">= 3000/s, p99 <= 20 ms",
        met: rate >= 3_000.0 && times.at(99) <= Duration::from_millis(20),
        ..Line::default()
    });
}

/// Lets `clients` ask again and again for `span`; each keeps its connection.
async fn ask(address: &str, token: &str, clients: usize, span: Duration) -> Times {
    let headers = format!("authorization: Bearer {token}\r\n");
    let wanted = request("GET", "/api/v1/instances?page_size=50", &headers, "");
    let end = Instant::now() + span;
    let clients = (0..clients).map(|_| {
        let wanted = wanted.clone();
        async move {
            let mut wire = Wire::tcp(address).await.expect("the controller listens");
            let mut times = Vec::new();
            while Instant::now() < end {
                let began = Instant::now();
                let answer = wire.call(&wanted).await.expect("an answer");
                times.push(began.elapsed());
                assert_eq!(answer.status, 200);
            }
            times
        }
    });
    Times::new(futures_util::future::join_all(clients).await.concat())
}
