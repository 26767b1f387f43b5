//! THE desired/observed loop of the controller.
//!
//! One task. It is woken by events of the rooms, by what agents report, and by a timer, and each
//! time does the same: takes in reports, settles what fell silent, drains the queue, and tells the
//! agents whose node changed. It keeps nothing that the database does not know but a picture of the
//! fleet, and it may be ended at any point: the next one begins with everything.
//!
//! A pass that finds nothing to do writes nothing and logs nothing above debug.

mod act;
mod observe;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::desired::NodeDesired;
use tianqi_common::wire::observed::NodeObserved;
use tianqi_common::wire::stream::{Pull, StreamOpen};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::db::{Db, DbError};
use crate::core::error::Chain;
use crate::core::event::{Event, Events};
use crate::core::job::{JobError, Jobs};
use crate::core::seal::Seal;
use crate::features::{Clock, Ctx};
use crate::link::{AgentEvent, Link, LinkError, WorkStream};

use act::agent::Publisher;
pub use act::pull::PullNews;
use act::pull::Pulls;
use snapshot::Fleet;

/// Inputs that wait while the loop works; more make their senders wait.
const QUEUE: usize = 1_024;
/// Passes in a row when a place was lost to a race.
const RACES: u32 = 3;
/// How soon the loop looks again at ends that are not settled yet.
const SETTLING: Duration = Duration::from_secs(3);
/// How long the loop rests after the database failed.
const REST: Duration = Duration::from_secs(1);

/// Agent events that wait to be handed to the loop; more make the room of nodes wait.
const AGENT_EVENTS: usize = 256;
/// When the loop looks at everything: every 30 s.
const HEALTH_CHECK: &str = "*/30 * * * * *";

/// Starts the loop and its timer. Returns where the events of agents go, once the rows of their
/// nodes are written; when the loop is far behind, their sender waits.
///
/// # Errors
///
/// [`JobError`] when the timer cannot be set up.
pub async fn start(
    ctx: &Ctx,
    jobs: &Jobs,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<mpsc::Sender<AgentEvent>, JobError> {
    let (reconciler, wake) = Reconciler::new(ctx, ctx.link.clone());
    let ticks = wake.clone();
    let tick = move || {
        let ticks = ticks.clone();
        async move { ticks.send(Input::Tick).await }
    };
    jobs.add("system-health-check", HEALTH_CHECK, tick).await?;
    let (events, mut heard) = mpsc::channel(AGENT_EVENTS);
    tasks.spawn(reconciler.run(cancel.clone()));
    tasks.spawn(async move {
        while let Some(event) = heard.recv().await {
            wake.send(Input::Agent(event)).await;
        }
    });
    Ok(events)
}

/// What the loop needs of agents. [`Link`] is the real one.
pub trait Agents: Clone + Send + Sync + 'static {
    /// Whether a node's agent is connected.
    fn is_connected(&self, node: NodeId) -> bool;

    /// Says what should be on a node. Returns whether its agent is connected.
    fn publish(&self, node: NodeId, desired: NodeDesired) -> bool;

    /// Opens a pull on a node.
    fn pull(
        &self,
        node: NodeId,
        pull: Pull,
    ) -> impl Future<Output = Result<WorkStream, LinkError>> + Send;
}

impl Agents for Link {
    fn is_connected(&self, node: NodeId) -> bool {
        Link::is_connected(self, node)
    }

    fn publish(&self, node: NodeId, desired: NodeDesired) -> bool {
        Link::publish(self, node, desired)
    }

    async fn pull(&self, node: NodeId, pull: Pull) -> Result<WorkStream, LinkError> {
        self.open_on_node(node, StreamOpen::Pull(pull)).await
    }
}

/// What wakes the loop, besides the events of the rooms.
#[derive(Debug)]
pub enum Input {
    /// Something happened between the controller and an agent; its node's row is written already.
    Agent(AgentEvent),
    /// News of a pull.
    Pull {
        /// Where.
        node: NodeId,
        /// Of which image.
        image: String,
        /// How it goes.
        news: PullNews,
    },
    /// The timer: look at everything again.
    Tick,
}

/// Where the loop is woken. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Wake {
    inputs: mpsc::Sender<Input>,
}

