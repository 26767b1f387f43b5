//! A whole machine: controller, agent with eight cards, a real engine, and programs in instances.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tianqi_tests::client::{Client, PATIENCE};
use tianqi_tests::cluster::{Agent, AgentOptions, Cluster};
use tianqi_tests::deadline::Deadline;
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

use crate::admin::Admin;
use crate::direct::Direct;
use crate::http::{Wire, request};
use crate::proc::watch;
use crate::report::{Line, Report, Times, count, ms};
use crate::terminal::Terminal;

const PAIRS: usize = 15;
const CARDS: u32 = 8;
const CONTAINERS: usize = 20;
/// How long the agent is watched.
const WATCH: Duration = Duration::from_secs(60);
/// Fewer than a terminal keeps of one line.
const KEYS: usize = 2_000;
const COMMANDS: usize = 30;
const BULK_ROUNDS: usize = 5;
const BULK_MIB: u32 = 256;

/// Dropped in this order.
struct World {
    admin: Client,
    agent: Agent,
    cluster: Cluster,
    engine: Dockerd,
    _cards: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let engine = Dockerd::start();
        let cluster = Cluster::start();
        let admin = cluster.admin().await;
        let (cards, library) = fake_cards();
        let mut options = AgentOptions::on(&engine);
        let library = library.display().to_string();
        options.settings.push(("TIANQI_GPU__NVML_LIBRARY".to_owned(), library));
        let agent = cluster.add_agent(&admin, options).await;
        Self { admin, agent, cluster, engine, _cards: cards }
    }

    /// Makes an instance and waits until it runs; returns its id and its container's.
    async fn running(&self, name: &str, image: &str, spec: &str) -> (String, String) {
        let id = self.admin.create_instance(name, image, spec).await;
        let instance = self.admin.wait_phase(&id, "running").await;
        (id, instance["container_id"].as_str().expect("a container").to_owned())
    }
}

/// Makes a folder with the stand-in for NVML and eight cards.
fn fake_cards() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("tianqi-nvml-").tempdir().expect("folder");
    let program = std::env::current_exe().expect("this program");
    let built = program.ancestors().nth(2).expect("target").join("libtianqi_fake_nvml.so");
    assert!(
        built.exists(),
        "{} is missing: cargo build --release -p tianqi-fake-nvml",
        built.display()
    );
    let library = folder.path().join("libnvidia-ml.so.1");
    std::fs::copy(built, &library).expect("a copy of the library");
    let card = |number: u32| {
        json!({
            "uuid": format!("GPU-00000000-0000-0000-0000-{number:012}"), "name": "NVIDIA L40",
            "pci_bus_id": format!("00000000:{number:02X}:00.0"), "minor": number,
            "memory_total_mib": 46_068, "memory_reserved_mib": 600, "memory_used_mib": 1_000,
            "utilisation": 50, "temperature": 60, "power_mw": 200_000,
        })
    };
    let machine = json!({
        "driver_version": "550.54.15", "cuda_version": 12_040,
        "cards": (1..=CARDS).map(card).collect::<Vec<_>>(),
    });
    std::fs::write(folder.path().join("cards.json"), machine.to_string()).expect("cards");
    (folder, library)
}

/// Measures everything that needs a machine.
pub async fn measure(report: &mut Report) {
    let mut world = World::start().await;
    let address = images::busybox(&world.engine);
    let image = world.admin.create_image("busybox", address).await;
    // Two cores, so that the limit of the instance is not what is measured.
    let spec = world.admin.create_spec("bench", &json!({ "cpu_cores": 2 })).await;
    create(report, &world, address, &image, &spec).await;
    let (instance, container) = world.running("programs", &image, &spec).await;
    let ours = Admin::of(world.cluster.data_dir());
    let direct = Direct::to(&world.engine);
    keystrokes(report, (&world.admin, &instance), (&direct, &container)).await;
    commands(report, (&ours, &instance), (&direct, &container)).await;
    bulk(report, (&ours, &instance), (&direct, &container)).await;
    let small = world.admin.create_spec("idle", &json!({ "cpu_cores": 0.05 })).await;
    // The programs ran on every core of a small machine, and the idle ones need some of them.
    world.admin.delete(&format!("/instances/{instance}")).await;
    world.admin.wait_gone(&instance).await;
    for number in 0..CONTAINERS {
        world.running(&format!("idle-{number}"), &image, &small).await;
    }
    agent(report, &mut world).await;
}

