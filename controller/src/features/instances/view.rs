//! Instances as the API shows them, and lists of them.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tianqi_common::id::{InstanceId, UserId};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::fleet::placeholders;
use super::lifecycle::{Desired, Phase, State};
use super::model::SpecSnapshot;
use super::store;
use crate::core::db::{Db, DbError, Filter, Value, args, row};
use crate::core::error::{Problem, Result};
use crate::core::page::{Page, PageQuery};

/// An instance.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InstanceView {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// What should be.
    pub desired: Desired,
    /// Why it is in its phase, as a stable word; empty when there is nothing to say.
    pub reason_code: String,
    /// Why it is in its phase, in one sentence.
    pub reason: String,
    /// Numbers and names behind the reason.
    pub reason_detail: Option<Json>,
    /// What may be asked of it now: `start`, `stop`, `restart`, `delete`.
    pub possible: Vec<String>,
    /// Whose it is.
    pub owner_id: Uuid,
    /// The owner's name.
    pub owner_name: Option<String>,
    /// Its image.
    pub image_id: Uuid,
    /// The image's name; none when the image was deleted.
    pub image_name: Option<String>,
    /// The image's address when the instance was created.
    pub image_address: String,
    /// Its spec.
    pub spec_id: Uuid,
    /// The spec's name when the instance was created.
    pub spec_name: String,
    /// The spec when the instance was created.
    pub spec: SpecView,
    /// Where it is, or was and still has its disk.
    pub node_id: Option<Uuid>,
    /// That node's name.
    pub node_name: Option<String>,
    /// The node that was asked for.
    pub requested_node_id: Option<Uuid>,
    /// The cards it holds now.
    pub gpus: Vec<GpuView>,
    /// Docker's id of its container.
    pub container_id: Option<String>,
    /// Docker's name of its container.
    pub container_name: String,
    /// What the node could and could not enforce.
    pub limits: Json,
    /// Whether its slice is enforced; none when it has no slice or nothing is known yet.
    pub slice_enforced: Option<bool>,
    /// Its place in the queue, while it waits.
    pub queue: Option<QueueView>,
    /// What happens when its process ends by itself.
    pub restart_policy: String,
    /// Its priority in the queue.
    pub priority: i64,
    /// Restarts by policy since the last start.
    pub restarts: i64,
    /// How its process ended last.
    pub exit_code: Option<i64>,
    /// Free text.
    pub remark: String,
    /// When its container last started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When its row changed last.
    pub updated_at: DateTime<Utc>,
}

/// The size of an instance.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SpecView {
    /// The model of card asked for; any when none.
    pub gpu_model: Option<String>,
    /// Cards.
    pub gpu_count: u32,
    /// Memory of a slice.
    pub gpu_memory_mib: Option<u64>,
    /// Cores of a slice, in percent.
    pub gpu_core_percent: Option<u32>,
    /// Whether it takes a part of one card.
    pub slicing: bool,
    /// CPU cores.
    pub cpu_cores: f64,
    /// Memory.
    pub memory_mib: u64,
    /// Size of the writable layer; 0 for no limit.
    pub system_disk_gib: u64,
    /// Size of the volume at `/data`; 0 for none.
    pub data_disk_gib: u64,
    /// Price as a decimal.
    pub price_per_hour: String,
}

/// A card, or a part of one, that an instance holds.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GpuView {
    /// NVML's uuid.
    pub uuid: String,
    /// NVML's model name.
    pub model: Option<String>,
    /// Whether the whole card is its.
    pub exclusive: bool,
    /// Memory granted; none when the card is its as a whole.
    pub memory_mib: Option<i64>,
    /// Cores granted, in percent.
    pub core_percent: i64,
    /// Whether the card is imaginary.
    pub simulated: bool,
}

/// A place in the queue.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QueueView {
    /// From 1.
    pub position: usize,
    /// How many wait.
    pub length: usize,
    /// Since when it waits.
    pub waiting_since: DateTime<Utc>,
}

/// One line of an instance's history.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EventView {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// A stable word.
    pub kind: String,
    /// One sentence.
    pub message: String,
}

/// Which instances a list shows.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct InstanceQuery {
    /// Part of the name.
    pub name: Option<String>,
    /// Whose.
    pub owner_id: Option<Uuid>,
    /// Of which image.
    pub image_id: Option<Uuid>,
    /// Of which spec.
    pub spec_id: Option<Uuid>,
    /// On which node.
    pub node_id: Option<Uuid>,
    /// In which phase.
    pub phase: Option<String>,
    /// Part of the container's id.
    pub container_id: Option<String>,
    /// Created at or after.
    pub created_after: Option<DateTime<Utc>>,
    /// Created before.
    pub created_before: Option<DateTime<Utc>>,
    /// Page, from 1 (the default).
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
    /// `created_at` (falling when left out), `name` or `phase`; `-` before it for falling order.
    pub sort: Option<String>,
}

