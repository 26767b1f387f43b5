//! Agents that live in memory and do what they are told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::desired::{NodeDesired, Run};
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::observed::{
    ContainerState, DockerState, DockerStatus, InstanceObserved, NodeObserved, Removed,
};
use tianqi_common::wire::stream::{Pull, PullFrame};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::core::db::{Db, args, row};
use crate::features::instances::testing::World;
use crate::link::{AgentEvent, LinkError, WorkStream};
use crate::reconcile::{Agents, Input, Reconciler, Wake};

/// How long a test waits for the loop.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the imaginary nodes hold, shared by every loop of a test.
#[derive(Clone, Default)]
pub(super) struct Nodes(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    desired: BTreeMap<NodeId, NodeDesired>,
    made: BTreeSet<InstanceId>,
    silent: BTreeSet<NodeId>,
    lacking: BTreeSet<String>,
    pull_script: Vec<PullFrame>,
    pulled: Vec<Pull>,
    exits: BTreeMap<InstanceId, i64>,
    published: usize,
    dirty: BTreeSet<NodeId>,
}

impl Nodes {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// Cuts a node off, or lets it speak again.
    pub(super) fn silence(&self, node: NodeId, is_silent: bool) {
        self.with(|it| {
            if is_silent {
                it.silent.insert(node);
            } else {
                it.silent.remove(&node);
                it.dirty.insert(node);
            }
        });
    }

    /// Lets an image be missing, and says how fetching it goes.
    pub(super) fn lack(&self, image: &str, script: Vec<PullFrame>) {
        self.with(|it| {
            it.lacking.insert(image.to_owned());
            it.pull_script = script;
        });
    }

    /// Lets an instance's process end by itself.
    pub(super) fn exit(&self, instance: InstanceId, code: i64) {
        self.with(|it| {
            it.exits.insert(instance, code);
            it.dirty.extend(it.desired.keys().copied().collect::<Vec<_>>());
        });
    }

    /// Returns what a node was told last.
    pub(super) fn told(&self, node: NodeId) -> NodeDesired {
        self.with(|it| it.desired.get(&node).cloned().unwrap_or_default())
    }

    /// Returns how often any node was told anything.
    pub(super) fn published(&self) -> usize {
        self.with(|it| it.published)
    }

    /// Returns the pulls that were asked for.
    pub(super) fn pulled(&self) -> Vec<Pull> {
        self.with(|it| it.pulled.clone())
    }

    /// Returns the instances that have a container.
    pub(super) fn made(&self) -> BTreeSet<InstanceId> {
        self.with(|it| it.made.clone())
    }

    fn take_dirty(&self) -> Vec<(NodeId, NodeObserved)> {
        self.with(|it| {
            let speaking: Vec<NodeId> =
                it.dirty.iter().copied().filter(|node| !it.silent.contains(node)).collect();
            for node in &speaking {
                it.dirty.remove(node);
            }
            speaking.into_iter().map(|node| (node, it.act(node))).collect()
        })
    }
}

impl Inner {
    /// Carries out what a node was told, and reports.
    fn act(&mut self, node: NodeId) -> NodeObserved {
        let desired = self.desired.get(&node).cloned().unwrap_or_default();
        let mut report = NodeObserved {
            revision: desired.revision,
            docker: DockerState { status: DockerStatus::Connected, reason: String::new() },
            ..NodeObserved::default()
        };
        for instance in &desired.instances {
            let (has_container, exit) =
                (self.made.contains(&instance.id), self.exits.get(&instance.id));
            let state = match (instance.run, exit) {
                (Run::Running, _) if self.lacking.contains(&instance.spec.image) => {
                    ContainerState::ImageMissing
                }
                (Run::Running, Some(code)) => exited(*code, ""),
                (Run::Running, None) => ContainerState::Running,
                (Run::Stopped, code) if has_container => {
                    exited(code.copied().unwrap_or(0), "stopped")
                }
                (Run::Stopped, _) => ContainerState::Absent,
            };
            if state == ContainerState::Running {
                self.made.insert(instance.id);
            }
            let has_container = self.made.contains(&instance.id);
            report.instances.push(InstanceObserved {
                id: instance.id,
                generation: instance.generation,
                state,
                container_id: has_container.then(|| format!("c{}", instance.id)),
                started_at: None,
                restarts: 0,
                limits: Vec::new(),
                gpus: if has_container { instance.spec.gpus.clone() } else { Vec::new() },
            });
        }
        for id in &desired.tombstones {
            self.made.remove(id);
            report.removed.push(Removed { id: *id, leftovers: Vec::new() });
        }
        report
    }
}

fn exited(code: i64, message: &str) -> ContainerState {
    ContainerState::Exited { code, out_of_memory: false, message: message.to_owned() }
}

