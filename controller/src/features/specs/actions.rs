//! The verbs: create, change, delete.

use serde_json::{Value, json};
use tianqi_common::id::SpecId;

use super::model::{PatchSpec, Spec, SpecFields};
use super::store;
use crate::authz::policy::{Permission, SpecsWrite};
use crate::authz::resource::{Resource, SpecRef};
use crate::authz::{Actor, Anything, Grant};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::core::idempotency::{self, Claim, RequestKey};
use crate::features::Ctx;

/// Makes a spec.
///
/// # Errors
///
/// `bad_field` (422), `duplicate` (409).
pub(super) async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, SpecsWrite>,
    fields: SpecFields,
    key: Option<&RequestKey>,
) -> Result<Spec> {
    fields.check()?;
    let (id, now) = (SpecId::new(), ctx.clock.now());
    let mut tx = ctx.db.begin().await?;
    if let Claim::Again(first) =
        idempotency::claim(&mut tx, grant.actor().id, key, id.0, now).await?
    {
        drop(tx);
        let row = store::get(&ctx.db, SpecId(first)).await?;
        return row.map(Spec::from).ok_or_else(idempotency::made_and_gone);
    }
    store::insert(&mut tx, id, &fields, now).await?;
    let detail = json!({ "verb": "create", "spec": fields });
    note(ctx, &mut tx, grant.actor(), id, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Catalogue);
    read(ctx, id).await
}

/// Changes a spec.
///
/// # Errors
///
/// `bad_field` (422), `duplicate` (409).
pub(super) async fn change(
    ctx: &Ctx,
    grant: &Grant<SpecRef, SpecsWrite>,
    patch: PatchSpec,
) -> Result<Spec> {
    let id = grant.resource().id;
    let mut tx = ctx.db.begin().await?;
    let row = store::lock(&mut tx, id).await?.ok_or_else(SpecRef::missing)?;
    let before = Spec::from(row).fields;
    let fields = before.clone().patched(patch)?;
    store::update(&mut tx, id, &fields, ctx.clock.now()).await?;
    let changes = audit::changes(&before, &fields);
    let detail = json!({ "verb": "change", "name": fields.name, "changes": changes });
    note(ctx, &mut tx, grant.actor(), id, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Catalogue);
    read(ctx, id).await
}

/// Removes a spec that no living instance was made from.
///
/// # Errors
///
/// `in_use` (409) with how many.
pub(super) async fn delete(ctx: &Ctx, grant: &Grant<SpecRef, SpecsWrite>) -> Result<()> {
    let id = grant.resource().id;
    let mut tx = ctx.db.begin().await?;
    let row = store::lock(&mut tx, id).await?.ok_or_else(SpecRef::missing)?;
    let uses = store::uses(&mut tx, id).await?;
    if uses > 0 {
        let detail = format!(
            "{uses} instances were made from this spec; delete them first, or take it off the list"
        );
        return Err(Problem::conflict("in_use", detail).with(json!({ "instances": uses })));
    }
    store::delete(&mut tx, id).await?;
    let detail = json!({ "verb": "delete", "spec": Spec::from(row).fields });
    note(ctx, &mut tx, grant.actor(), id, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Catalogue);
    Ok(())
}

pub(super) async fn read(ctx: &Ctx, id: SpecId) -> Result<Spec> {
    store::get(&ctx.db, id).await?.map(Spec::from).ok_or_else(SpecRef::missing)
}

async fn note(ctx: &Ctx, tx: &mut Tx, actor: &Actor, id: SpecId, detail: Value) -> Result<()> {
    let entry = Entry {
        doer: &actor.doer(),
        action: SpecsWrite::NAME,
        target_kind: "spec",
        target_id: id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    Ok(audit::record(tx, ctx.clock.now(), &entry).await?)
}