row! {
    struct ViewRow {
        id: Uuid,
        name: String,
        phase: String,
        desired: String,
        reason_code: String,
        reason: String,
        reason_detail: String,
        owner_id: Uuid,
        owner_name: Option<String>,
        image_id: Uuid,
        image_name: Option<String>,
        image_address: String,
        spec_id: Uuid,
        spec: String,
        node_id: Option<Uuid>,
        node_name: Option<String>,
        requested_node_id: Option<Uuid>,
        container_id: Option<String>,
        container_name: String,
        limits: String,
        restart_policy: String,
        priority: i64,
        restarts: i64,
        exit_code: Option<i64>,
        remark: String,
        queued_at: i64,
        started_at: Option<i64>,
        created_at: i64,
        updated_at: i64,
    }
}

row! {
    struct HeldRow {
        instance_id: Uuid,
        gpu_uuid: String,
        memory_mib: i64,
        cores: i64,
        exclusive: bool,
        model: Option<String>,
        simulated: Option<bool>,
    }
}

const SELECT: &str = "select i.id, i.name, i.phase, i.desired, i.reason_code, i.reason, \
     i.reason_detail, i.owner_id, u.name as owner_name, i.image_id, m.name as image_name, \
     i.image_address, i.spec_id, i.spec, i.node_id, n.name as node_name, i.requested_node_id, \
     i.container_id, i.container_name, i.limits, i.restart_policy, i.priority, i.restarts, \
     i.exit_code, i.remark, i.queued_at, i.started_at, i.created_at, i.updated_at \
     from instances i left join users u on u.id = i.owner_id \
     left join images m on m.id = i.image_id left join nodes n on n.id = i.node_id";

/// Columns that a list may be sorted by.
const SORTABLE: &[(&str, &str)] =
    &[("created_at", "i.created_at"), ("name", "i.name"), ("phase", "i.phase")];

/// Returns one page of the live instances of `owner`, or of everybody.
///
/// # Errors
///
/// `bad_page`, `bad_sort`, `bad_phase` (422).
pub async fn list(
    db: &Db,
    owner: Option<UserId>,
    query: InstanceQuery,
) -> Result<Page<InstanceView>> {
    let page = PageQuery { page: query.page, page_size: query.page_size, sort: query.sort.clone() };
    let paging = page.check(SORTABLE, "-created_at", "i.id")?;
    if let Some(phase) = query.phase.as_deref()
        && Phase::from_word(phase).is_none()
    {
        let words: Vec<_> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
        let detail = format!("a phase is one of {}", words.join(", "));
        return Err(Problem::invalid("bad_phase", detail));
    }
    let (condition, values) = Filter::new()
        .and("i.deleted_at is null")
        .equals("i.owner_id", owner)
        .equals("i.owner_id", query.owner_id)
        .equals("i.image_id", query.image_id)
        .equals("i.spec_id", query.spec_id)
        .equals("i.node_id", query.node_id)
        .equals("i.phase", query.phase)
        .contains("i.name", query.name.as_deref())
        .contains("i.container_id", query.container_id.as_deref())
        .compare("i.created_at", ">=", query.created_after.map(|at| at.timestamp_millis()))
        .compare("i.created_at", "<", query.created_before.map(|at| at.timestamp_millis()))
        .build();
    let count = format!("select count(*) from instances i{condition}");
    let total = db.number(&count, values.clone()).await?;
    let sql = format!("{SELECT}{condition}{}", paging.sql());
    let rows: Vec<ViewRow> = db.all(&sql, values).await?;
    Ok(paging.page(views(db, rows).await?, total))
}

/// Returns one live instance.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn one(db: &Db, id: InstanceId) -> Result<Option<InstanceView>, DbError> {
    let sql = format!("{SELECT} where i.id = $1 and i.deleted_at is null");
    let rows: Vec<ViewRow> = db.all(&sql, args![id]).await?;
    Ok(views(db, rows).await?.pop())
}

async fn views(db: &Db, rows: Vec<ViewRow>) -> Result<Vec<InstanceView>, DbError> {
    let mut held = held(db, &rows).await?;
    let is_waiting = rows.iter().any(|row| row.phase == Phase::Pending.as_str());
    let queue = if is_waiting { store::queue_order(db).await? } else { Vec::new() };
    let places: HashMap<Uuid, usize> =
        queue.iter().enumerate().map(|(at, id)| (id.0, at.saturating_add(1))).collect();
    rows.into_iter()
        .map(|row| {
            let gpus = held.remove(&row.id).unwrap_or_default();
            let position = places.get(&row.id).copied();
            view(row, gpus, position.map(|position| (position, queue.len())))
        })
        .collect()
}

