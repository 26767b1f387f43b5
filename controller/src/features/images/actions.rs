//! The verbs: create, change, delete.

use serde::Serialize;
use serde_json::Value;
use tianqi_common::id::ImageId;

use super::model::{CreateImage, Image, ImageFields, PatchImage, check_credentials};
use super::store::{self, ImageRow, SealedCredentials, bound_to};
use crate::authz::policy::{ImagesWrite, Permission};
use crate::authz::resource::{ImageRef, Resource};
use crate::authz::{Actor, Anything, Grant};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::core::idempotency::{self, Claim, RequestKey};
use crate::core::patch::Patch;
use crate::core::secret::Secret;
use crate::features::Ctx;

/// Makes an image.
///
/// # Errors
///
/// `bad_field` (422), `duplicate` (409).
pub(super) async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, ImagesWrite>,
    body: CreateImage,
    key: Option<&RequestKey>,
) -> Result<Image> {
    body.check()?;
    let id = ImageId::new();
    let credentials = match (&body.registry_username, &body.registry_password) {
        (Some(username), Some(password)) => Some((username.clone(), seal(ctx, id, password)?)),
        _ => None,
    };
    let fields = ImageFields {
        name: body.name,
        address: body.address,
        description: body.description,
        source: body.source,
        supports_slicing: body.supports_slicing,
        listed: body.listed,
        remark: body.remark,
    };
    let (now, mut tx) = (ctx.clock.now(), ctx.db.begin().await?);
    if let Claim::Again(first) =
        idempotency::claim(&mut tx, grant.actor().id, key, id.0, now).await?
    {
        drop(tx);
        let row = store::get(&ctx.db, ImageId(first)).await?;
        return row.map(Image::from).ok_or_else(idempotency::made_and_gone);
    }
    store::insert(&mut tx, id, &fields, credentials, now).await?;
    note(ctx, &mut tx, grant.actor(), id, "create", &fields, Value::Null).await?;
    tx.commit().await?;
    ctx.events.send(Event::Catalogue);
    read(ctx, id).await
}

/// Changes an image.
///
/// # Errors
///
/// `bad_field` (422), `duplicate` (409).
pub(super) async fn change(
    ctx: &Ctx,
    grant: &Grant<ImageRef, ImagesWrite>,
    mut patch: PatchImage,
) -> Result<Image> {
    let (id, now) = (grant.resource().id, ctx.clock.now());
    let mut tx = ctx.db.begin().await?;
    let row = store::lock(&mut tx, id).await?.ok_or_else(ImageRef::missing)?;
    let old = (row.registry_username.clone(), row.sealed_registry_password.clone());
    let credentials = patched_credentials(ctx, &row, &mut patch)?;
    let before = fields_of(row);
    let fields = before.clone().patched(&mut patch)?;
    let new = credentials.clone().unzip();
    let changes = audit::changes(&Seen::new(&before, old), &Seen::new(&fields, new));
    store::update(&mut tx, id, &fields, credentials, now).await?;
    note(ctx, &mut tx, grant.actor(), id, "change", &fields, changes).await?;
    tx.commit().await?;
    ctx.events.send(Event::Catalogue);
    read(ctx, id).await
}

/// Removes an image that no living instance was made from.
///
/// # Errors
///
/// `in_use` (409) with how many.
pub(super) async fn delete(ctx: &Ctx, grant: &Grant<ImageRef, ImagesWrite>) -> Result<()> {
    let id = grant.resource().id;
    let mut tx = ctx.db.begin().await?;
    let row = store::lock(&mut tx, id).await?.ok_or_else(ImageRef::missing)?;
    let uses = store::uses(&mut tx, id).await?;
    if uses > 0 {
        let detail = format!(
            "{uses} instances were made from this image; delete them first, or take it off the list"
        );
        return Err(
            Problem::conflict("in_use", detail).with(serde_json::json!({ "instances": uses }))
        );
    }
    store::delete(&mut tx, id).await?;
    note(ctx, &mut tx, grant.actor(), id, "delete", &fields_of(row), Value::Null).await?;
    tx.commit().await?;
    ctx.events.send(Event::Catalogue);
    Ok(())
}

pub(super) async fn read(ctx: &Ctx, id: ImageId) -> Result<Image> {
    let row = store::get(&ctx.db, id).await?;
    row.map(Image::from).ok_or_else(ImageRef::missing)
}

fn fields_of(row: ImageRow) -> ImageFields {
    ImageFields {
        name: row.name,
        address: row.address,
        description: row.description,
        source: row.source,
        supports_slicing: row.supports_slicing,
        listed: row.listed,
        remark: row.remark,
    }
}

/// Lays the credentials of a change over those that are stored. A new account needs its own password.
fn patched_credentials(
    ctx: &Ctx,
    row: &ImageRow,
    patch: &mut PatchImage,
) -> Result<SealedCredentials> {
    let username = std::mem::take(&mut patch.registry_username);
    match (username, std::mem::take(&mut patch.registry_password)) {
        (Patch::Clear, Patch::Leave | Patch::Clear) => Ok(None),
        (Patch::Leave, Patch::Leave) => {
            Ok(row.registry_username.clone().zip(row.sealed_registry_password.clone()))
        }
        (username, password) => {
            let username = username.over(row.registry_username.clone());
            let password = password.over(None);
            check_credentials(username.as_deref(), password.as_ref().map(Secret::expose))?;
            match (username, password) {
                (Some(username), Some(password)) => {
                    Ok(Some((username, seal(ctx, ImageId(row.id), &password)?)))
                }
                _ => Ok(None),
            }
        }
    }
}

fn seal(ctx: &Ctx, id: ImageId, password: &Secret) -> Result<Vec<u8>> {
    let sealed = ctx.seal.seal(&bound_to(id.0), password.expose().as_bytes());
    sealed.map_err(|error| Problem::internal(&error))
}

/// What of an image the audit compares; of the password, whether it is another one.
#[derive(Serialize)]
struct Seen<'a> {
    #[serde(flatten)]
    fields: &'a ImageFields,
    registry_username: Option<String>,
    sealed_registry_password: Option<Vec<u8>>,
}

impl<'a> Seen<'a> {
    fn new(fields: &'a ImageFields, credentials: (Option<String>, Option<Vec<u8>>)) -> Self {
        let (registry_username, sealed_registry_password) = credentials;
        Self { fields, registry_username, sealed_registry_password }
    }
}

async fn note(
    ctx: &Ctx,
    tx: &mut Tx,
    actor: &Actor,
    id: ImageId,
    verb: &str,
    fields: &ImageFields,
    changes: Value,
) -> Result<()> {
    let detail = serde_json::json!({
        "verb": verb, "name": fields.name, "address": fields.address, "listed": fields.listed,
        "changes": changes,
    });
    let entry = Entry {
        doer: &actor.doer(),
        action: ImagesWrite::NAME,
        target_kind: "image",
        target_id: id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    Ok(audit::record(tx, ctx.clock.now(), &entry).await?)
}
