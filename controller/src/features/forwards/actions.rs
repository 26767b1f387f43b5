//! The verbs: create, change, switch, delete.

use std::net::IpAddr;

use serde_json::{Value, json};
use tianqi_common::id::{ForwardId, UserId};
use uuid::Uuid;

use super::addresses;
use super::model::{CreateForward, Fields, Forward, ForwardQuery, PatchForward, Rule, Target};
use super::rules::Setting;
use super::store::{self, ForwardRow};
use super::view::{Addresses, LiveView, State, Totals};
use crate::authz::policy::{ForwardsHost, ForwardsRead, ForwardsWrite, Permission};
use crate::authz::resource::{ForwardRef, InstanceRef, Resource};
use crate::authz::{Actor, Anything, Grant, Reach, standing};
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::db::{DbError, Tx};
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::core::idempotency::{self, Claim, RequestKey};
use crate::core::page::{Page, Paging};
use crate::core::patch::Patch;
use crate::features::Ctx;

/// Makes a forward, and waits a moment for what comes of it.
///
/// # Errors
///
/// `bad_field`, `bad_target` and `forward_loop` (422), `port_reserved`, `port_not_allowed`,
/// `address_not_allowed` and `target_not_allowed` (403), `no_such_instance` (404), `listen_taken` and
/// `too_many_forwards` (409).
pub(super) async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, ForwardsWrite>,
    body: CreateForward,
    key: Option<&RequestKey>,
) -> Result<Forward> {
    let (id, owner, now) = (ForwardId::new(), grant.actor().id, ctx.clock.now());
    let fields = body.check(&ctx.config.forwards)?;
    let rule = fields.rule(id, owner, 1)?;
    let any_target = may_lead_anywhere(grant.actor());
    if let Target::Instance(instance, _) = rule.target {
        let resource = InstanceRef::find(&ctx.db, Some(&instance.to_string())).await?;
        Grant::<_, ForwardsWrite>::decide(grant.actor().clone(), resource)?;
    }
    let mut tx = ctx.db.begin().await?;
    if let Claim::Again(first) = idempotency::claim(&mut tx, owner, key, id.0, now).await? {
        drop(tx);
        let row = store::get(&ctx.db, ForwardId(first)).await?;
        return shown(ctx, row.ok_or_else(idempotency::made_and_gone)?);
    }
    check(ctx, &mut tx, &rule, any_target).await?;
    if !any_target {
        keep_to_the_limit(ctx, &mut tx, owner).await?;
    }
    store::insert(&mut tx, id, owner, &fields, now).await.map_err(taken)?;
    note(ctx, &mut tx, &grant.actor().doer(), id, detail("create", &fields, Value::Null)).await?;
    tx.commit().await?;
    told(ctx, id, 1).await
}

/// Changes a forward. What listens and what is open goes on unless the way itself or who may take it
/// changed.
///
/// # Errors
///
/// As [`create`].
pub(super) async fn change(
    ctx: &Ctx,
    grant: &Grant<ForwardRef, ForwardsWrite>,
    patch: PatchForward,
) -> Result<Forward> {
    let ForwardRef { id, owner } = *grant.resource();
    let mut tx = ctx.db.begin().await?;
    let row = locked(&mut tx, id).await?;
    let before = row.fields()?;
    let fields = before.clone().patched(patch)?;
    let generation = row.generation.saturating_add(1);
    let rule = fields.rule(id, owner, generation)?;
    // Putting a forward off needs no more than the right to it.
    if fields.enabled
        || fields.listen() != before.listen()
        || fields.target()? != before.target()?
    {
        let any_target = check_owner(ctx, grant.actor(), &rule).await?;
        check(ctx, &mut tx, &rule, any_target).await?;
    }
    let changes = audit::changes(&before, &fields);
    store::update(&mut tx, id, &fields, ctx.clock.now()).await.map_err(taken)?;
    note(ctx, &mut tx, &grant.actor().doer(), id, detail("change", &fields, changes)).await?;
    tx.commit().await?;
    told(ctx, id, generation).await
}

/// Puts a forward on or off.
///
/// # Errors
///
/// As [`create`].
pub(super) async fn switch(
    ctx: &Ctx,
    grant: &Grant<ForwardRef, ForwardsWrite>,
    enabled: bool,
) -> Result<Forward> {
    change(ctx, grant, PatchForward { enabled: Patch::Set(enabled), ..PatchForward::default() })
        .await
}

