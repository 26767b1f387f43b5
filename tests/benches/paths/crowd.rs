//! A thousand agents: the agent's own link in this process, with nodes that are imagined.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use sqlx::{Row, SqliteConnection};
use tianqi_agent::enroll::{Identity, IdentityStore};
use tianqi_agent::link::{LinkParts, SAMPLE_QUEUE, StreamService};
use tianqi_common::clock::SystemClock;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::unit::{GpuMemoryMib, MemoryMib};
use tianqi_common::wire::VERSION;
use tianqi_common::wire::desired::{GpuUuid, NodeDesired};
use tianqi_common::wire::inventory::{GpuCard, NodeInventory};
use tianqi_common::wire::observed::{DockerState, DockerStatus, NodeObserved};
use tianqi_common::wire::stream::StreamOpen;
use tianqi_common::wire::telemetry::{GpuSample, InstanceSample, NodeSample, Sample, SampleBatch};
use tianqi_controller::core::ca::AgentRequest;
use tianqi_controller::features::Ctx;
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::durable::context;
use crate::proc::watch as watch_process;
use crate::report::{Line, Report};
use crate::rows;

const AGENTS: u32 = 1_000;
const CARDS: u32 = 8;
/// Instances that each agent has samples of.
const INSTANCES: usize = 5;
const INTERVAL: Duration = Duration::from_secs(5);
/// Between the last agent's coming and the first reading.
const REST: Duration = Duration::from_secs(15);
const WATCH: Duration = Duration::from_secs(30);

/// Takes no streams.
#[derive(Clone, Copy, Debug)]
struct NoStreams;

impl StreamService for NoStreams {
    async fn serve<R, W>(&self, _: StreamOpen, _: R, _: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
    }
}

/// Measures it.
pub async fn measure(report: &mut Report) {
    let mut cluster = Cluster::start();
    cluster.controller().stop();
    let folder = tempfile::Builder::new().prefix("tianqi-crowd-").tempdir().expect("folder");
    let mut db = rows::open(&cluster.data_dir()).await;
    enrol(&mut db, &cluster, folder.path()).await;
    cluster.start_controller();

    let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
    let began = std::time::Instant::now();
    for number in 0..AGENTS {
        let identity = IdentityStore::open(&folder.path().join(number.to_string()));
        tasks.spawn(agent(identity.expect("an identity"), number, stopping.clone()));
    }
    let deadline = Deadline::after(Duration::from_secs(90));
    while online(&mut db).await < i64::from(AGENTS) {
        deadline.check("not every agent is connected");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let came = began.elapsed();
    tokio::time::sleep(REST).await;
    let (cpu, rss) = watch_process(cluster.controller().pid(), WATCH).await;
    let still = online(&mut db).await;
    report.add(&Line {
        what: "controller: 1 000 connected agents with 8 cards and 5 instances each",
        ours: format!(
            "{rss:.1} MB, {cpu:.1} % of a core over {} s; all came within {:.1} s, {still} online at the end",
            WATCH.as_secs(),
            came.as_secs_f64()
        ),
        peer: "Portainer Edge 15 000 agents on 4 CPUs (published); dstack server 257 MB empty".to_owned(),
        ratio: format!("{:.2} of the memory of dstack's empty server", rss / 257.0),
        bar: "<= 150 MB, <= 50 % of a core, all online",
        met: rss <= 150.0 && cpu <= 50.0 && still == i64::from(AGENTS),
        ..Line::default()
    });
    stopping.cancel();
    tasks.close();
    tasks.wait().await;
}

async fn online(db: &mut SqliteConnection) -> i64 {
    let row =
        sqlx::query("select count(*) as n from nodes where online = 1 and inventory is not null");
    row.fetch_one(db).await.expect("a count").get("n")
}

/// Makes nodes, and an identity for each, signed by the controller's own authority: a thousand
/// joins from one address are more than a controller takes in a minute.
async fn enrol(db: &mut SqliteConnection, cluster: &Cluster, folder: &Path) {
    let ctx = context(cluster.data_dir()).await;
    rows::nodes(db, AGENTS).await;
    rows::run(db, "delete from node_gpus").await;
    rows::run(db, "update nodes set online = 0, docker_status = 'unknown'").await;
    let ids = sqlx::query("select id from nodes").fetch_all(&mut *db).await.expect("nodes");
    rows::run(db, "begin").await;
    for (number, row) in ids.iter().enumerate() {
        let node = NodeId(row.get("id"));
        let identity = sign(&ctx, db, node, cluster.agents()).await;
        let folder = folder.join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let text = serde_json::to_vec(&identity).expect("JSON");
        std::fs::write(folder.join("identity.json"), text).expect("an identity");
    }
    rows::run(db, "commit").await;
    ctx.db.close().await;
}

async fn sign(ctx: &Ctx, db: &mut SqliteConnection, node: NodeId, controller: &str) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("a request");
    let csr = AgentRequest::parse(&csr.pem().expect("PEM")).expect("a request");
    let certificate = ctx.ca.sign_agent(csr, node, ctx.clock.now()).expect("a certificate");
    let sql = "insert into agent_certificates (serial, node_id, not_before, not_after, created_at) \
         values (?, ?, ?, ?, 0)";
    sqlx::query(sql)
        .bind(&certificate.serial)
        .bind(node.0)
        .bind(certificate.not_before.0)
        .bind(certificate.not_after.0)
        .execute(db)
        .await
        .expect("a row");
    Identity {
        controller: controller.to_owned(),
        node,
        key_pem: key.serialize_pem(),
        certificate_pem: certificate.pem,
        ca_pem: ctx.ca.trusted_pem(),
    }
}