async fn create(report: &mut Report, world: &World, address: &str, image: &str, spec: &str) {
    let direct = Direct::to(&world.engine);
    let (mut ours, mut client, mut api) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        let name = format!("pair-{pair}");
        let own = create_one(world, &name, image, spec).await;
        let began = Instant::now();
        let by_client = world.engine.docker(&["run", "-d", address]);
        let with_client = began.elapsed();
        let began = Instant::now();
        let by_api = direct.run(address).await;
        let with_api = began.elapsed();
        world.engine.docker(&["rm", "-f", "-v", &by_client, &by_api]);
        // The first of each reads files that the others find in memory.
        if pair > 0 {
            ours.push(own);
            client.push(with_client);
            api.push(with_api);
        }
    }
    let (ours, client, api) = (Times::new(ours), Times::new(client), Times::new(api));
    let added = ours.median_ms() - client.median_ms();
    report.add(&Line {
        what: "create to running, through API, loop and agent",
        ours: format!("{:.0} ms, median of {PAIRS} pairs", ours.median_ms()),
        peer: format!(
            "docker run -d {:.0} ms; the engine's API without the client {:.0} ms",
            client.median_ms(),
            api.median_ms()
        ),
        ratio: format!("{added:+.0} ms, {:.2} times", ours.median_ms() / client.median_ms()),
        bar: "+ <= 150 ms beside docker run",
        met: added <= 150.0,
        ..Line::default()
    });
}

