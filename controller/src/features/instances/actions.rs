//! The verbs. Each owns its transaction, its audit row and its event.

use std::collections::BTreeSet;

use serde_json::json;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId, UserId};
use tianqi_scheduler::quota::Amounts;
use tianqi_scheduler::{Snapshot, place};
use uuid::Uuid;

use super::change::Change;
use super::lifecycle::{self, Desired, Event, Next, Phase, State};
use super::model::{NewInstance, PatchInstance, SpecSnapshot, check_name, check_remark};
use super::model::{Origin, container_name};
use super::quota::{self, Wanted};
use super::store::{self, Instance, Why};
use super::{catalogue, fleet};
use crate::authz::policy::{
    InstancesCreate, InstancesDelete, InstancesPriority, InstancesWrite, Permission,
};
use crate::authz::resource::{InstanceRef, Resource};
use crate::authz::{Actor, Anything, Grant, Reach};
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::db::{Db, DbError, Tx};
use crate::core::error::{Problem, Result};
use crate::core::event;
use crate::core::idempotency::{self, Claim, RequestKey};
use crate::features::Ctx;

pub use super::hand_over::{Owner, hand_over};

/// How often a step is tried when somebody else changes the same rows at the same time.
const ATTEMPTS: u32 = 8;

/// What a person may ask of an instance that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Queue it again for its node.
    Start,
    /// Let it stand still; releases CPU, memory and cards.
    Stop,
    /// End its process and start it again.
    Restart,
    /// Remove it with its data.
    Delete,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Delete => "delete",
        }
    }

    fn event(self) -> Event<'static> {
        match self {
            Self::Start => Event::StartRequested,
            Self::Stop => Event::StopRequested,
            Self::Restart => Event::RestartRequested,
            Self::Delete => Event::DeleteRequested,
        }
    }

    fn note(self) -> &'static str {
        match self {
            Self::Start => "start_requested",
            Self::Stop => "stop_requested",
            Self::Restart => "restart_requested",
            Self::Delete => "delete_requested",
        }
    }
}

/// Creates an instance; it waits in the queue when this returns.
///
/// # Errors
///
/// `no_such_image`, `no_such_spec`, `no_such_node`, `not_listed`, `image_cannot_slice` (422),
/// `name_taken`, `quota_exceeded`, `owner_gone`, `no_capacity` (409), `priority_forbidden` (403).
pub async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, InstancesCreate>,
    new: NewInstance,
    key: Option<&RequestKey>,
) -> Result<InstanceId> {
    let actor = grant.actor();
    if new.priority.is_some() && actor.role.reach(InstancesPriority::NAME) == Reach::None {
        let detail = "your role sets no priority; leave it out";
        return Err(Problem::forbidden("priority_forbidden", detail));
    }
    let origin = catalogue::origin(&ctx.db, &new, actor).await?;
    if new.fail_if_full {
        // Somebody who may not have it at all is not told to wait for room.
        let wanted = Wanted::by_new(origin.owner, &origin.spec);
        if let Some(problem) = wanted.foreseen(&ctx.db).await? {
            return Err(problem);
        }
        refuse_when_full(ctx, &origin.spec, new.node, &origin.image_address).await?;
    }
    let instance = queued(new, origin, ctx.clock.now());
    let mut attempt = 0;
    let made = loop {
        attempt += 1;
        match write_new(ctx, &instance, actor, key).await {
            Err(Failure::Db(error)) if error.is_retryable() && attempt < ATTEMPTS => {}
            made => break made?,
        }
    };
    if let Claim::Again(id) = made {
        return Ok(InstanceId(id));
    }
    ctx.events.send(event::Event::Instance(instance.id));
    Ok(instance.id)
}

/// Why a new instance was not written.
enum Failure {
    Db(DbError),
    Problem(Problem),
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Self {
        Self::Db(error)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Db(error) => error.into(),
            Failure::Problem(problem) => problem,
        }
    }
}

fn name_taken(name: &str) -> Problem {
    let detail = format!("you have an instance named {name}; choose another name");
    Problem::conflict("name_taken", detail)
}

async fn refuse_when_full(
    ctx: &Ctx,
    spec: &SpecSnapshot,
    node: Option<NodeId>,
    image: &str,
) -> Result<()> {
    let snapshot = Snapshot::new(fleet::all_nodes(&ctx.db).await?);
    match place(&snapshot, &spec.request(node, image)) {
        Ok(_) => Ok(()),
        Err(unplaced) => Err(Problem::conflict("no_capacity", unplaced.to_string())
            .with(serde_json::to_value(&unplaced).unwrap_or_default())),
    }
}

