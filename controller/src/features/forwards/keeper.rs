//! Keeps what listens in line with the rows.
//!
//! One task owns every listener. It hears of changes by events and looks again by the clock, so that a
//! lost event costs seconds and a port that was taken is listened on once it is free.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::id::{ForwardId, InstanceId, UserId};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::model::{Rule, Target};
use super::running::{Running, Why};
use super::store::{self, ForwardRow};
use super::view::State;
use super::{actions, port, rules};
use crate::authz::policy::{ForwardsHost, ForwardsWrite};
use crate::authz::standing;
use crate::core::db::DbError;
use crate::core::error::{Chain, Result};
use crate::core::event::Event;
use crate::features::Ctx;

/// How often ports that could not be had are tried again, and visits that are over written down.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Every so many looks all rows are read.
const ALL_EVERY: u32 = 15;

/// Listens for every forward until `cancel`.
pub async fn run(ctx: Ctx, cancel: CancellationToken) {
    if !ctx.config.forwards.enabled {
        return;
    }
    let mut heard = ctx.events.listen();
    let mut keeper = Keeper::new(ctx);
    keeper.keep_all().await;
    keeper.ctx.ports.kept(true);
    let mut looks = tokio::time::interval(LOOK_AGAIN);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            event = heard.recv() => match event {
                Ok(event) => keeper.hear(event).await,
                Err(RecvError::Lagged(_)) => keeper.keep_all().await,
                Err(RecvError::Closed) => break,
            },
            _ = looks.tick() => keeper.look_again().await,
        }
    }
    keeper.ctx.ports.kept(false);
    keeper.stop_all().await;
}

struct Keeper {
    ctx: Ctx,
    shared: Arc<port::Shared>,
    /// Every forward as its row was last read.
    known: HashMap<ForwardId, Rule>,
    running: HashMap<ForwardId, Running>,
    /// Those whose port could not be had.
    waiting: HashSet<ForwardId>,
    looks: u32,
}