impl Wake {
    /// Hands the loop an input; waits while it is far behind.
    pub async fn send(&self, input: Input) {
        // The loop has ended when nobody takes it; what it missed the next one reads from rows.
        let _ = self.inputs.send(input).await;
    }
}

/// The loop, ready to run.
#[derive(Debug)]
pub struct Reconciler<A> {
    db: Db,
    clock: Clock,
    events: Events,
    seal: Arc<Seal>,
    agents: A,
    heard: broadcast::Receiver<Event>,
    inputs: mpsc::Receiver<Input>,
    wake: Wake,
    fleet: Fleet,
    publisher: Publisher,
    pulls: Pulls,
    todo: Todo,
}

/// What the next pass must look at.
#[derive(Debug, Default)]
struct Todo {
    is_thorough: bool,
    has_node_news: bool,
    reports: BTreeMap<NodeId, Box<NodeObserved>>,
    drains: BTreeSet<NodeId>,
    has_ends: bool,
    pulls: Vec<(NodeId, String, PullNews)>,
}

impl<A: Agents> Reconciler<A> {
    /// Makes the loop. It hears events from this moment on.
    #[must_use]
    pub fn new(ctx: &Ctx, agents: A) -> (Self, Wake) {
        let (sender, inputs) = mpsc::channel(QUEUE);
        let wake = Wake { inputs: sender };
        let this = Self {
            db: ctx.db.clone(),
            clock: ctx.clock.clone(),
            events: ctx.events.clone(),
            seal: ctx.seal.clone(),
            agents,
            heard: ctx.events.listen(),
            inputs,
            wake: wake.clone(),
            fleet: Fleet::new(),
            publisher: Publisher::default(),
            pulls: Pulls::default(),
            todo: Todo {
                is_thorough: true,
                has_node_news: true,
                has_ends: true,
                ..Todo::default()
            },
        };
        (this, wake)
    }