async fn held(db: &Db, rows: &[ViewRow]) -> Result<BTreeMap<Uuid, Vec<GpuView>>, DbError> {
    let mut held: BTreeMap<Uuid, Vec<GpuView>> = BTreeMap::new();
    if rows.is_empty() {
        return Ok(held);
    }
    let sql = format!(
        "select g.instance_id, g.gpu_uuid, g.memory_mib, g.cores, g.exclusive, c.model, \
         c.simulated from gpu_grants g left join node_gpus c on c.uuid = g.gpu_uuid \
         where g.instance_id in {} order by c.pci_bus_id, g.gpu_uuid",
        placeholders(rows.len())
    );
    let ids: Vec<Value> = rows.iter().map(|row| Value::from(row.id)).collect();
    for row in db.all::<HeldRow>(&sql, ids).await? {
        held.entry(row.instance_id).or_default().push(GpuView {
            uuid: row.gpu_uuid,
            model: row.model,
            exclusive: row.exclusive,
            memory_mib: (!row.exclusive).then_some(row.memory_mib),
            core_percent: row.cores,
            simulated: row.simulated.unwrap_or(false),
        });
    }
    Ok(held)
}

/// Turns a stored time into one that prints as RFC 3339.
#[must_use]
pub fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

fn view(
    row: ViewRow,
    gpus: Vec<GpuView>,
    place: Option<(usize, usize)>,
) -> Result<InstanceView, DbError> {
    let corrupt = |column| move || DbError::Corrupt { column, problem: "unknown word".to_owned() };
    let phase = Phase::from_word(&row.phase).ok_or_else(corrupt("instances.phase"))?;
    let desired = Desired::from_word(&row.desired).ok_or_else(corrupt("instances.desired"))?;
    let spec: SpecSnapshot = serde_json::from_str(&row.spec).map_err(|error| DbError::Corrupt {
        column: "instances.spec",
        problem: error.to_string(),
    })?;
    let limits: Json = serde_json::from_str(&row.limits).unwrap_or(Json::Array(Vec::new()));
    let possible = State::new(desired, phase).possible();
    Ok(InstanceView {
        id: row.id,
        name: row.name,
        phase,
        desired,
        reason_code: row.reason_code,
        reason: row.reason,
        reason_detail: serde_json::from_str(&row.reason_detail).ok(),
        possible: possible.into_iter().map(str::to_owned).collect(),
        owner_id: row.owner_id,
        owner_name: row.owner_name,
        image_id: row.image_id,
        image_name: row.image_name,
        image_address: row.image_address,
        spec_id: row.spec_id,
        spec_name: spec.name.clone(),
        spec: spec_view(spec),
        node_id: row.node_id,
        node_name: row.node_name,
        requested_node_id: row.requested_node_id,
        gpus,
        container_id: row.container_id,
        container_name: row.container_name,
        slice_enforced: slice_enforced(&limits),
        limits,
        queue: place.map(|(position, length)| QueueView {
            position,
            length,
            waiting_since: time(row.queued_at),
        }),
        restart_policy: row.restart_policy,
        priority: row.priority,
        restarts: row.restarts,
        exit_code: row.exit_code,
        remark: row.remark,
        started_at: row.started_at.map(time),
        created_at: time(row.created_at),
        updated_at: time(row.updated_at),
    })
}

fn slice_enforced(limits: &Json) -> Option<bool> {
    let slice = limits.as_array()?.iter().find(|limit| limit["kind"] == "slice")?;
    slice["enforced"].as_bool()
}

fn spec_view(spec: SpecSnapshot) -> SpecView {
    let cores = u32::try_from(spec.cpu_millicores).unwrap_or(u32::MAX);
    SpecView {
        gpu_model: spec.gpu_model,
        gpu_count: spec.gpu_count,
        gpu_memory_mib: spec.gpu_memory_mib,
        gpu_core_percent: spec.gpu_core_percent,
        slicing: spec.slicing,
        cpu_cores: f64::from(cores) / 1_000.0,
        memory_mib: spec.memory_mib,
        system_disk_gib: spec.system_disk_gib,
        data_disk_gib: spec.data_disk_gib,
        price_per_hour: rust_decimal::Decimal::new(spec.price_per_hour_micros, 6)
            .normalize()
            .to_string(),
    }
}

row! {
    struct EventRow { id: Uuid, at: i64, kind: String, message: String }
}

/// Columns that a history may be sorted by.
const EVENT_SORTABLE: &[(&str, &str)] = &[("at", "at")];

/// Returns one page of an instance's history, newest first unless the query says otherwise.
///
/// # Errors
///
/// `bad_page`, `bad_sort` (422).
pub async fn history(db: &Db, id: InstanceId, query: &PageQuery) -> Result<Page<EventView>> {
    let paging = query.check(EVENT_SORTABLE, "-at", "id")?;
    let sql = "select count(*) from instance_events where instance_id = $1";
    let total = db.number(sql, args![id]).await?;
    let sql = format!(
        "select id, at, kind, message from instance_events where instance_id = $1{}",
        paging.sql()
    );
    let rows: Vec<EventRow> = db.all(&sql, args![id]).await?;
    let items = rows
        .into_iter()
        .map(|row| EventView { id: row.id, at: time(row.at), kind: row.kind, message: row.message })
        .collect();
    Ok(paging.page(items, total))
}
