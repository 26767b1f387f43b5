//! The verbs: list, create, change, delete.

use serde_json::json;

use super::model::{CreateRole, PatchRole, RoleQuery, RoleView, checked};
use super::store::{self, RoleRow};
use crate::authz::policy::{Permission, RolesWrite};
use crate::authz::resource::{Resource, RoleRef};
use crate::authz::{Actor, Anything, Grant, Role, RoleName};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::core::timestamp::Timestamp;
use crate::features::Ctx;

/// Returns the roles that match, built-in ones first, then by name. There are few, so that they are
/// read whole.
pub(super) async fn list(ctx: &Ctx, query: &RoleQuery) -> Result<Vec<RoleView>> {
    let uses = store::uses(&ctx.db).await?;
    let built_in = RoleName::BUILT_IN.iter().filter_map(Role::built_in).map(|role| RoleView {
        name: role.name().clone(),
        built_in: true,
        description: String::new(),
        permissions: role.allowances(),
        accounts: 0,
        created_at: None,
        updated_at: None,
    });
    let mut views: Vec<RoleView> = built_in.collect();
    for row in store::all(&ctx.db).await? {
        views.push(view(row)?);
    }
    for view in &mut views {
        let found = uses.iter().find(|row| row.role == view.name.as_str());
        view.accounts = found.map_or(0, |row| row.accounts);
    }
    let part = query.name.as_deref().unwrap_or_default().to_lowercase();
    views.retain(|view| view.name.as_str().contains(&part));
    Ok(views)
}

fn view(row: RoleRow) -> Result<RoleView> {
    let role = Role::of_row(&row.name, Some(&row.permissions))?;
    Ok(RoleView {
        name: role.name().clone(),
        built_in: false,
        description: row.description,
        permissions: role.allowances(),
        accounts: 0,
        created_at: Some(Timestamp::from_stored(row.created_at)),
        updated_at: Some(Timestamp::from_stored(row.updated_at)),
    })
}

/// Returns one role.
///
/// # Errors
///
/// `no_such_role` (404).
pub(super) async fn read(ctx: &Ctx, name: &RoleName) -> Result<RoleView> {
    let all = list(ctx, &RoleQuery::default()).await?;
    all.into_iter().find(|view| view.name == *name).ok_or_else(RoleRef::missing)
}

/// Makes a role.
///
/// # Errors
///
/// `bad_field` (422), `duplicate` and `too_many_roles` (409), `beyond_own_rights` (403).
pub(super) async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, RolesWrite>,
    body: CreateRole,
) -> Result<RoleView> {
    let role = checked(&body.name, &body.description, &body.permissions)?;
    grant.actor().covers(&role)?;
    let now = ctx.clock.now();
    let mut tx = ctx.db.begin().await?;
    if store::count(&mut tx).await? >= store::ROLES_MAX {
        let detail = format!("there are {} roles already; delete one first", store::ROLES_MAX);
        return Err(Problem::conflict("too_many_roles", detail));
    }
    store::insert(&mut tx, &role, &body.description, now).await?;
    let detail = json!({ "verb": "create", "permissions": role.allowances() });
    note(ctx, &mut tx, grant.actor(), role.name(), detail).await?;
    tx.commit().await?;
    read(ctx, role.name()).await
}

/// Changes a role; whoever holds a grant under it looks at it again at once.
///
/// # Errors
///
/// `bad_field` (422), `built_in` and `own_role` (409), `beyond_own_rights` (403).
pub(super) async fn change(
    ctx: &Ctx,
    grant: &Grant<RoleRef, RolesWrite>,
    patch: PatchRole,
) -> Result<RoleView> {
    let (name, actor) = (&grant.resource().name, grant.actor());
    refuse_built_in(name)?;
    if actor.role.name() == name {
        let detail = "nobody changes the role that they have; ask somebody with another one";
        return Err(Problem::conflict("own_role", detail));
    }
    let mut tx = ctx.db.begin().await?;
    let row = store::lock(&mut tx, name).await?.ok_or_else(RoleRef::missing)?;
    let old = Role::of_row(&row.name, Some(&row.permissions))?;
    let description = patch.description.over_required("description", row.description.clone())?;
    let permissions = patch.permissions.over_required("permissions", old.allowances())?;
    let new = checked(name, &description, &permissions)?;
    actor.covers(&old)?;
    actor.covers(&new)?;
    store::update(&mut tx, &new, &description, ctx.clock.now()).await?;
    let view = |role: &Role, description: &str| json!({ "description": description, "permissions": role.allowances() });
    let changes = audit::changes(&view(&old, &row.description), &view(&new, &description));
    let detail = json!({ "verb": "change", "changes": changes });
    note(ctx, &mut tx, actor, name, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Roles);
    read(ctx, name).await
}

/// Removes a role that no account has.
///
/// # Errors
///
/// `built_in`, `in_use` (409), `beyond_own_rights` (403).
pub(super) async fn delete(ctx: &Ctx, grant: &Grant<RoleRef, RolesWrite>) -> Result<()> {
    let (name, actor) = (&grant.resource().name, grant.actor());
    refuse_built_in(name)?;
    let mut tx = ctx.db.begin().await?;
    let row = store::lock(&mut tx, name).await?.ok_or_else(RoleRef::missing)?;
    let old = Role::of_row(&row.name, Some(&row.permissions))?;
    actor.covers(&old)?;
    let accounts = store::accounts(&mut tx, name).await?;
    if accounts > 0 {
        let detail = format!("{accounts} accounts have this role; give them another first");
        return Err(Problem::conflict("in_use", detail).with(json!({ "accounts": accounts })));
    }
    store::delete(&mut tx, name).await?;
    let detail = json!({ "verb": "delete", "before": old.allowances() });
    note(ctx, &mut tx, actor, name, detail).await?;
    Ok(tx.commit().await?)
}

fn refuse_built_in(name: &RoleName) -> Result<()> {
    if name.is_built_in() {
        let detail = format!("the role {name} is built in and stays; make one of your own");
        return Err(Problem::conflict("built_in", detail));
    }
    Ok(())
}

async fn note(
    ctx: &Ctx,
    tx: &mut Tx,
    actor: &Actor,
    name: &RoleName,
    detail: serde_json::Value,
) -> Result<()> {
    let entry = Entry {
        doer: &actor.doer(),
        action: RolesWrite::NAME,
        target_kind: "role",
        target_id: name.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    Ok(audit::record(tx, ctx.clock.now(), &entry).await?)
}