fn queued(new: NewInstance, origin: Origin, now: UnixMillis) -> Instance {
    let id = InstanceId::new();
    Instance {
        id,
        owner: origin.owner,
        container_name: container_name(&new.name, id, now.0 / 1_000),
        name: new.name.into(),
        image_id: new.image.0,
        spec_id: new.spec.0,
        requested_node: new.node,
        node: None,
        image_address: origin.image_address,
        spec: origin.spec,
        env: new.env.into_iter().collect(),
        policy: new.restart,
        priority: new.priority.unwrap_or(0),
        remark: new.remark,
        state: State::new(Desired::Running, Phase::Pending),
        generation: 1,
        why: Why::new("queued", "waiting for the scheduler"),
        observed_generation: 0,
        container_id: None,
        limits: "[]".to_owned(),
        gpus: Vec::new(),
        fail_if_full: new.fail_if_full,
        exit_code: None,
        restarts: 0,
        queued_at: now,
        started_at: None,
        created_at: now,
        updated_at: now,
    }
}

async fn write_new(
    ctx: &Ctx,
    it: &Instance,
    actor: &Actor,
    key: Option<&RequestKey>,
) -> Result<Claim, Failure> {
    let mut tx = ctx.db.begin().await?;
    let refused = Wanted::by_new(it.owner, &it.spec).refusal(&mut tx).await?;
    let claim = idempotency::claim(&mut tx, actor.id, key, it.id.0, it.created_at).await;
    if let again @ Claim::Again(_) = claim.map_err(Failure::Problem)? {
        return Ok(again);
    }
    if let Some(problem) = refused {
        return Err(Failure::Problem(problem));
    }
    match store::insert(&mut tx, it).await {
        Err(DbError::Duplicate(_)) => return Err(Failure::Problem(name_taken(&it.name))),
        inserted => inserted?,
    }
    let message = format!("created by {}", actor.name);
    store::note(&mut tx, it.id, it.created_at, "created", &message).await?;
    let detail = json!({
        "name": it.name, "image_id": it.image_id, "spec_id": it.spec_id,
        "node_id": it.requested_node,
    });
    let (now, doer) = (it.created_at, actor.doer());
    record(&mut tx, &doer, InstancesCreate::NAME, it.id, now, detail).await?;
    tx.commit().await?;
    Ok(Claim::First)
}

