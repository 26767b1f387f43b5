//! Placements written to SQLite by the controller's own loop, with agents that only say yes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tianqi_common::clock::SystemClock;
use tianqi_common::id::NodeId;
use tianqi_common::wire::desired::NodeDesired;
use tianqi_common::wire::stream::Pull;
use tianqi_controller::app;
use tianqi_controller::config::Config;
use tianqi_controller::core::db::Db;
use tianqi_controller::features::Ctx;
use tianqi_controller::link::{LinkError, WorkStream};
use tianqi_controller::reconcile::{Agents, Reconciler};
use tianqi_tests::cluster::Cluster;
use tianqi_tests::deadline::Deadline;
use tokio_util::sync::CancellationToken;

use crate::report::{Line, Report};
use crate::rows;

const ROUNDS: usize = 3;
const INSTANCES: u32 = 5_000;
const NODES: u32 = 500;
const BAR: f64 = 1_500.0;

/// Agents of every node, which take what they are told.
#[derive(Clone, Copy, Debug)]
struct Willing;

impl Agents for Willing {
    fn is_connected(&self, _: NodeId) -> bool {
        true
    }

    fn publish(&self, _: NodeId, _: NodeDesired) -> bool {
        true
    }

    async fn pull(&self, node: NodeId, _: Pull) -> Result<WorkStream, LinkError> {
        Err(LinkError::NotConnected(node))
    }
}

/// Measures it.
pub async fn measure(report: &mut Report) {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(round().await);
    }
    rates.sort_by(f64::total_cmp);
    let rate = rates[rates.len() / 2];
    report.add(&Line {
        what: "placements written to SQLite by the loop, 5 000 waiting, 500 nodes x 8 cards",
        ours: format!(
            "{rate:.0}/s, median of {ROUNDS} rounds ({:.0} to {:.0}); reading the fleet included",
            rates[0],
            rates[rates.len() - 1]
        ),
        peer: "Kueue 43/s (published)".to_owned(),
        ratio: format!("{:.0}", rate / 43.0),
        bar: ">= 1500/s",
        met: rate >= BAR,
        ..Line::default()
    });
}

async fn round() -> f64 {
    let mut cluster = Cluster::start();
    make_template(&cluster).await;
    cluster.controller().stop();
    let ctx = context(cluster.data_dir()).await;
    let mut db = rows::open(&cluster.data_dir()).await;
    rows::nodes(&mut db, NODES).await;
    rows::instances(&mut db, INSTANCES, &[]).await;

    let cancel = CancellationToken::new();
    let (reconciler, _wake) = Reconciler::new(&ctx, Willing);
    let began = Instant::now();
    let running = tokio::spawn(reconciler.run(cancel.clone()));
    let deadline = Deadline::after(Duration::from_secs(60));
    let waiting = "select count(*) from instances where phase = 'pending'";
    while ctx.db.number(waiting, Vec::new()).await.expect("a count") > 0 {
        deadline.check("instances still wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let time = began.elapsed();

    cancel.cancel();
    running.await.expect("the loop ends");
    let granted = ctx.db.number("select count(*) from gpu_grants", Vec::new()).await;
    assert_eq!(granted.expect("a count"), i64::from(INSTANCES), "each has its slice");
    ctx.db.close().await;
    f64::from(INSTANCES) / time.as_secs_f64()
}

/// Leaves one waiting instance of a slice in the database.
async fn make_template(cluster: &Cluster) {
    let admin = cluster.admin().await;
    let image = admin.create_image("placed", "127.0.0.1:1/none:1").await;
    let slice = json!({
        "gpu_count": 1, "slicing": true, "gpu_memory_mib": 4_096, "gpu_core_percent": 10,
    });
    let spec = admin.create_spec("slice", &slice).await;
    admin.create_instance("placed", &image, &spec).await;
}

/// Opens what a controller left, without serving: a controller in this process is started for its
/// context and ended, and the database is opened again.
pub async fn context(data_dir: PathBuf) -> Ctx {
    let mut config = Config { data_dir, ..Config::default() };
    config.http.listen = "127.0.0.1:0".parse().expect("an address");
    config.agents.listen = "127.0.0.1:0".parse().expect("an address");
    config.jumpbox.enabled = false;
    let url = format!("sqlite:{}", config.data_dir.join("tianqi.db").display());
    let connections = config.database.max_connections;
    let running = app::start(config, SystemClock::shared()).await.expect("a controller");
    let ctx = running.ctx.clone();
    running.stop().await;
    Ctx { db: Db::open(&url, connections).await.expect("the database opens"), ..ctx }
}
