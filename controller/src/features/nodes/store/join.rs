//! Join tokens, what joined by them, and the certificates given out.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{NodeId, UserId};
use uuid::Uuid;

use crate::core::db::{Db, DbError, Tx, args, row};
use crate::core::page::{Page, Paging};

row! {
    /// A join token, without its secret.
    #[derive(Debug)]
    pub struct TokenRow {
        /// Which.
        pub id: Uuid,
        /// What it is for.
        pub description: String,
        /// How often it may be used.
        pub max_uses: i64,
        /// How often it was used.
        pub uses: i64,
        /// When it ends, in milliseconds.
        pub expires_at: i64,
        /// The account that made it.
        pub created_by: Uuid,
        /// That account's name; nothing when it is gone.
        pub created_by_name: Option<String>,
        /// When it was made, in milliseconds.
        pub created_at: i64,
    }
}

/// A token to store.
#[derive(Debug)]
pub struct NewToken<'a> {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub description: &'a str,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// How often it may be used.
    pub max_uses: u32,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// Who makes it.
    pub created_by: UserId,
}

/// Columns that the list of tokens may be sorted by.
pub const TOKEN_SORT: &[(&str, &str)] = &[
    ("created_at", "t.created_at"),
    ("expires_at", "t.expires_at"),
    ("description", "t.description"),
    ("uses", "t.uses"),
];

pub(in crate::features::nodes) async fn insert_token(
    tx: &mut Tx,
    now: UnixMillis,
    token: &NewToken<'_>,
) -> Result<(), DbError> {
    const SQL: &str = "insert into join_tokens (id, description, secret_hash, max_uses, uses, \
         expires_at, created_by, created_at) values ($1, $2, $3, $4, 0, $5, $6, $7)";
    let args = args![
        token.id,
        token.description,
        token.secret_hash.to_vec(),
        token.max_uses,
        token.expires_at,
        token.created_by,
        now
    ];
    tx.run(SQL, args).await.map(|_| ())
}

pub(in crate::features::nodes) async fn tokens(
    db: &Db,
    paging: &Paging,
) -> Result<Page<TokenRow>, DbError> {
    const SQL: &str = "select t.id, t.description, t.max_uses, t.uses, t.expires_at, \
         t.created_by, u.name as created_by_name, t.created_at from join_tokens t \
         left join users u on u.id = t.created_by";
    let total = db.number("select count(*) from join_tokens", args![]).await?;
    let rows = db.all(&format!("{SQL}{}", paging.sql()), args![]).await?;
    Ok(paging.page(rows, total))
}

pub(in crate::features::nodes) async fn delete_token(
    tx: &mut Tx,
    id: Uuid,
) -> Result<u64, DbError> {
    tx.run("delete from join_tokens where id = $1", args![id]).await
}

row! {
    /// A token as a join finds it.
    pub(in crate::features::nodes) struct UsableToken {
        pub(in crate::features::nodes) id: Uuid,
        pub(in crate::features::nodes) max_uses: i64,
        pub(in crate::features::nodes) uses: i64,
        pub(in crate::features::nodes) expires_at: i64,
    }
}

/// Locks the token, so that its uses are counted one after another.
pub(in crate::features::nodes) async fn lock_token(
    tx: &mut Tx,
    secret_hash: [u8; 32],
) -> Result<Option<UsableToken>, DbError> {
    const SQL: &str = "select id, max_uses, uses, expires_at from join_tokens \
         where secret_hash = $1 for update";
    tx.first(SQL, args![secret_hash.to_vec()]).await
}

pub(in crate::features::nodes) async fn count_use(tx: &mut Tx, id: Uuid) -> Result<(), DbError> {
    tx.run("update join_tokens set uses = uses + 1 where id = $1", args![id]).await.map(|_| ())
}

row! {
    /// A node that a key joined as.
    pub(in crate::features::nodes) struct KeyRow {
        pub(in crate::features::nodes) node_id: Uuid,
        pub(in crate::features::nodes) token_id: Uuid,
    }
}

pub(in crate::features::nodes) async fn node_of_key(
    tx: &mut Tx,
    key_hash: [u8; 32],
) -> Result<Option<KeyRow>, DbError> {
    const SQL: &str = "select node_id, token_id from node_joins where key_hash = $1";
    tx.first(SQL, args![key_hash.to_vec()]).await
}

