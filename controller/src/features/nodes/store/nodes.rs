//! The rows of nodes that people see and change.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use uuid::Uuid;

use crate::core::db::{Db, DbError, Filter, Tx, args, row};
use crate::core::page::{Page, Paging};
use crate::features::nodes::model::{NodeFields, NodeFilter};

row! {
    /// A node as it stands in the database, without its inventory and its secrets.
    pub struct NodeRow {
        /// Which.
        pub id: Uuid,
        /// Its name.
        pub name: String,
        /// Where it stands.
        pub region: String,
        /// Its public address; may be empty.
        pub public_ip: String,
        /// Its private address; may be empty.
        pub private_ip: String,
        /// Port of the machine's own SSH server, for people.
        pub ssh_port: i64,
        /// Account on the machine, for people; may be empty.
        pub ssh_user: String,
        /// Anything else.
        pub remark: String,
        /// Whether it is on offer.
        pub listed: bool,
        /// Whether new work is held back.
        pub cordoned: bool,
        /// The HAMi directory that an admin set.
        pub hami_dir: Option<String>,
        /// The Docker endpoint that an admin set.
        pub docker_endpoint: Option<String>,
        /// Whether PEMs for the Docker endpoint are stored.
        pub has_docker_tls: bool,
        /// `connected`, `failed` or `unknown`.
        pub docker_status: String,
        /// Why not connected.
        pub docker_reason: String,
        /// Version of the agent's program.
        pub agent_program: String,
        /// When the agent started, by the node's clock, in milliseconds.
        pub boot_started_at: i64,
        /// Whether the agent is heard.
        pub online: bool,
        /// Why it is not.
        pub offline_reason: String,
        /// When it was last heard, in milliseconds; up to 30 s late while it is online.
        pub last_seen_at: Option<i64>,
        /// The node's clock minus the controller's, in milliseconds.
        pub clock_skew_ms: i64,
        /// CPU.
        pub cpu_millicores: i64,
        /// Memory.
        pub memory_mib: i64,
        /// Disk that holds Docker's data.
        pub disk_gib: i64,
        /// Instances placed here that are not deleted.
        pub instances: i64,
        /// When it joined, in milliseconds.
        pub created_at: i64,
        /// When a person or the agent last changed it, in milliseconds.
        pub updated_at: i64,
    }
}

const SELECT: &str = "select n.id, n.name, n.region, n.public_ip, n.private_ip, n.ssh_port, \
     n.ssh_user, n.remark, n.listed, n.cordoned, n.hami_dir, n.docker_endpoint, \
     case when n.sealed_docker_tls is null then false else true end as has_docker_tls, \
     n.docker_status, n.docker_reason, n.agent_program, n.boot_started_at, n.online, \
     n.offline_reason, n.last_seen_at, n.clock_skew_ms, n.cpu_millicores, n.memory_mib, n.disk_gib, \
     (select count(*) from instances i where i.node_id = n.id and i.deleted_at is null) \
     as instances, n.created_at, n.updated_at from nodes n";

/// Columns that the list of nodes may be sorted by.
pub const SORT: &[(&str, &str)] = &[
    ("name", "n.name"),
    ("region", "n.region"),
    ("created_at", "n.created_at"),
    ("online", "n.online"),
    ("docker_status", "n.docker_status"),
    ("cpu_millicores", "n.cpu_millicores"),
    ("memory_mib", "n.memory_mib"),
    ("disk_gib", "n.disk_gib"),
];

pub(in crate::features::nodes) async fn page(
    db: &Db,
    filter: &NodeFilter,
    paging: &Paging,
) -> Result<Page<NodeRow>, DbError> {
    const CARDS: &str = "select 1 from node_gpus g where g.node_id = n.id and g.present = true and";
    let (clause, args) = Filter::new()
        .contains("n.name", filter.name.as_deref())
        .contains("n.region", filter.region.as_deref())
        .contains("n.public_ip", filter.public_ip.as_deref())
        .contains("n.private_ip", filter.private_ip.as_deref())
        .any_contains(CARDS, "g.model", filter.gpu_model.as_deref())
        .equals("n.listed", filter.listed)
        .equals("n.online", filter.online)
        .equals("n.docker_status", filter.docker_status.map(|status| status.as_str()))
        .build();
    let total = db.number(&format!("select count(*) from nodes n{clause}"), args.clone()).await?;
    let rows = db.all(&format!("{SELECT}{clause}{}", paging.sql()), args).await?;
    Ok(paging.page(rows, total))
}