    /// Runs until `cancel`. The first pass looks at everything.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            if let Err(error) = self.pass().await {
                tracing::error!(error = %Chain(&error), "the loop could not read or write; it goes on");
                self.look_at_everything();
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(REST) => continue,
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.wait() => {}
            }
        }
    }

    fn look_at_everything(&mut self) {
        self.fleet.forget_all();
        self.todo.is_thorough = true;
        self.todo.has_node_news = true;
        self.todo.has_ends = true;
    }

    /// Waits for something to happen and takes in everything that happened by then.
    async fn wait(&mut self) {
        let has_ends = self.todo.has_ends;
        tokio::select! {
            () = tokio::time::sleep(SETTLING), if has_ends => {}
            event = self.heard.recv() => match event {
                Ok(event) => self.hear(event),
                Err(RecvError::Lagged(_)) => self.look_at_everything(),
                // The loop holds a sender itself, so this cannot happen while it runs.
                Err(RecvError::Closed) => {}
            },
            input = self.inputs.recv() => {
                if let Some(input) = input {
                    self.take(input);
                }
            }
        }
        loop {
            match self.heard.try_recv() {
                Ok(event) => self.hear(event),
                Err(TryRecvError::Lagged(_)) => self.look_at_everything(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        while let Ok(input) = self.inputs.try_recv() {
            self.take(input);
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Node(node) => {
                self.fleet.forget(node);
                self.todo.has_node_news = true;
            }
            Event::Drain(node) => {
                self.todo.drains.insert(node);
            }
            // Rows of instances are read at every pass.
            Event::Instance(_)
            | Event::Catalogue
            | Event::Revoked(_)
            | Event::Roles
            | Event::Forward(_) => {}
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Agent(AgentEvent::Connected { node, .. }) => {
                self.publisher.forget(node);
                self.fleet.forget(node);
            }
            Input::Agent(AgentEvent::Observed(node, report)) => {
                self.todo.reports.insert(node, report);
            }
            // Rows tell of these, and the room of nodes says when they change.
            Input::Agent(AgentEvent::Disconnected { .. } | AgentEvent::Inventory(..)) => {}
            Input::Pull { node, image, news } => self.todo.pulls.push((node, image, news)),
            Input::Tick => self.look_at_everything(),
        }
    }

    /// Looks at what there is and acts on it.
    async fn pass(&mut self) -> Result<(), DbError> {
        let mut changed = self.take_reports().await?;
        changed.extend(self.take_pulls().await?);
        changed.extend(self.settle_nodes().await?);
        let placed = self.drain_queue(&mut changed).await?;
        let told = self.publisher.publish(&self.db, &self.agents).await?;
        if placed > 0 {
            tracing::info!("{placed} instances placed");
        }
        tracing::debug!(changed = changed.len(), told, "the loop has looked at everything");
        for id in changed {
            self.events.send(Event::Instance(id));
        }
        Ok(())
    }

    async fn take_reports(&mut self) -> Result<Vec<InstanceId>, DbError> {
        let mut changed = Vec::new();
        while let Some((node, report)) = self.todo.reports.pop_first() {
            let now = self.clock.now();
            let taken = match observe::take(&self.db, node, &report, now).await {
                Ok(taken) => taken,
                Err(error) => {
                    self.todo.reports.insert(node, report);
                    return Err(error);
                }
            };
            self.todo.has_ends |= !taken.changed.is_empty();
            changed.extend(taken.changed);
            if taken.freed {
                self.fleet.forget(node);
            }
            for (image, instance) in taken.missing {
                self.fetch(node, image, instance).await?;
            }
            for orphan in self.fleet.set_orphans(node, report.orphans) {
                tracing::warn!(
                    node.id = %node, instance.id = %orphan.id,
                    "node {node} holds container {} ({}), which the platform does not know; it is left alone",
                    orphan.container_name, orphan.container_id
                );
            }
        }
        Ok(changed)
    }

    async fn fetch(
        &mut self,
        node: NodeId,
        image: String,
        instance: InstanceId,
    ) -> Result<(), DbError> {
        if !self.pulls.is_running(node, &image) {
            let pull = act::pull::request(&self.db, &self.seal, instance, image).await?;
            let news = self.wake.inputs.clone();
            self.pulls.start(&self.agents, node, pull, self.clock.clone(), news);
        }
        Ok(())
    }

    async fn take_pulls(&mut self) -> Result<Vec<InstanceId>, DbError> {
        let mut changed = Vec::new();
        for (node, image, news) in std::mem::take(&mut self.todo.pulls) {
            if !matches!(news, PullNews::Progress { .. }) {
                self.pulls.ended(node, &image);
            }
            if matches!(news, PullNews::Failed(_)) {
                self.fleet.forget(node);
            }
            changed.extend(act::pull::tell(&self.db, node, &image, &news, self.clock.now()).await?);
        }
        Ok(changed)
    }

    async fn settle_nodes(&mut self) -> Result<Vec<InstanceId>, DbError> {
        let mut changed = Vec::new();
        let now = self.clock.now();
        while let Some(node) = self.todo.drains.pop_first() {
            changed.extend(act::node::drained(&self.db, node, now).await?);
        }
        if self.todo.has_node_news {
            changed.extend(act::node::lost(&self.db, now).await?);
            changed.extend(act::node::removed(&self.db, now).await?);
            self.todo.has_node_news = false;
        }
        if self.todo.has_ends {
            let settled = act::end::settle(&self.db, &self.agents, now).await?;
            self.todo.has_ends = settled.is_open;
            changed.extend(settled.changed);
            for node in settled.nodes {
                self.fleet.forget(node);
            }
        }
        Ok(changed)
    }

    async fn drain_queue(&mut self, changed: &mut Vec<InstanceId>) -> Result<usize, DbError> {
        let mut placed = 0;
        for _ in 0..RACES {
            let now = self.clock.now();
            let snapshot = self.fleet.fresh(&self.db).await?;
            let is_thorough = std::mem::take(&mut self.todo.is_thorough);
            let drained = act::queue::drain(&self.db, snapshot, now, is_thorough).await;
            let drained = drained.inspect_err(|_| self.fleet.forget_all())?;
            placed += drained.placed;
            changed.extend(drained.changed);
            if drained.lost.is_empty() {
                break;
            }
            for node in drained.lost {
                self.fleet.forget(node);
            }
        }
        Ok(placed)
    }
}