/// Creates an instance, returns how long it took to run, and removes it.
async fn create_one(world: &World, name: &str, image: &str, spec: &str) -> Duration {
    let headers = format!("authorization: Bearer {}\r\n", world.admin.token().expect("a token"));
    let mut wire = Wire::tcp(world.cluster.http()).await.expect("the controller listens");
    let body = json!({ "name": name, "image_id": image, "spec_id": spec }).to_string();
    let wanted = request(Method::POST.as_str(), "/api/v1/instances", &headers, &body);
    let deadline = Deadline::after(PATIENCE);
    let began = Instant::now();
    let answer = wire.call(&wanted).await.expect("an answer");
    let made: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let id = made["id"].as_str().unwrap_or_else(|| panic!("{made}"));
    let look = request("GET", &format!("/api/v1/instances/{id}"), &headers, "");
    loop {
        let answer = wire.call(&look).await.expect("an answer");
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains("\"phase\":\"running\"") {
            break;
        }
        deadline.check(&format!("it does not run: {text}"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let time = began.elapsed();
    world.admin.delete(&format!("/instances/{id}")).await;
    world.admin.wait_gone(id).await;
    time
}

/// Types a byte again and again and waits for its echo, ours and the peer's in turn.
async fn keystrokes(report: &mut Report, ours: (&Client, &str), direct: (&Direct, &str)) {
    let mut own = Terminal::open(ours.0, ours.1).await;
    own.write(b"exec cat\n").await;
    own.drain().await;
    let mut peer = direct.0.exec(direct.1, &["cat"], true).await;
    let (mut own_times, mut peer_times) = (Vec::new(), Vec::new());
    for key in 0..KEYS {
        let began = Instant::now();
        own.write(b"x").await;
        own.read().await;
        let with_own = began.elapsed();
        let began = Instant::now();
        peer.write(b"x").await;
        peer.read().await;
        if key >= KEYS / 10 {
            own_times.push(with_own);
            peer_times.push(began.elapsed());
        }
    }
    let (own, peer) = (Times::new(own_times), Times::new(peer_times));
    let added = own.median_ms() - peer.median_ms();
    report.add(&Line {
        what: "keystroke and its echo, through WebSocket, controller and agent",
        ours: format!(
            "p50 {:.3} ms, p99 {:.3} ms of {}",
            own.median_ms(),
            ms(own.at(99)),
            own.count()
        ),
        peer: format!(
            "direct Docker exec p50 {:.3} ms, p99 {:.3} ms",
            peer.median_ms(),
            ms(peer.at(99))
        ),
        ratio: format!("{added:+.3} ms, {:.2} times", own.median_ms() / peer.median_ms()),
        bar: "added p50 <= 0.5 ms",
        met: added <= 0.5,
        ..Line::default()
    });
}

/// Starts a program and waits for its first output, ours and the peer's in turn.
async fn commands(report: &mut Report, ours: (&Admin, &str), direct: (&Direct, &str)) {
    let argv = ["echo", "started"];
    let (mut own_times, mut peer_times) = (Vec::new(), Vec::new());
    for _ in 0..COMMANDS {
        let began = Instant::now();
        let mut own = ours.0.exec(ours.1, &argv, false).await;
        own.read().await;
        own_times.push(began.elapsed());
        while own.read().await > 0 {}
        let began = Instant::now();
        let mut peer = direct.0.exec(direct.1, &argv, false).await;
        peer.read().await;
        peer_times.push(began.elapsed());
        while peer.read().await > 0 {}
    }
    let (own, peer) = (Times::new(own_times), Times::new(peer_times));
    let ratio = own.median_ms() / peer.median_ms();
    report.add(&Line {
        what: "start of a command in an instance, to its first output",
        ours: format!("{:.1} ms, median of {}", own.median_ms(), own.count()),
        peer: format!("Docker exec by the engine's API {:.1} ms", peer.median_ms()),
        ratio: format!("{ratio:.2}"),
        bar: "<= 0.2 times",
        met: ratio <= 0.2,
        ..Line::default()
    });
}

/// Reads much output of a program, ours and the peer's in turn.
async fn bulk(report: &mut Report, ours: (&Admin, &str), direct: (&Direct, &str)) {
    let bytes = usize::try_from(BULK_MIB).unwrap() << 20;
    let size = bytes.to_string();
    let argv = ["head", "-c", size.as_str(), "/dev/zero"];
    let (mut own_times, mut peer_times) = (Vec::new(), Vec::new());
    for _ in 0..BULK_ROUNDS {
        let (mut own, mut came) = (ours.0.exec(ours.1, &argv, false).await, 0);
        let began = Instant::now();
        while came < bytes {
            came += some(own.read().await);
        }
        own_times.push(began.elapsed());
        let (mut peer, mut came) = (direct.0.exec(direct.1, &argv, false).await, 0);
        let began = Instant::now();
        while came < bytes {
            came += some(peer.read().await);
        }
        peer_times.push(began.elapsed());
    }
    let rate = |times: Vec<Duration>| count(bytes) / 1e6 / Times::new(times).at(50).as_secs_f64();
    let (own, peer) = (rate(own_times), rate(peer_times));
    report.add(&Line {
        what: "bulk out of an instance, 256 MiB",
        ours: format!("{own:.0} MB/s, median of {BULK_ROUNDS}"),
        peer: format!("Docker exec by the engine's API {peer:.0} MB/s"),
        ratio: format!("{:.2}", own / peer),
        bar: ">= 1.5 times",
        met: own >= 1.5 * peer,
        ..Line::default()
    });
}

fn some(came: usize) -> usize {
    assert!(came > 0, "the program ended before all its output came");
    came
}

/// Watches the agent while nothing happens but its samples.
async fn agent(report: &mut Report, world: &mut World) {
    let running = world.admin.get("/instances?phase=running").await;
    assert_eq!(running["total"], CONTAINERS, "{running}");
    let node = world.admin.get(&format!("/nodes/{}", world.agent.node_id())).await;
    let models = node["gpus"].as_array().into_iter().flatten();
    let cards: u64 = models.filter_map(|model| model["count"].as_u64()).sum();
    let (cpu, rss) = watch(world.agent.process().pid(), WATCH).await;
    report.add(&Line {
        what: "agent: 8 cards, 20 containers, a sample every 5 s",
        ours: format!(
            "{rss:.1} MB, {cpu:.2} % of a core over {} s ({cards} cards seen)",
            WATCH.as_secs()
        ),
        peer: "dcgm-exporter about 480 MB (published)".to_owned(),
        ratio: format!("{:.3} of the memory", rss / 480.0),
        bar: "<= 25 MB, <= 1 % of a core",
        met: rss <= 25.0 && cpu <= 1.0,
        ..Line::default()
    });
}
