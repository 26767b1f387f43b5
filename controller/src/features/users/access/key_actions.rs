//! The verbs of SSH public keys: list, add, remove.

use serde_json::json;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::actions::{What, begin, finish, note};
use super::model::{AddSshKey, SshKeyView};
use crate::authz::policy::MeSshKeys;
use crate::authz::ssh_key::{self, SshKey};
use crate::authz::{Actor, Anything, Grant};
use crate::core::error::{Problem, Result};
use crate::core::page::{Page, PageQuery};
use crate::core::text;
use crate::features::Ctx;

const SORTS: &[(&str, &str)] =
    &[("name", "name"), ("created_at", "created_at"), ("last_used_at", "last_used_at")];
/// Longest name of a key, in characters.
const NAME_MAX: usize = 50;
/// Most keys of one account. Each is tried by its fingerprint, so many cost nothing but a long list.
const KEYS_MAX: i64 = 100;

/// Lists the SSH public keys of `user`.
///
/// # Errors
///
/// `bad_page` and `bad_sort` (422).
pub(super) async fn keys(ctx: &Ctx, user: UserId, query: &PageQuery) -> Result<Page<SshKeyView>> {
    let paging = query.check(SORTS, "name", "id")?;
    let (rows, total) = ssh_key::page(&ctx.db, user, &paging).await?;
    Ok(paging.page(rows.into_iter().map(SshKeyView::from).collect(), total))
}

/// Adds an SSH public key of the caller's.
///
/// # Errors
///
/// `bad_field` and `bad_ssh_key` (422), `too_many_ssh_keys` and `duplicate` (409).
pub(super) async fn add(
    ctx: &Ctx,
    grant: &Grant<Anything, MeSshKeys>,
    body: AddSshKey,
) -> Result<SshKey> {
    let (actor, now) = (grant.actor(), ctx.clock.now());
    text::line("name", &body.name, 1, NAME_MAX)?;
    let parsed = ssh_key::parse(&body.public_key)?;
    let key = SshKey {
        id: Uuid::now_v7(),
        user: actor.id,
        name: body.name,
        fingerprint: parsed.fingerprint,
        algorithm: parsed.algorithm,
        public_key: parsed.public_key,
        created_at: now,
        last_used_at: None,
        last_used_address: String::new(),
    };
    let mut tx = ctx.db.begin().await?;
    if ssh_key::count(&mut tx, actor.id).await? >= KEYS_MAX {
        let detail = format!("this account has {KEYS_MAX} SSH keys already; remove one");
        return Err(Problem::conflict("too_many_ssh_keys", detail));
    }
    ssh_key::insert(&mut tx, &key).await?;
    let detail = json!({
        "event": "ssh_key_added", "name": key.name, "fingerprint": key.fingerprint,
        "algorithm": key.algorithm,
    });
    let what = What { action: "me:ssh_keys", kind: "ssh_key", id: key.id.to_string() };
    note(&mut tx, now, actor, what, detail).await?;
    tx.commit().await?;
    Ok(key)
}

/// Removes an SSH public key of `user`; sessions that were begun with it end.
///
/// # Errors
///
/// `no_such_ssh_key` (404), `beyond_own_rights` (403).
pub(super) async fn remove(
    ctx: &Ctx,
    actor: &Actor,
    action: &'static str,
    user: UserId,
    id: Uuid,
) -> Result<()> {
    let mut tx = begin(ctx, actor, user).await?;
    let Some(key) = ssh_key::remove(&mut tx, user, id).await? else {
        return Err(Problem::not_found("no_such_ssh_key", "there is no such SSH key"));
    };
    let what = What { action, kind: "ssh_key", id: id.to_string() };
    let detail = json!({
        "event": "ssh_key_removed", "name": key.name, "fingerprint": key.fingerprint,
        "user_id": user,
    });
    finish(ctx, tx, actor, what, detail, user).await
}