pub(in crate::features::nodes) async fn get(
    db: &Db,
    node: NodeId,
) -> Result<Option<NodeRow>, DbError> {
    db.first(&format!("{SELECT} where n.id = $1"), args![node]).await
}

row! {
    struct InventoryRow { inventory: Option<String> }
}

pub(in crate::features::nodes) async fn inventory(
    db: &Db,
    node: NodeId,
) -> Result<Option<String>, DbError> {
    let sql = "select inventory from nodes where id = $1";
    let row: Option<InventoryRow> = db.first(sql, args![node]).await?;
    Ok(row.and_then(|row| row.inventory))
}

row! {
    /// What an admin may change.
    pub(in crate::features::nodes) struct EditRow {
        pub(in crate::features::nodes) name: String,
        pub(in crate::features::nodes) region: String,
        pub(in crate::features::nodes) public_ip: String,
        pub(in crate::features::nodes) private_ip: String,
        pub(in crate::features::nodes) ssh_port: i64,
        pub(in crate::features::nodes) ssh_user: String,
        pub(in crate::features::nodes) remark: String,
        pub(in crate::features::nodes) listed: bool,
        pub(in crate::features::nodes) hami_dir: Option<String>,
        pub(in crate::features::nodes) docker_endpoint: Option<String>,
        pub(in crate::features::nodes) sealed_docker_tls: Option<Vec<u8>>,
    }
}

const EDIT: &str = "select name, region, public_ip, private_ip, ssh_port, ssh_user, remark, \
     listed, hami_dir, docker_endpoint, sealed_docker_tls from nodes where id = $1";

/// Reads what an admin may change and locks the row until the transaction ends.
pub(in crate::features::nodes) async fn lock_for_edit(
    tx: &mut Tx,
    node: NodeId,
) -> Result<Option<EditRow>, DbError> {
    tx.first(&format!("{EDIT} for update"), args![node]).await
}

pub(in crate::features::nodes) async fn for_settings(
    db: &Db,
    node: NodeId,
) -> Result<Option<EditRow>, DbError> {
    db.first(EDIT, args![node]).await
}

/// Locks the row until the transaction ends; says whether there is one.
pub(in crate::features::nodes) async fn lock(tx: &mut Tx, node: NodeId) -> Result<bool, DbError> {
    Ok(lock_for_edit(tx, node).await?.is_some())
}

pub(in crate::features::nodes) async fn update(
    tx: &mut Tx,
    now: UnixMillis,
    node: NodeId,
    fields: &NodeFields,
    sealed_docker_tls: Option<Vec<u8>>,
) -> Result<(), DbError> {
    const SQL: &str = "update nodes set name = $1, region = $2, public_ip = $3, private_ip = $4, \
         ssh_port = $5, ssh_user = $6, remark = $7, listed = $8, hami_dir = $9, \
         docker_endpoint = $10, sealed_docker_tls = $11, updated_at = $12 where id = $13";
    let args = args![
        fields.name.as_str(),
        fields.region.as_str(),
        fields.public_ip.as_str(),
        fields.private_ip.as_str(),
        fields.ssh_port,
        fields.ssh_user.as_str(),
        fields.remark.as_str(),
        fields.listed,
        fields.hami_dir.clone(),
        fields.docker_endpoint.clone(),
        sealed_docker_tls,
        now,
        node
    ];
    tx.run(SQL, args).await.map(|_| ())
}

/// Returns whether it was otherwise before.
pub(in crate::features::nodes) async fn set_cordoned(
    tx: &mut Tx,
    now: UnixMillis,
    node: NodeId,
    cordoned: bool,
) -> Result<bool, DbError> {
    let sql = "update nodes set cordoned = $1, updated_at = $2 where id = $3 and cordoned <> $1";
    Ok(tx.run(sql, args![cordoned, now, node]).await? > 0)
}

/// Returns how many instances on the node are not deleted.
pub(in crate::features::nodes) async fn count_instances(
    tx: &mut Tx,
    node: NodeId,
) -> Result<i64, DbError> {
    let sql = "select count(*) from instances where node_id = $1 and deleted_at is null";
    tx.number(sql, args![node]).await
}

/// Returns how many instances on the node should run.
pub(in crate::features::nodes) async fn count_running(
    tx: &mut Tx,
    node: NodeId,
) -> Result<i64, DbError> {
    let sql = "select count(*) from instances \
         where node_id = $1 and deleted_at is null and desired = 'running'";
    tx.number(sql, args![node]).await
}

pub(in crate::features::nodes) async fn delete(tx: &mut Tx, node: NodeId) -> Result<(), DbError> {
    tx.run("delete from nodes where id = $1", args![node]).await.map(|_| ())
}