/// Stays connected, reports what it is told as done, and sends samples.
async fn agent(identity: IdentityStore, number: u32, stopping: CancellationToken) {
    let (desired, told) = watch::channel(None);
    let (settings, _settings) = watch::channel(None);
    let (reports, observed) = watch::channel(None);
    let (_inventory, inventory) = watch::channel(Some(machine(number)));
    let (batches, samples) = mpsc::channel(SAMPLE_QUEUE);
    let parts = LinkParts {
        identity,
        clock: SystemClock::shared(),
        desired,
        settings,
        observed,
        inventory,
        samples,
        streams: NoStreams,
        version: VERSION,
    };
    tokio::select! {
        () = tianqi_agent::link::run(parts, stopping) => {}
        () = obey(told, reports) => {}
        () = sample(number, batches) => {}
    }
}

async fn obey(
    mut told: watch::Receiver<Option<NodeDesired>>,
    reports: watch::Sender<Option<NodeObserved>>,
) {
    loop {
        let revision = told.borrow_and_update().as_ref().map(|desired| desired.revision);
        let docker = DockerState { status: DockerStatus::Connected, reason: String::new() };
        let revision = revision.unwrap_or_default();
        reports.send_replace(Some(NodeObserved { revision, docker, ..NodeObserved::default() }));
        if told.changed().await.is_err() {
            return;
        }
    }
}

fn uuid(number: u32, card: u32) -> GpuUuid {
    GpuUuid(format!("GPU-{number:08x}-0000-0000-0000-{card:012}"))
}

fn machine(number: u32) -> NodeInventory {
    let mut machine = NodeInventory {
        hostname: format!("bench-{number}"),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        cpu_cores: 128,
        memory: MemoryMib(1_048_576),
        ..NodeInventory::default()
    };
    machine.gpus.cards = (0..CARDS)
        .map(|card| GpuCard {
            uuid: uuid(number, card),
            index: card,
            model: "NVIDIA L40".to_owned(),
            memory_total: GpuMemoryMib(46_068),
            memory_reserved: GpuMemoryMib(600),
            pci_bus_id: format!("00000000:0{card}:00.0"),
            numa_node: Some(card / 4),
            minor: Some(card),
            sick: String::new(),
            mig_enabled: false,
        })
        .collect();
    machine
}

/// Sends a sample every five seconds; agents do not begin at the same moment.
async fn sample(number: u32, batches: mpsc::Sender<SampleBatch>) {
    let clock = SystemClock::shared();
    let instances: Vec<InstanceId> = (0..INSTANCES).map(|_| InstanceId::new()).collect();
    tokio::time::sleep(INTERVAL * number / AGENTS).await;
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let sample = Sample {
            at: clock.now(),
            node: NodeSample::default(),
            gpus: (0..CARDS).map(|card| card_sample(number, card)).collect(),
            instances: instances.iter().map(|&id| instance_sample(id)).collect(),
        };
        if batches.send(SampleBatch { dropped: 0, samples: vec![sample] }).await.is_err() {
            return;
        }
    }
}

fn card_sample(number: u32, card: u32) -> GpuSample {
    GpuSample {
        uuid: uuid(number, card),
        utilisation_percent: Some(50),
        memory_used_bytes: Some(1 << 30),
        temperature_c: Some(60),
        power_mw: Some(200_000),
    }
}

fn instance_sample(id: InstanceId) -> InstanceSample {
    InstanceSample {
        id,
        cpu_millicores: 500,
        memory_used_bytes: 1 << 30,
        memory_limit_bytes: 1 << 32,
        network_rx_bytes: 1 << 20,
        network_tx_bytes: 1 << 20,
        block_read_bytes: 1 << 20,
        block_write_bytes: 1 << 20,
        pids: 20,
        gpu_memory_used_bytes: Some(1 << 30),
    }
}
