//! The verbs of nodes: change, cordon, drain, remove, and how a card may be used.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tianqi_common::id::NodeId;
use tianqi_common::wire::CloseCode;
use tianqi_scheduler::GpuMode;
use utoipa::ToSchema;

use super::model::{NodeFields, NodeFilter, NodePatch};
use super::pem::DockerTls;
use super::store::{cards, join, nodes};
use super::view::{DrainedNode, GpuView, NodeView, SavedNode};
use super::{settings, view};
use crate::authz::policy::{NodesRead, NodesWrite};
use crate::authz::resource::{NodeRef, Resource};
use crate::authz::{Anything, Grant};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::event::Event;
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// Most instances that may be allowed on one card.
const SHARES_MOST: u32 = 100;

type Write = Grant<NodeRef, NodesWrite>;

/// How a drain is done.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Whether the instances on the node are stopped. Without it they run on, and only new work
    /// is held back.
    #[serde(default)]
    pub stop_instances: bool,
}

/// How a card may be used. What is left out stays. Instances that hold the card keep it.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuPatch {
    /// `shared`: in slices, or whole while it is empty; `whole`; `disabled`.
    #[schema(value_type = Option<String>, example = "shared")]
    pub mode: Option<GpuMode>,
    /// Most instances on the card, 1 to 100.
    pub max_shares: Option<u32>,
}

/// What of a node the audit compares; of the PEMs, whether they are others.
#[derive(Serialize)]
struct Seen {
    #[serde(flatten)]
    fields: NodeFields,
    sealed_docker_tls: Option<Vec<u8>>,
}