/// Remembers which node a key is, and by which token.
pub(in crate::features::nodes) async fn remember_key(
    tx: &mut Tx,
    now: UnixMillis,
    key_hash: [u8; 32],
    node: NodeId,
    token: Uuid,
) -> Result<(), DbError> {
    const SQL: &str = "insert into node_joins (key_hash, node_id, token_id, joined_at) \
         values ($1, $2, $3, $4)";
    tx.run("delete from node_joins where key_hash = $1", args![key_hash.to_vec()]).await?;
    tx.run(SQL, args![key_hash.to_vec(), node, token, now]).await.map(|_| ())
}

row! {
    struct NameRow { name: String }
}

/// Returns the names that begin like `name`, so that a free one can be chosen.
pub(in crate::features::nodes) async fn names_like(
    tx: &mut Tx,
    name: &str,
) -> Result<Vec<String>, DbError> {
    const SQL: &str = "select name from nodes where name = $1 or name like $2 escape '!'";
    let escaped = name.replace('!', "!!").replace('%', "!%").replace('_', "!_");
    let rows: Vec<NameRow> = tx.all(SQL, args![name, format!("{escaped}-%")]).await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

/// A node at the moment it joins.
#[derive(Debug)]
pub(in crate::features::nodes) struct NewNode<'a> {
    pub(in crate::features::nodes) id: NodeId,
    pub(in crate::features::nodes) name: &'a str,
    pub(in crate::features::nodes) public_ip: &'a str,
    pub(in crate::features::nodes) private_ip: &'a str,
    pub(in crate::features::nodes) clock_skew_ms: i64,
}

/// What is said of a node until its agent connects for the first time.
pub(in crate::features::nodes) const NOT_YET: &str = "the agent has not connected yet";

pub(in crate::features::nodes) async fn insert_node(
    tx: &mut Tx,
    now: UnixMillis,
    node: &NewNode<'_>,
) -> Result<(), DbError> {
    const SQL: &str = "insert into nodes (id, name, region, public_ip, private_ip, ssh_port, \
         ssh_user, remark, listed, cordoned, docker_status, docker_reason, agent_program, \
         boot_started_at, online, offline_reason, clock_skew_ms, cpu_millicores, memory_mib, \
         disk_gib, observed_epoch, observed_generation, created_at, updated_at) \
         values ($1, $2, '', $3, $4, 22, '', '', $5, $6, 'unknown', $7, '', 0, $6, $7, $8, \
         0, 0, 0, 0, 0, $9, $9)";
    let args = args![
        node.id,
        node.name,
        node.public_ip,
        node.private_ip,
        true,
        false,
        NOT_YET,
        node.clock_skew_ms,
        now
    ];
    tx.run(SQL, args).await.map(|_| ())
}

row! {
    /// A certificate, and whether its node is still there.
    pub(in crate::features::nodes) struct CertificateRow {
        pub(in crate::features::nodes) revoked_at: Option<i64>,
        pub(in crate::features::nodes) node_id: Option<Uuid>,
    }
}

pub(in crate::features::nodes) async fn certificate(
    db: &Db,
    node: NodeId,
    serial: &str,
) -> Result<Option<CertificateRow>, DbError> {
    const SQL: &str = "select c.revoked_at, n.id as node_id from agent_certificates c \
         left join nodes n on n.id = c.node_id where c.serial = $1 and c.node_id = $2";
    db.first(SQL, args![serial, node]).await
}

/// Keeps a certificate's serial and forgets those of the node that ended before `forget_before`.
pub(in crate::features::nodes) async fn insert_certificate(
    tx: &mut Tx,
    now: UnixMillis,
    node: NodeId,
    (serial, not_before, not_after): (&str, UnixMillis, UnixMillis),
    forget_before: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "insert into agent_certificates (serial, node_id, not_before, not_after, \
         created_at) values ($1, $2, $3, $4, $5)";
    const FORGET: &str = "delete from agent_certificates where node_id = $1 and not_after < $2";
    tx.run(FORGET, args![node, forget_before]).await?;
    tx.run(SQL, args![serial, node, not_before, not_after, now]).await.map(|_| ())
}

pub(in crate::features::nodes) async fn revoke_certificates(
    tx: &mut Tx,
    now: UnixMillis,
    node: NodeId,
) -> Result<u64, DbError> {
    const SQL: &str = "update agent_certificates set revoked_at = $1 \
         where node_id = $2 and revoked_at is null";
    tx.run(SQL, args![now, node]).await
}
