//! What a new instance takes from the images, specs and nodes on offer.

use tianqi_common::id::NodeId;
use uuid::Uuid;

use super::model::{NewInstance, Origin, SpecSnapshot};
use crate::authz::Actor;
use crate::core::db::{Db, args, row};
use crate::core::error::{Problem, Result};

row! {
    struct ImageRow { address: String, supports_slicing: bool, listed: bool }
}

row! {
    struct SpecRow {
        name: String,
        gpu_model: Option<String>,
        gpu_count: i64,
        gpu_memory_mib: Option<i64>,
        gpu_core_percent: Option<i64>,
        slicing: bool,
        cpu_millicores: i64,
        memory_mib: i64,
        system_disk_gib: i64,
        data_disk_gib: i64,
        price_per_hour_micros: i64,
        listed: bool,
    }
}

row! {
    struct NodeRow { listed: bool }
}

/// An image and a spec that go together.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The image's address.
    pub image_address: String,
    /// The spec as it is.
    pub spec: SpecSnapshot,
}

/// Reads what a new instance is made of, and refuses what its owner may not have.
///
/// # Errors
///
/// See [`chosen`]; `no_such_node` and `not_listed` (422).
pub(super) async fn origin(db: &Db, new: &NewInstance, actor: &Actor) -> Result<Origin> {
    let chosen = chosen(db, new.image.0, new.spec.0, actor).await?;
    if let Some(node) = new.node {
        check_node(db, node).await?;
    }
    Ok(Origin { owner: actor.id, image_address: chosen.image_address, spec: chosen.spec })
}

/// Reads an image and a spec. What is not listed is for those who see it.
///
/// # Errors
///
/// `no_such_image`, `no_such_spec`, `not_listed`, `image_cannot_slice` (422).
pub async fn chosen(db: &Db, image: Uuid, spec: Uuid, actor: &Actor) -> Result<Chosen> {
    let sees_all = actor.sees_unlisted();
    let sql = "select address, supports_slicing, listed from images where id = $1";
    let found: Option<ImageRow> = db.first(sql, args![image]).await?;
    let missing = || Problem::invalid("no_such_image", "there is no such image; choose another");
    let image = found.ok_or_else(missing)?;
    if !image.listed && !sees_all {
        return Err(not_listed("image"));
    }
    let sql = "select name, gpu_model, gpu_count, gpu_memory_mib, gpu_core_percent, slicing, \
         cpu_millicores, memory_mib, system_disk_gib, data_disk_gib, price_per_hour_micros, listed \
         from specs where id = $1";
    let found: Option<SpecRow> = db.first(sql, args![spec]).await?;
    let missing = || Problem::invalid("no_such_spec", "there is no such spec; choose another");
    let row = found.ok_or_else(missing)?;
    if !row.listed && !sees_all {
        return Err(not_listed("spec"));
    }
    let spec = snapshot(row);
    if spec.slice().is_some() && !image.supports_slicing {
        let detail = "this image does not support slices of a card; choose a spec without slicing, \
             or another image";
        return Err(Problem::invalid("image_cannot_slice", detail));
    }
    Ok(Chosen { image_address: image.address, spec })
}

async fn check_node(db: &Db, node: NodeId) -> Result<()> {
    let sql = "select listed from nodes where id = $1";
    let Some(row) = db.first::<NodeRow>(sql, args![node]).await? else {
        return Err(Problem::invalid("no_such_node", "there is no such node; choose another"));
    };
    // An unlisted node takes no new work from anybody, so an instance would wait for ever.
    if row.listed { Ok(()) } else { Err(not_listed("node")) }
}

fn not_listed(what: &str) -> Problem {
    Problem::invalid("not_listed", format!("this {what} is not on offer; choose another"))
}

fn snapshot(row: SpecRow) -> SpecSnapshot {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let small = |value: i64| u32::try_from(value).unwrap_or(0);
    SpecSnapshot {
        name: row.name,
        gpu_model: row.gpu_model.filter(|model| !model.trim().is_empty()),
        gpu_count: small(row.gpu_count),
        gpu_memory_mib: row.gpu_memory_mib.map(number).filter(|memory| *memory > 0),
        gpu_core_percent: row.gpu_core_percent.map(small).filter(|cores| *cores > 0),
        slicing: row.slicing,
        cpu_millicores: number(row.cpu_millicores),
        memory_mib: number(row.memory_mib),
        system_disk_gib: number(row.system_disk_gib),
        data_disk_gib: number(row.data_disk_gib),
        price_per_hour_micros: row.price_per_hour_micros,
    }
}