async fn record(
    tx: &mut Tx,
    ctx: &Ctx,
    grant: &Write,
    verb: &'static str,
    detail: Value,
) -> Result<()> {
    let entry = Entry {
        doer: &grant.actor().doer(),
        action: verb,
        target_kind: "node",
        target_id: grant.resource().id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    Ok(audit::record(tx, ctx.clock.now(), &entry).await?)
}

/// Lists nodes.
///
/// # Errors
///
/// `bad_page`, `bad_sort` (422).
pub async fn list(
    ctx: &Ctx,
    _grant: &Grant<Anything, NodesRead>,
    filter: &NodeFilter,
    page: &PageQuery,
) -> Result<Page<NodeView>> {
    let paging = page.check(nodes::SORT, "name", "n.id")?;
    let page = nodes::page(&ctx.db, filter, &paging).await?;
    let ids: Vec<_> = page.items.iter().map(|row| row.id).collect();
    let models = cards::models(&ctx.db, &ids).await?;
    let items = page.items.into_iter().map(|row| NodeView::new(row, &models)).collect();
    Ok(Page { items, total: page.total, page: page.page, page_size: page.page_size })
}

/// Reads one node with its inventory.
///
/// # Errors
///
/// `no_such_node` (404).
pub async fn get(ctx: &Ctx, grant: &Grant<NodeRef, NodesRead>) -> Result<NodeView> {
    let node = grant.resource().id;
    let inventory = nodes::inventory(&ctx.db, node).await?;
    let inventory = inventory.and_then(|json| serde_json::from_str(&json).ok());
    Ok(NodeView { inventory, ..read(ctx, node).await? })
}

async fn read(ctx: &Ctx, node: NodeId) -> Result<NodeView> {
    let row = nodes::get(&ctx.db, node).await?.ok_or_else(NodeRef::missing)?;
    let models = cards::models(&ctx.db, &[row.id]).await?;
    Ok(NodeView::new(row, &models))
}

/// Changes what an admin may set. Settings of the agent are tried and pushed; they are saved
/// whatever trying them gave.
///
/// # Errors
///
/// `bad_field`, `bad_pem` (422), `duplicate` (409) when the name is taken.
pub async fn update(ctx: &Ctx, grant: &Write, patch: &NodePatch) -> Result<SavedNode> {
    let node = grant.resource().id;
    let mut tx = ctx.db.begin().await?;
    let row = nodes::lock_for_edit(&mut tx, node).await?.ok_or_else(NodeRef::missing)?;
    let mut sealed = row.sealed_docker_tls.clone();
    if patch.touches_tls() {
        let mut tls = DockerTls::open(&ctx.seal, node, sealed.as_deref())?;
        tls.apply(patch)?;
        sealed = tls.seal(&ctx.seal, node)?;
    }
    let mut fields = NodeFields {
        name: row.name,
        region: row.region,
        public_ip: row.public_ip,
        private_ip: row.private_ip,
        ssh_port: u16::try_from(row.ssh_port).unwrap_or(22),
        ssh_user: row.ssh_user,
        remark: row.remark,
        listed: row.listed,
        hami_dir: row.hami_dir,
        docker_endpoint: row.docker_endpoint,
    };
    let before = Seen { fields: fields.clone(), sealed_docker_tls: row.sealed_docker_tls };
    patch.apply(&mut fields)?;
    let after = Seen { fields: fields.clone(), sealed_docker_tls: sealed.clone() };
    nodes::update(&mut tx, ctx.clock.now(), node, &fields, sealed).await?;
    let detail = json!({ "name": fields.name, "changes": audit::changes(&before, &after) });
    record(&mut tx, ctx, grant, "nodes:update", detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Node(node));
    let check = if patch.touches_settings() { try_settings(ctx, node).await? } else { None };
    Ok(SavedNode { node: read(ctx, node).await?, check })
}

async fn try_settings(ctx: &Ctx, node: NodeId) -> Result<Option<view::SettingsCheck>> {
    let Some(settings) = settings::of_node(ctx, node).await? else { return Ok(None) };
    ctx.link.settings(node, settings.clone());
    Ok(Some(settings::check(ctx, node, settings).await))
}

/// Holds new work back from a node, or lets it in again.
///
/// # Errors
///
/// `no_such_node` (404).
pub async fn set_cordoned(ctx: &Ctx, grant: &Write, cordoned: bool) -> Result<NodeView> {
    let node = grant.resource().id;
    let verb = if cordoned { "nodes:cordon" } else { "nodes:uncordon" };
    let mut tx = ctx.db.begin().await?;
    let is_other = nodes::set_cordoned(&mut tx, ctx.clock.now(), node, cordoned).await?;
    let detail = json!({ "changes": cordon_changes(is_other, cordoned) });
    record(&mut tx, ctx, grant, verb, detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Node(node));
    read(ctx, node).await
}

fn cordon_changes(is_other: bool, cordoned: bool) -> Value {
    let view = |cordoned: bool| json!({ "cordoned": cordoned });
    audit::changes(&view(cordoned != is_other), &view(cordoned))
}

/// Cordons a node and, when asked to, has the instances on it stopped. Stopped instances keep
/// their disk and data on the node; nothing is deleted.
///
/// # Errors
///
/// `no_such_node` (404).
pub async fn drain(ctx: &Ctx, grant: &Write, drain: Drain) -> Result<DrainedNode> {
    let node = grant.resource().id;
    let mut tx = ctx.db.begin().await?;
    let is_other = nodes::set_cordoned(&mut tx, ctx.clock.now(), node, true).await?;
    let running = nodes::count_running(&mut tx, node).await?;
    let detail = json!({
        "stop_instances": drain.stop_instances, "running": running,
        "changes": cordon_changes(is_other, true),
    });
    record(&mut tx, ctx, grant, "nodes:drain", detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Node(node));
    if drain.stop_instances {
        ctx.events.send(Event::Drain(node));
    }
    let stopping = drain.stop_instances && running > 0;
    Ok(DrainedNode { node: read(ctx, node).await?, running, stopping })
}

/// Removes a node: its certificates are revoked and its connection is closed at once.
///
/// # Errors
///
/// `node_in_use` (409) while instances are on it.
pub async fn delete(ctx: &Ctx, grant: &Write) -> Result<()> {
    let node = grant.resource().id;
    let now = ctx.clock.now();
    let mut tx = ctx.db.begin().await?;
    let row = nodes::lock_for_edit(&mut tx, node).await?.ok_or_else(NodeRef::missing)?;
    let instances = nodes::count_instances(&mut tx, node).await?;
    if instances > 0 {
        let detail = format!(
            "{instances} instances are on this node; delete them first, then remove the node"
        );
        let problem = Problem::conflict("node_in_use", detail);
        return Err(problem.with(json!({ "instances": instances })));
    }
    join::revoke_certificates(&mut tx, now, node).await?;
    nodes::delete(&mut tx, node).await?;
    record(&mut tx, ctx, grant, "nodes:delete", json!({ "name": row.name })).await?;
    tx.commit().await?;
    ctx.link.close(node, CloseCode::Unauthorised, "the node was removed; join with a new token");
    ctx.events.send(Event::Node(node));
    Ok(())
}

/// Lists the cards of a node with what is granted of them.
///
/// # Errors
///
/// `internal` (500) when the database fails.
pub async fn gpus(ctx: &Ctx, grant: &Grant<NodeRef, NodesRead>) -> Result<Vec<GpuView>> {
    gpus_of(ctx, grant.resource().id).await
}

async fn gpus_of(ctx: &Ctx, node: NodeId) -> Result<Vec<GpuView>> {
    let cards = cards::of_node(&ctx.db, node).await?;
    let grants = cards::grants(&ctx.db, node).await?;
    Ok(GpuView::list(cards, &grants))
}

/// Says how a card may be used from now on.
///
/// # Errors
///
/// `no_such_gpu` (404), `bad_field` (422).
pub async fn set_gpu(ctx: &Ctx, grant: &Write, uuid: &str, patch: GpuPatch) -> Result<GpuView> {
    let missing = || Problem::not_found("no_such_gpu", "this node has no such card");
    let node = grant.resource().id;
    if let Some(shares) = patch.max_shares.filter(|shares| !(1..=SHARES_MOST).contains(shares)) {
        let detail = format!("max_shares is 1 to {SHARES_MOST}, not {shares}");
        return Err(Problem::invalid("bad_field", detail));
    }
    let mut tx = ctx.db.begin().await?;
    let card = cards::lock(&mut tx, uuid).await?;
    let card = card.filter(|card| card.node_id == node.0).ok_or_else(missing)?;
    let mode = patch.mode.map_or(card.mode.as_str(), |mode| mode_word(mode));
    let shares = patch.max_shares.map_or(card.max_shares, i64::from);
    cards::update_use(&mut tx, ctx.clock.now(), uuid, mode, shares).await?;
    let view = |mode: &str, shares: i64| json!({ "mode": mode, "max_shares": shares });
    let changes = audit::changes(&view(&card.mode, card.max_shares), &view(mode, shares));
    let detail = json!({ "gpu": uuid, "changes": changes });
    record(&mut tx, ctx, grant, "nodes:gpu", detail).await?;
    tx.commit().await?;
    ctx.events.send(Event::Node(node));
    let gpus = gpus_of(ctx, node).await?;
    gpus.into_iter().find(|gpu| gpu.uuid == uuid).ok_or_else(missing)
}

fn mode_word(mode: GpuMode) -> &'static str {
    match mode {
        GpuMode::Whole => "whole",
        GpuMode::Shared => "shared",
        GpuMode::Disabled => "disabled",
    }
}