/// Removes a forward; what is open ends.
///
/// # Errors
///
/// `no_such_forward` (404).
pub(super) async fn delete(ctx: &Ctx, actor: &Actor, id: ForwardId) -> Result<()> {
    let mut tx = ctx.db.begin().await?;
    let fields = locked(&mut tx, id).await?.fields()?;
    store::delete(&mut tx, id).await?;
    note(ctx, &mut tx, &actor.doer(), id, detail("delete", &fields, Value::Null)).await?;
    tx.commit().await?;
    ctx.events.send(Event::Forward(id));
    Ok(())
}

/// Removes a forward whose instance is deleted: nothing can bring it back, and its port is free for
/// others. The audit names the controller as the one who did it. Nothing happens when it has gone by
/// itself, or leads elsewhere by now.
///
/// # Errors
///
/// [`DbError`].
pub(super) async fn delete_with_instance(ctx: &Ctx, id: ForwardId) -> Result<(), DbError> {
    let mut tx = ctx.db.begin().await?;
    store::lock_all(&mut tx).await?;
    let row = store::all(&mut tx).await?.into_iter().find(|row| row.id == id.0);
    let Some(row) = row.filter(ForwardRow::has_lost_its_instance) else { return Ok(()) };
    let fields = row.fields()?;
    store::delete(&mut tx, id).await?;
    let mut detail = detail("delete", &fields, Value::Null);
    if let Some(fields) = detail.as_object_mut() {
        fields.insert("reason".to_owned(), "instance_deleted".into());
        fields.insert("owner".to_owned(), row.owner_id.to_string().into());
    }
    note(ctx, &mut tx, &Doer::system(), id, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Forward(id));
    Ok(())
}

/// Removes one of many, as somebody who may delete.
///
/// # Errors
///
/// `no_such_forward` (404), also for somebody else's.
pub(super) async fn delete_one_of_many(
    ctx: &Ctx,
    grant: &Grant<Anything, ForwardsWrite>,
    id: Uuid,
) -> Result<()> {
    let resource = ForwardRef::find(&ctx.db, Some(&id.to_string())).await?;
    let grant = Grant::<_, ForwardsWrite>::decide(grant.actor().clone(), resource)?;
    delete(ctx, grant.actor(), grant.resource().id).await
}

/// Reads a forward.
///
/// # Errors
///
/// `no_such_forward` (404).
pub(super) async fn read(ctx: &Ctx, id: ForwardId) -> Result<Forward> {
    shown(ctx, store::get(&ctx.db, id).await?.ok_or_else(ForwardRef::missing)?)
}

/// Returns a page of the forwards that the caller may see, each with how it stands.
///
/// # Errors
///
/// `internal` (500).
pub(super) async fn list(
    ctx: &Ctx,
    owner: Option<UserId>,
    query: &ForwardQuery,
    paging: &Paging,
) -> Result<Page<Forward>> {
    let Some(state) = query.state else {
        let (rows, total) = store::page(&ctx.db, query, owner, paging).await?;
        let items: Result<Vec<_>> = rows.into_iter().map(|row| shown(ctx, row)).collect();
        return Ok(paging.page(items?, total));
    };
    // How a forward stands is in memory, not in its row.
    let rows = store::matching(&ctx.db, query, owner, paging.order()).await?;
    let all: Result<Vec<_>> = rows.into_iter().map(|row| shown(ctx, row)).collect();
    Ok(paging.cut(all?.into_iter().filter(|forward| forward.live.state == state).collect()))
}

/// Returns all forwards that the caller may see, in numbers.
///
/// # Errors
///
/// `internal` (500).
pub(super) async fn totals(ctx: &Ctx, owner: Option<UserId>) -> Result<Totals> {
    let rows = store::matching(&ctx.db, &ForwardQuery::default(), owner, "").await?;
    let mut totals = Totals::default();
    for row in rows {
        let live = live(ctx, &row);
        totals.rules += 1;
        totals.enabled += i64::from(row.is_enabled());
        totals.listening += i64::from(live.state == State::Listening);
        totals.failed += i64::from(live.state == State::Error);
        totals.connections = totals.connections.saturating_add(live.connections);
        totals.bytes_in = totals.bytes_in.saturating_add(live.bytes_in);
        totals.bytes_out = totals.bytes_out.saturating_add(live.bytes_out);
    }
    Ok(totals)
}

/// Says where the caller may listen.
pub(super) fn where_to_listen(ctx: &Ctx, grant: &Grant<Anything, ForwardsRead>) -> Addresses {
    let config = &ctx.config.forwards;
    if may_lead_anywhere(grant.actor()) {
        let addresses = addresses::offered(addresses::local());
        return Addresses { addresses, ports: "1-65535".to_owned(), any_target: true };
    }
    let addresses = config.user_addresses.iter().map(|ip| addresses::named(ip.to_string()));
    Addresses {
        addresses: addresses.collect(),
        ports: config.user_ports.to_string(),
        any_target: false,
    }
}

