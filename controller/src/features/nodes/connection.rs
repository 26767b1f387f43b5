//! Keeps the nodes' rows true to what their agents say and to whether they are heard.
//!
//! One task hears every [`AgentEvent`], writes what changed, and hands the event on. What could not
//! be written stays in memory and is written at the next tick, so a failing database loses nothing.

use std::collections::HashMap;
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use tianqi_common::wire::inventory::NodeInventory;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::inventory::{self, SENTENCE_MAX, clean};
use super::judge::{Lost, Standing, judge};
use super::model::DockerWord;
use super::settings;
use super::store::live::{self, LiveRow};
use crate::core::db::DbError;
use crate::core::error::Chain;
use crate::core::event::Event;
use crate::features::Ctx;
use crate::link::AgentEvent;

const TICK: Duration = Duration::from_secs(1);
/// How often the time of last contact of nodes that stay online is written.
const TOUCH_EVERY: Duration = Duration::from_secs(30);
/// Nodes in one such statement.
const TOUCH_AT_ONCE: usize = 500;

/// What is known of one node.
#[derive(Debug)]
struct Known {
    /// What should be in its row.
    live: LiveRow,
    /// What is.
    written: LiveRow,
    /// Connections of its agent; two for a moment while a newer one takes over.
    connections: u32,
    lost: Option<(Lost, String)>,
    fingerprint: Option<[u8; 32]>,
    inventory: Option<Box<NodeInventory>>,
}

impl Known {
    fn new(row: LiveRow) -> Self {
        let written = row.clone();
        Self { live: row, written, connections: 0, lost: None, fingerprint: None, inventory: None }
    }

    /// Whether anything but the revision of desired state changed; that alone wakes nobody.
    fn is_news(&self) -> bool {
        let LiveRow { observed_epoch, observed_generation, .. } = self.written;
        self.written != LiveRow { observed_epoch, observed_generation, ..self.live.clone() }
    }

    fn set_docker(&mut self, status: DockerWord, reason: &str) {
        status.as_str().clone_into(&mut self.live.docker_status);
        self.live.docker_reason = clean(reason, SENTENCE_MAX);
    }
}

/// The task's state.
#[derive(Debug)]
pub struct Keeper {
    ctx: Ctx,
    started: Duration,
    touched: Duration,
    nodes: HashMap<NodeId, Known>,
    is_withholding: bool,
}

/// Hears agents until `cancel`. Every event is handed on to `forward` once its node's row is
/// written; when `forward` is full, agents wait.
pub async fn run(
    ctx: Ctx,
    mut events: mpsc::Receiver<AgentEvent>,
    forward: mpsc::Sender<AgentEvent>,
    cancel: CancellationToken,
) {
    let mut keeper = Keeper::new(ctx);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_loaded = false;
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            _ = ticks.tick() => {
                if is_loaded {
                    keeper.tick().await;
                } else {
                    is_loaded = keeper.load().await;
                }
            }
            event = events.recv(), if is_loaded => {
                let Some(event) = event else { break };
                keeper.hear(&event).await;
                // An error means that nobody listens any more: the process ends.
                let _ = forward.send(event).await;
            }
        }
    }
    keeper.touch().await;
}

impl Keeper {
    /// Starts knowing no node.
    #[must_use]
    pub fn new(ctx: Ctx) -> Self {
        let started = ctx.clock.monotonic();
        Self { ctx, started, touched: started, nodes: HashMap::new(), is_withholding: false }
    }