async fn record(
    tx: &mut Tx,
    doer: &Doer,
    action: &'static str,
    id: InstanceId,
    now: UnixMillis,
    detail: serde_json::Value,
) -> Result<(), DbError> {
    let entry = Entry {
        doer,
        action,
        target_kind: "instance",
        target_id: id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    audit::record(tx, now, &entry).await
}

/// Starts, stops or restarts an instance. It is on its way when this returns.
///
/// # Errors
///
/// `not_possible` (409) with what is possible now, `quota_exceeded` (409).
pub async fn steer(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesWrite>,
    verb: Verb,
) -> Result<Instance> {
    act(ctx, grant.resource().id, &grant.actor().doer(), InstancesWrite::NAME, verb).await
}

/// Deletes an instance with its container and data. Asking twice is fine.
///
/// # Errors
///
/// `no_such_instance` (404) when it is gone already.
pub async fn delete(ctx: &Ctx, grant: &Grant<InstanceRef, InstancesDelete>) -> Result<Instance> {
    let (id, doer) = (grant.resource().id, grant.actor().doer());
    act(ctx, id, &doer, InstancesDelete::NAME, Verb::Delete).await
}

/// Deletes one of many; each is decided by itself.
///
/// # Errors
///
/// As for one: `no_such_instance` (404) also for somebody else's.
pub async fn delete_one_of_many(
    ctx: &Ctx,
    grant: &Grant<Anything, InstancesDelete>,
    id: Uuid,
) -> Result<Instance> {
    let instance = InstanceRef::find(&ctx.db, Some(&id.to_string())).await?;
    delete(ctx, &Grant::decide(grant.actor().clone(), instance)?).await
}

async fn act(
    ctx: &Ctx,
    id: InstanceId,
    doer: &Doer,
    action: &'static str,
    verb: Verb,
) -> Result<Instance> {
    for _ in 0..ATTEMPTS {
        let before = store::get(&ctx.db, id).await?.ok_or_else(InstanceRef::missing)?;
        let change = match lifecycle::next(before.state, verb.event()) {
            Next::To(state) => requested(&before, state, verb, doer, ctx.clock.now()),
            Next::Same | Next::Gone => return Ok(before),
            Next::Refused => return Err(not_possible(&before, verb)),
        };
        match write_act(ctx, &change, doer, action, verb).await {
            Ok(true) => {
                ctx.events.send(event::Event::Instance(id));
                return Ok(change.after);
            }
            Ok(false) => {}
            Err(Failure::Db(error)) if error.is_retryable() => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let detail = "others change this instance at the same time; try again";
    Err(Problem::conflict("busy", detail))
}

fn requested(before: &Instance, state: State, verb: Verb, doer: &Doer, now: UnixMillis) -> Change {
    let why = match (verb, state.phase) {
        (Verb::Start | Verb::Restart, Phase::Pending) => {
            Why::new("queued", "waiting for the scheduler")
        }
        (Verb::Restart, _) => Why::new("restarting", "it is being restarted"),
        (Verb::Stop, Phase::Exited) => Why::new("stopped", "it was stopped before it had a place"),
        (Verb::Stop, _) => Why::new("stopping", "it is being stopped"),
        (Verb::Delete, _) => Why::new("deleting", "its container and data are being removed"),
        (Verb::Start, _) => Why::new("creating", "its container is being started"),
    };
    let message = format!("{} asked for: {}", doer.name, verb.word());
    // What still holds its place is started there, so the node must act although it should run
    // before and after.
    let acts = matches!(verb, Verb::Restart | Verb::Start) && state.runs_on_node();
    Change::to(before, state, why, acts, now).noting(verb.note(), message)
}

fn not_possible(it: &Instance, verb: Verb) -> Problem {
    let possible = it.state.possible();
    let now = if possible.is_empty() { "nothing".to_owned() } else { possible.join(", ") };
    let (verb, phase) = (verb.word(), it.state.phase.as_str());
    let detail =
        format!("{verb} does not apply to an instance that is {phase}; possible now: {now}");
    Problem::conflict("not_possible", detail).with(json!({ "phase": phase, "possible": possible }))
}

async fn write_act(
    ctx: &Ctx,
    change: &Change,
    doer: &Doer,
    action: &'static str,
    verb: Verb,
) -> Result<bool, Failure> {
    let (now, id, before) = (ctx.clock.now(), change.before.id, &change.before);
    let mut tx = ctx.db.begin().await?;
    if let Some(wanted) = Wanted::by_step(before, change.after.state)
        && let Some(problem) = wanted.refusal(&mut tx).await?
    {
        return Err(Failure::Problem(problem));
    }
    // The node's row is locked before the instance's, as everywhere, so that nobody waits in a circle.
    if let Some(node) = before.node {
        store::touch_nodes(&mut tx, &BTreeSet::from([node])).await?;
    }
    if !change.write(&mut tx, now).await? {
        return Ok(false);
    }
    if verb == Verb::Delete && before.node.is_none() {
        store::bury(&mut tx, id, now).await?;
    }
    let view =
        |state: State| json!({ "phase": state.phase.as_str(), "desired": state.desired.as_str() });
    let changes = audit::changes(&view(change.before.state), &view(change.after.state));
    let detail = json!({ "verb": verb.word(), "name": change.before.name, "changes": changes });
    record(&mut tx, doer, action, id, now, detail).await?;
    tx.commit().await?;
    Ok(true)
}

/// Returns what an account uses of its quota.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn usage(db: &Db, owner: UserId) -> Result<Amounts, DbError> {
    quota::usage(db, owner, None).await
}

/// Changes name and remark.
///
/// # Errors
///
/// `bad_name`, `bad_remark` (422), `name_taken` (409).
pub async fn patch(
    ctx: &Ctx,
    grant: &Grant<InstanceRef, InstancesWrite>,
    patch: PatchInstance,
) -> Result<()> {
    let id = grant.resource().id;
    let it = store::get(&ctx.db, id).await?.ok_or_else(InstanceRef::missing)?;
    let name = patch.name.unwrap_or_else(|| it.name.clone());
    let remark = patch.remark.unwrap_or_else(|| it.remark.clone());
    check_name(&name)?;
    check_remark(&remark)?;
    let (now, doer) = (ctx.clock.now(), grant.actor().doer());
    let mut tx = ctx.db.begin().await?;
    match store::rename(&mut tx, id, &name, &remark, now).await {
        Err(DbError::Duplicate(_)) => return Err(name_taken(&name)),
        renamed => renamed?,
    }
    let view = |name: &str, remark: &str| json!({ "name": name, "remark": remark });
    let changes = audit::changes(&view(&it.name, &it.remark), &view(&name, &remark));
    let detail = json!({ "verb": "change", "name": name, "changes": changes });
    record(&mut tx, &doer, InstancesWrite::NAME, id, now, detail).await?;
    tx.commit().await?;
    ctx.events.send(event::Event::Instance(id));
    Ok(())
}