impl Agents for Nodes {
    fn is_connected(&self, node: NodeId) -> bool {
        self.with(|it| !it.silent.contains(&node))
    }

    fn publish(&self, node: NodeId, desired: NodeDesired) -> bool {
        self.with(|it| {
            if it.silent.contains(&node) {
                return false;
            }
            it.published += 1;
            // An older state that arrives late is not taken in.
            if it.desired.get(&node).is_none_or(|known| known.revision <= desired.revision) {
                it.desired.insert(node, desired);
            }
            it.dirty.insert(node);
            true
        })
    }

    async fn pull(&self, node: NodeId, pull: Pull) -> Result<WorkStream, LinkError> {
        let script = self.with(|it| {
            it.pulled.push(pull.clone());
            if it.pull_script.last() == Some(&PullFrame::Done) {
                it.lacking.remove(&pull.image);
            }
            it.dirty.insert(node);
            it.pull_script.clone()
        });
        let mut bytes = Vec::new();
        for frame in script {
            bytes.extend(frame::encode(&frame, Limit::STREAM).unwrap());
        }
        Ok(WorkStream::from_halves(std::io::Cursor::new(bytes), tokio::io::sink()))
    }
}

/// A loop that runs, with the agents' side of it.
pub(super) struct Loop {
    pub(super) wake: Wake,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Loop {
    /// Starts a loop on `world` with `nodes`.
    pub(super) fn start(world: &World, nodes: &Nodes) -> Self {
        let (reconciler, wake) = Reconciler::new(&world.ctx, nodes.clone());
        let cancel = CancellationToken::new();
        let running = tokio::spawn(reconciler.run(cancel.clone()));
        let (nodes, reports) = (nodes.clone(), wake.clone());
        let reporting = tokio::spawn(async move {
            loop {
                for (node, report) in nodes.take_dirty() {
                    let event = AgentEvent::Observed(node, Box::new(report));
                    reports.send(Input::Agent(event)).await;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { wake, cancel, tasks: vec![running, reporting] }
    }

    /// Ends the loop wherever it is, as a kill would.
    pub(super) async fn kill(self) {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            let _ = task.await;
        }
    }

    /// Ends the loop between two passes.
    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        let running = self.tasks.remove(0);
        running.await.unwrap();
        self.kill().await;
    }
}

row! {
    struct PhaseRow { phase: String, n: i64 }
}

/// Returns how many live instances are in each phase.
pub(super) async fn phases(db: &Db) -> BTreeMap<String, i64> {
    let sql = "select phase, count(*) as n from instances where deleted_at is null group by phase";
    let rows: Vec<PhaseRow> = db.all(sql, args![]).await.unwrap();
    rows.into_iter().map(|row| (row.phase, row.n)).collect()
}

/// Waits until the phases are as expected.
pub(super) async fn wait_for_phases(db: &Db, expected: &[(&str, i64)]) {
    let expected: BTreeMap<String, i64> =
        expected.iter().map(|(phase, n)| ((*phase).to_owned(), *n)).collect();
    let reached = async {
        while phases(db).await != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, reached).await.is_err() {
        panic!("{:?} instead of {expected:?} on {:?}", phases(db).await, db.engine());
    }
}

/// Checks what must hold at every moment: no card over what it has, an exclusive card alone, no
/// node over what it has, and grants only of live instances.
pub(super) async fn check_invariants(db: &Db) {
    let broken = [
        "select count(*) from (select g.gpu_uuid from gpu_grants g join node_gpus c \
         on c.uuid = g.gpu_uuid group by g.gpu_uuid, c.memory_total_mib, c.max_shares \
         having sum(g.memory_mib) > c.memory_total_mib or count(*) > c.max_shares \
         or sum(g.cores) > 100) broken",
        "select count(*) from gpu_grants a join gpu_grants b on a.gpu_uuid = b.gpu_uuid \
         and a.instance_id <> b.instance_id where a.exclusive",
        "select count(*) from (select n.id from node_grants g join nodes n on n.id = g.node_id \
         group by n.id, n.cpu_millicores, n.memory_mib, n.disk_gib \
         having sum(g.cpu_millicores) > n.cpu_millicores or sum(g.memory_mib) > n.memory_mib \
         or sum(g.disk_gib) > n.disk_gib) broken",
        "select count(*) from gpu_grants g join instances i on i.id = g.instance_id \
         where i.deleted_at is not null",
        "select count(*) from node_grants g join instances i on i.id = g.instance_id \
         where i.deleted_at is not null",
    ];
    for sql in broken {
        assert_eq!(db.number(sql, args![]).await.unwrap(), 0, "{sql}");
    }
}