/// Returns the ports that the controller itself listens on.
pub(super) fn own_ports(ctx: &Ctx) -> [u16; 3] {
    let config = &ctx.config;
    [config.http.listen, config.agents.listen, config.jumpbox.listen].map(|listen| listen.port())
}

fn may_lead_anywhere(actor: &Actor) -> bool {
    actor.role.reach(ForwardsHost::NAME) != Reach::None
}

/// A forward stands on its owner's right, whoever changes it. Returns whether both may lead anywhere.
async fn check_owner(ctx: &Ctx, actor: &Actor, rule: &Rule) -> Result<bool> {
    if actor.id != rule.owner {
        let is_owner_free =
            standing::anywhere::<ForwardsHost>(&ctx.authz, rule.owner).await.is_ok();
        if let Target::Instance(instance, _) = rule.target {
            standing::in_instance::<ForwardsWrite>(&ctx.authz, rule.owner, instance).await?;
        }
        return Ok(may_lead_anywhere(actor) && is_owner_free);
    }
    if let Target::Instance(instance, _) = rule.target {
        let resource = InstanceRef::find(&ctx.db, Some(&instance.to_string())).await?;
        Grant::<_, ForwardsWrite>::decide(actor.clone(), resource)?;
    }
    Ok(may_lead_anywhere(actor))
}

/// Checks a rule by itself and beside the others, which nobody changes until the transaction ends.
async fn check(ctx: &Ctx, tx: &mut Tx, rule: &Rule, any_target: bool) -> Result<()> {
    let local: Vec<IpAddr> = addresses::local().into_iter().map(|(ip, _)| ip).collect();
    let own_ports = own_ports(ctx);
    let config = &ctx.config.forwards;
    let setting = Setting { config, own_ports: &own_ports, local: &local, any_target };
    setting.check(rule)?;
    store::lock_all(tx).await?;
    let others: Result<Vec<Rule>, DbError> =
        store::all(tx).await?.iter().map(ForwardRow::rule).collect();
    let others: Vec<Rule> = others?.into_iter().filter(|other| other.id != rule.id).collect();
    setting.check_beside(rule, &others)
}

async fn keep_to_the_limit(ctx: &Ctx, tx: &mut Tx, owner: UserId) -> Result<()> {
    let most = ctx.config.forwards.user_rules;
    if store::count_of(tx, owner).await? < i64::from(most) {
        return Ok(());
    }
    let detail = format!("an account has at most {most} forwards; delete one");
    Err(Problem::conflict("too_many_forwards", detail))
}

async fn locked(tx: &mut Tx, id: ForwardId) -> Result<ForwardRow> {
    store::lock_all(tx).await?;
    let found = store::all(tx).await?.into_iter().find(|row| row.id == id.0);
    found.ok_or_else(ForwardRef::missing)
}

fn taken(error: DbError) -> Problem {
    if matches!(error, DbError::Duplicate(_)) {
        let detail = "another forward listens on this address and port already";
        return Problem::conflict("listen_taken", detail);
    }
    error.into()
}

/// Lets everybody know of a change, waits a moment until it has taken effect, and returns the forward.
async fn told(ctx: &Ctx, id: ForwardId, generation: i64) -> Result<Forward> {
    ctx.events.send(Event::Forward(id));
    ctx.ports.settled(id, generation).await;
    read(ctx, id).await
}

fn shown(ctx: &Ctx, row: ForwardRow) -> Result<Forward> {
    let live = live(ctx, &row);
    Ok(row.shown(live)?)
}

fn live(ctx: &Ctx, row: &ForwardRow) -> LiveView {
    let mut live = ctx.ports.view(ForwardId(row.id));
    if row.is_enabled() && !ctx.config.forwards.enabled {
        "forwards are off in the configuration (forwards.enabled)".clone_into(&mut live.reason);
    }
    live
}

fn detail(verb: &str, fields: &Fields, changes: Value) -> Value {
    json!({
        "verb": verb, "listen": fields.listen().to_string(), "protocol": fields.protocol,
        "target_ip": fields.target_ip, "target_port": fields.target_port,
        "instance_id": fields.instance_id, "instance_port": fields.instance_port,
        "enabled": fields.enabled, "changes": changes,
    })
}

async fn note(
    ctx: &Ctx,
    tx: &mut Tx,
    doer: &Doer,
    id: ForwardId,
    detail: Value,
) -> Result<(), DbError> {
    let entry = Entry {
        doer,
        action: ForwardsWrite::NAME,
        target_kind: "forward",
        target_id: id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    audit::record(tx, ctx.clock.now(), &entry).await
}