    /// Reads the nodes that were online when the controller ended: they have until the end of the
    /// grace to come back. Returns whether they could be read.
    pub async fn load(&mut self) -> bool {
        let rows = match live::all(&self.ctx.db).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the nodes could not be read");
                return false;
            }
        };
        let lost = Lost { heard: self.started, ended: self.started };
        for row in rows.into_iter().filter(|row| row.online) {
            let reason = "not heard since the controller started".to_owned();
            let id = NodeId(row.id);
            self.nodes.insert(id, Known { lost: Some((lost, reason)), ..Known::new(row) });
        }
        true
    }

    /// Takes one event in and writes what it changed.
    pub async fn hear(&mut self, event: &AgentEvent) {
        let node = match event {
            AgentEvent::Connected { node, .. }
            | AgentEvent::Disconnected { node, .. }
            | AgentEvent::Inventory(node, _)
            | AgentEvent::Observed(node, _) => *node,
        };
        if let Err(error) = self.know(node).await {
            tracing::error!(node.id = %node, error = %Chain(&error), "node {node} could not be read");
            return;
        }
        let (now, wall) = (self.ctx.clock.monotonic(), self.ctx.clock.now());
        // A node that was removed has no row; what its agent still says is dropped.
        let Some(known) = self.nodes.get_mut(&node) else { return };
        take_in(known, event, now, wall);
        self.write(node).await;
        if matches!(event, AgentEvent::Connected { .. }) {
            settings::push(&self.ctx, node).await;
        }
    }

    async fn know(&mut self, node: NodeId) -> Result<(), DbError> {
        if !self.nodes.contains_key(&node)
            && let Some(row) = live::get(&self.ctx.db, node).await?
        {
            self.nodes.insert(node, Known::new(row));
        }
        Ok(())
    }

    /// Judges who is offline, writes what is left to write, and every 30 s who was heard.
    pub async fn tick(&mut self) {
        let now = self.ctx.clock.monotonic();
        let online = self.nodes.iter().filter(|(_, known)| known.live.online);
        let standings: Vec<_> = online
            .map(|(node, known)| Standing {
                node: *node,
                lost: known.lost.as_ref().map(|(lost, _)| *lost),
            })
            .collect();
        let judgement = judge(&standings, now, self.started);
        self.say_withheld(judgement.withheld, standings.len());
        for node in judgement.offline {
            if let Some(known) = self.nodes.get_mut(&node) {
                put_offline(known);
                let reason = &known.live.offline_reason;
                tracing::warn!(node.id = %node, "node {node} is offline: {reason}");
            }
        }
        let is_dirty = |known: &Known| known.live != known.written || known.inventory.is_some();
        let dirty: Vec<_> =
            self.nodes.iter().filter(|(_, known)| is_dirty(known)).map(|(node, _)| *node).collect();
        for node in dirty {
            self.write(node).await;
        }
        if now.saturating_sub(self.touched) >= TOUCH_EVERY {
            self.touched = now;
            self.touch().await;
            self.forget().await;
        }
    }

    fn say_withheld(&mut self, withheld: usize, online: usize) {
        if (withheld > 0) != self.is_withholding {
            self.is_withholding = withheld > 0;
            if self.is_withholding {
                tracing::warn!(
                    "{withheld} of {online} nodes fell silent at once; the controller suspects \
                     its own network and judges nobody for now"
                );
            }
        }
    }

    async fn write(&mut self, node: NodeId) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        let is_news = known.is_news() || known.inventory.is_some();
        match write(&self.ctx, node, known).await {
            Ok(true) if is_news => self.ctx.events.send(Event::Node(node)),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(node.id = %node, error = %Chain(&error), "what node {node} said could not be written; trying again");
            }
        }
    }

    /// Writes when the connected nodes were last heard.
    async fn touch(&self) {
        let connected = self.nodes.iter().filter(|(_, known)| known.connections > 0);
        let connected: Vec<_> = connected.map(|(node, _)| *node).collect();
        for nodes in connected.chunks(TOUCH_AT_ONCE) {
            if let Err(error) = live::touch(&self.ctx.db, self.ctx.clock.now(), nodes).await {
                tracing::warn!(error = %Chain(&error), "times of last contact could not be written");
                return;
            }
        }
    }

    /// Forgets nodes that were removed.
    async fn forget(&mut self) {
        if let Ok(rows) = live::all(&self.ctx.db).await {
            let there: std::collections::HashSet<_> =
                rows.into_iter().map(|row| NodeId(row.id)).collect();
            self.nodes.retain(|node, _| there.contains(node));
        }
    }
}

fn take_in(known: &mut Known, event: &AgentEvent, now: Duration, wall: UnixMillis) {
    match event {
        AgentEvent::Connected { boot, started_at, program, skew_ms, .. } => {
            known.connections += 1;
            known.lost = None;
            if !known.live.online {
                known.set_docker(DockerWord::Unknown, "the agent has not reported Docker yet");
            }
            known.live.online = true;
            known.live.offline_reason.clear();
            known.live.boot_id = Some(boot.0);
            known.live.boot_started_at = started_at.0.max(0);
            known.live.agent_program = clean(program, 100);
            known.live.clock_skew_ms = *skew_ms;
        }
        AgentEvent::Disconnected { reason, heard_at, .. } => {
            known.connections = known.connections.saturating_sub(1);
            if known.connections == 0 {
                let silent = wall.since(*heard_at);
                let lost = Lost { heard: now.saturating_sub(silent), ended: now };
                known.lost = Some((lost, clean(reason, SENTENCE_MAX)));
            }
        }
        AgentEvent::Inventory(_, inventory) => {
            let newer = inventory::fingerprint(inventory);
            if newer.is_none() || newer != known.fingerprint {
                known.inventory = Some(inventory.clone());
            }
        }
        AgentEvent::Observed(_, observed) => {
            known.set_docker(observed.docker.status.into(), &observed.docker.reason);
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            known.live.observed_epoch = number(observed.revision.epoch);
            known.live.observed_generation = number(observed.revision.generation);
        }
    }
}

fn put_offline(known: &mut Known) {
    let reason = known.lost.as_ref().map(|(_, reason)| reason.clone()).unwrap_or_default();
    known.set_docker(DockerWord::Unknown, &format!("the agent is offline: {reason}"));
    known.live.online = false;
    known.live.offline_reason = reason;
}

/// Writes what differs from the row. Returns whether anything did.
async fn write(ctx: &Ctx, node: NodeId, known: &mut Known) -> Result<bool, DbError> {
    let now = ctx.clock.now();
    let mut changed = false;
    if known.live != known.written {
        let silent = known
            .lost
            .as_ref()
            .map_or(Duration::ZERO, |(lost, _)| ctx.clock.monotonic().saturating_sub(lost.heard));
        let ago = i64::try_from(silent.as_millis()).unwrap_or(i64::MAX);
        let heard = UnixMillis(now.0.saturating_sub(ago));
        live::update(&ctx.db, now, &known.live, heard).await?;
        known.written = known.live.clone();
        changed = true;
    }
    if let Some(inventory) = &known.inventory {
        let newer = inventory::fingerprint(inventory);
        if known.fingerprint.is_none() {
            known.fingerprint = inventory::stored_fingerprint(&ctx.db, node).await?;
        }
        if newer != known.fingerprint {
            inventory::store(&ctx.db, now, node, inventory).await?;
            known.fingerprint = newer;
            changed = true;
        }
        known.inventory = None;
    }
    Ok(changed)
}