impl Keeper {
    fn new(ctx: Ctx) -> Self {
        Self {
            ctx,
            shared: Arc::default(),
            known: HashMap::new(),
            running: HashMap::new(),
            waiting: HashSet::new(),
            looks: 0,
        }
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Forward(id) => self.keep(id).await,
            Event::Instance(id) => self.keep_those(|rule| leads_into(rule, id)).await,
            Event::Revoked(user) => self.keep_those(|rule| is_of(rule, user)).await,
            Event::Roles => self.keep_all().await,
            Event::Node(_) | Event::Drain(_) | Event::Catalogue => {}
        }
    }

    async fn keep_those(&mut self, is_meant: impl Fn(&Rule) -> bool) {
        let meant = self.known.values().filter(|rule| is_meant(rule)).map(|rule| rule.id);
        for id in meant.collect::<Vec<_>>() {
            self.keep(id).await;
        }
    }

    /// Reads a row again and does what it says.
    async fn keep(&mut self, id: ForwardId) {
        match store::get(&self.ctx.db, id).await {
            Ok(Some(row)) => self.keep_row(&row).await,
            Ok(None) => self.gone(id).await,
            // What listens goes on; the next look tries again.
            Err(error) => cannot_be_read(id, &error),
        }
    }

    async fn keep_all(&mut self) {
        let rows = match store::all(&self.ctx.db).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "forwards cannot be read");
                return;
            }
        };
        let there: HashSet<ForwardId> = rows.iter().map(|row| ForwardId(row.id)).collect();
        for id in self.known.keys().filter(|id| !there.contains(id)).copied().collect::<Vec<_>>() {
            self.gone(id).await;
        }
        for row in rows {
            self.keep_row(&row).await;
        }
    }

    async fn keep_row(&mut self, row: &ForwardRow) {
        let id = ForwardId(row.id);
        if row.has_lost_its_instance() {
            match actions::delete_with_instance(&self.ctx, id).await {
                Ok(()) => return self.gone(id).await,
                // It stops listening all the same; the next look at all rows tries again.
                Err(error) => {
                    tracing::warn!(forward.id = %id, error = %Chain(&error), "a forward stays without its instance");
                }
            }
        }
        match row.rule() {
            Ok(rule) => self.bring(rule).await,
            Err(error) => cannot_be_read(id, &error),
        }
    }

    async fn gone(&mut self, id: ForwardId) {
        self.stop(id, Why::Deleted).await;
        self.known.remove(&id);
        self.ctx.ports.forget(id);
        self.ctx.ports.turned(id, 0);
    }

    /// Makes what listens be as `rule` says.
    async fn bring(&mut self, rule: Rule) {
        let id = rule.id;
        let meter = self.ctx.ports.meter(id);
        if rule.enabled {
            match self.right(&rule).await {
                Ok(right) => self.listen(&rule, right).await,
                Err(problem) if problem.status.is_client_error() => {
                    self.stop(id, Why::RightEnded).await;
                    meter.stands(State::Error, problem.detail);
                }
                // A database that does not answer ends nothing: the next look decides.
                Err(_) => {}
            }
        } else {
            self.stop(id, Why::SwitchedOff).await;
            meter.stands(State::Stopped, "");
        }
        let generation = rule.generation;
        self.known.insert(id, rule);
        self.ctx.ports.turned(id, generation);
    }

    /// What a forward stands on: its owner's right, and what the configuration sets aside.
    async fn right(&self, rule: &Rule) -> Result<port::Right> {
        let authz = &self.ctx.authz;
        let free = standing::anywhere::<ForwardsHost>(authz, rule.owner).await;
        let any_target = match &free {
            Ok(_) => true,
            Err(problem) if problem.code == "forbidden" => false,
            Err(problem) => return Err(problem.clone()),
        };
        let own_ports = actions::own_ports(&self.ctx);
        let config = &self.ctx.config.forwards;
        rules::Setting { config, own_ports: &own_ports, local: &[], any_target }.check(rule)?;
        match rule.target {
            Target::Host(_) => Ok(port::Right { grant: None, should_run: true }),
            Target::Instance(instance, _) => {
                let grant = standing::in_instance::<ForwardsWrite>(authz, rule.owner, instance);
                let grant = grant.await?;
                let should_run = standing::should_run(authz, &grant).await;
                Ok(port::Right { grant: Some(Arc::new(grant)), should_run })
            }
        }
    }

    async fn listen(&mut self, rule: &Rule, right: port::Right) {
        let settings = port::Settings::of(rule, &self.ctx.config.forwards, right);
        if let Some(running) = self.running.get(&rule.id)
            && running.take_up(rule, &settings)
        {
            return;
        }
        self.stop(rule.id, Why::Changed).await;
        let meter = self.ctx.ports.meter(rule.id);
        match Running::start(&self.ctx, &self.shared, rule, settings) {
            Ok(running) => {
                tracing::info!(forward.id = %rule.id, "{} listens on {}", rule.protocol.as_str(), rule.listen);
                meter.stands(State::Listening, "");
                self.running.insert(rule.id, running);
                self.waiting.remove(&rule.id);
            }
            Err(reason) => {
                // Said once, not at every try.
                if self.waiting.insert(rule.id) {
                    tracing::warn!(forward.id = %rule.id, "{reason}");
                    meter.failed(self.ctx.clock.now(), reason.clone());
                }
                meter.stands(State::Error, reason);
            }
        }
    }

    async fn stop(&mut self, id: ForwardId, why: Why) {
        self.waiting.remove(&id);
        if let Some(running) = self.running.remove(&id) {
            running.stop(why).await;
        }
    }

    async fn look_again(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(ALL_EVERY) {
            self.keep_all().await;
        } else {
            for rule in
                self.waiting.iter().filter_map(|id| self.known.get(id)).cloned().collect::<Vec<_>>()
            {
                self.try_again(rule).await;
            }
        }
        for running in self.running.values_mut() {
            running.write_down().await;
        }
    }

    async fn try_again(&mut self, rule: Rule) {
        if let Ok(right) = self.right(&rule).await {
            self.listen(&rule, right).await;
        }
    }

    async fn stop_all(&mut self) {
        // All of them end together; only what is written down of them comes one after the other.
        for running in self.running.values() {
            running.cancel();
        }
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(id, Why::Shutdown).await;
        }
    }
}

fn cannot_be_read(id: ForwardId, error: &DbError) {
    tracing::warn!(forward.id = %id, error = %Chain(error), "a forward cannot be read");
}

fn leads_into(rule: &Rule, id: InstanceId) -> bool {
    matches!(rule.target, Target::Instance(instance, _) if instance == id)
}

fn is_of(rule: &Rule, user: UserId) -> bool {
    rule.owner == user
}
