//! SQL of the table `forwards`.

use std::net::IpAddr;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{ForwardId, UserId};
use uuid::Uuid;

use super::model::{Fields, Forward, ForwardQuery, Protocol, Rule};
use super::view::LiveView;
use crate::core::db::{Db, DbError, Filter, Source, Tx, Value, args, row};
use crate::core::page::Paging;
use crate::core::timestamp::Timestamp;

row! {
    pub(super) struct ForwardRow {
        pub id: Uuid,
        pub owner_id: Uuid,
        pub owner_name: Option<String>,
        listen_ip: String,
        listen_port: i64,
        protocol: String,
        target_ip: Option<String>,
        target_port: Option<i64>,
        instance_id: Option<Uuid>,
        pub instance_name: Option<String>,
        instance_desired: Option<String>,
        instance_port: Option<i64>,
        enabled: bool,
        description: String,
        remark: String,
        allowed_sources: String,
        max_connections: i64,
        udp_idle_s: i64,
        pub generation: i64,
        pub created_at: i64,
        pub updated_at: i64,
    }
}

const SELECT: &str = "select f.id, f.owner_id, u.name as owner_name, f.listen_ip, f.listen_port, \
     f.protocol, f.target_ip, f.target_port, f.instance_id, i.name as instance_name, \
     i.desired as instance_desired, f.instance_port, f.enabled, f.description, f.remark, f.allowed_sources, f.max_connections, \
     f.udp_idle_s, f.generation, f.created_at, f.updated_at";
const FROM: &str = "from forwards f left join users u on u.id = f.owner_id \
     left join instances i on i.id = f.instance_id";

impl ForwardRow {
    /// Whether it should listen.
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether the instance that it leads into is deleted, or is to be, which nobody takes back.
    pub(super) fn has_lost_its_instance(&self) -> bool {
        self.instance_desired.as_deref() == Some("deleted")
    }

    /// Returns what of the row may change.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`] when a column holds what this program never writes.
    pub(super) fn fields(&self) -> Result<Fields, DbError> {
        let protocol = [Protocol::Tcp, Protocol::Udp];
        let protocol = protocol.into_iter().find(|it| it.as_str() == self.protocol);
        let target_ip = self
            .target_ip
            .as_deref()
            .map(|text| address("forwards.target_ip", text))
            .transpose()?;
        let target_port =
            self.target_port.map(|it| number("forwards.target_port", it)).transpose()?;
        let instance_port =
            self.instance_port.map(|it| number("forwards.instance_port", it)).transpose()?;
        Ok(Fields {
            listen_ip: address("forwards.listen_ip", &self.listen_ip)?,
            listen_port: number("forwards.listen_port", self.listen_port)?,
            protocol: protocol.ok_or_else(|| corrupt("forwards.protocol", &self.protocol))?,
            target_ip,
            target_port,
            instance_id: self.instance_id,
            instance_port,
            enabled: self.enabled,
            description: self.description.clone(),
            remark: self.remark.clone(),
            allowed_sources: serde_json::from_str(&self.allowed_sources)
                .map_err(|error| corrupt("forwards.allowed_sources", &error.to_string()))?,
            max_connections: number("forwards.max_connections", self.max_connections)?,
            udp_idle_s: number("forwards.udp_idle_s", self.udp_idle_s)?,
        })
    }

    /// Returns the forward as the listeners need it.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`].
    pub(super) fn rule(&self) -> Result<Rule, DbError> {
        let fields = self.fields()?;
        let rule = fields.rule(ForwardId(self.id), UserId(self.owner_id), self.generation);
        rule.map_err(|problem| corrupt("forwards", &problem.detail))
    }

    /// Returns the forward as it is answered.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`].
    pub(super) fn shown(self, live: LiveView) -> Result<Forward, DbError> {
        let fields = self.fields()?;
        Ok(Forward {
            id: self.id,
            owner_id: self.owner_id,
            owner_name: self.owner_name.unwrap_or_default(),
            listen_ip: fields.listen_ip.to_string(),
            listen_port: fields.listen_port,
            protocol: fields.protocol,
            target_ip: fields.target_ip.map(|ip| ip.to_string()),
            target_port: fields.target_port,
            instance_id: fields.instance_id,
            instance_name: self.instance_name,
            instance_port: fields.instance_port,
            enabled: fields.enabled,
            description: fields.description,
            remark: fields.remark,
            allowed_sources: fields.allowed_sources,
            max_connections: fields.max_connections,
            udp_idle_s: fields.udp_idle_s,
            generation: self.generation,
            created_at: Timestamp::from_stored(self.created_at),
            updated_at: Timestamp::from_stored(self.updated_at),
            live,
        })
    }
}

fn corrupt(column: &'static str, problem: &str) -> DbError {
    DbError::Corrupt { column, problem: problem.to_owned() }
}

fn address(column: &'static str, text: &str) -> Result<IpAddr, DbError> {
    text.parse().map_err(|_| corrupt(column, text))
}

fn number<T: TryFrom<i64>>(column: &'static str, number: i64) -> Result<T, DbError> {
    T::try_from(number).map_err(|_| corrupt(column, &number.to_string()))
}

fn filter(query: &ForwardQuery, owner: Option<UserId>) -> Filter {
    Filter::new()
        .equals("f.owner_id", owner)
        .equals("f.owner_id", query.owner)
        .contains("f.listen_ip", query.listen_ip.as_deref())
        .equals("f.listen_port", query.listen_port)
        .equals("f.protocol", query.protocol.map(Protocol::as_str))
        .contains("coalesce(f.target_ip, i.name)", query.target.as_deref())
        .equals("f.enabled", query.enabled)
}

/// Returns one page of the forwards of `owner`, or of everybody, and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &ForwardQuery,
    owner: Option<UserId>,
    paging: &Paging,
) -> Result<(Vec<ForwardRow>, i64), DbError> {
    let (condition, args) = filter(query, owner).build();
    let total = db.number(&format!("select count(*) {FROM}{condition}"), args.clone()).await?;
    let sql = format!("{SELECT} {FROM}{condition}{}", paging.sql());
    Ok((db.all(&sql, args).await?, total))
}

/// Returns every forward that a query names, whatever its page, in the order of `paging`.
pub(super) async fn matching(
    db: &Db,
    query: &ForwardQuery,
    owner: Option<UserId>,
    order: &str,
) -> Result<Vec<ForwardRow>, DbError> {
    let (condition, args) = filter(query, owner).build();
    db.all(&format!("{SELECT} {FROM}{condition}{order}"), args).await
}

/// Returns one forward.
pub(super) async fn get(db: &Db, id: ForwardId) -> Result<Option<ForwardRow>, DbError> {
    db.first(&format!("{SELECT} {FROM} where f.id = $1"), args![id]).await
}

/// Returns every forward.
pub(super) async fn all(mut source: impl Source) -> Result<Vec<ForwardRow>, DbError> {
    source.all(&format!("{SELECT} {FROM} order by f.id"), args![]).await
}

/// Keeps everybody else from changing any forward until the transaction ends: whether ports clash and
/// forwards run in a circle is decided over all of them.
pub(super) async fn lock_all(tx: &mut Tx) -> Result<(), DbError> {
    let sql = "select name from meta where name = 'forwards' for update";
    tx.run(sql, args![]).await.map(|_| ())
}

/// Returns how many forwards an account has.
pub(super) async fn count_of(tx: &mut Tx, owner: UserId) -> Result<i64, DbError> {
    tx.number("select count(*) from forwards where owner_id = $1", args![owner]).await
}

/// Adds a forward.
pub(super) async fn insert(
    tx: &mut Tx,
    id: ForwardId,
    owner: UserId,
    fields: &Fields,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "insert into forwards (id, listen_ip, listen_port, protocol, \
         target_ip, target_port, instance_id, instance_port, enabled, description, remark, \
         allowed_sources, max_connections, udp_idle_s, generation, created_at, updated_at, owner_id) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 1, $15, $15, $16)";
    let mut values = values(id, fields, now);
    values.extend(args![owner]);
    tx.run(SQL, values).await.map(|_| ())
}

/// Changes a forward; its generation grows.
pub(super) async fn update(
    tx: &mut Tx,
    id: ForwardId,
    fields: &Fields,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update forwards set listen_ip = $2, listen_port = $3, protocol = $4, \
         target_ip = $5, target_port = $6, instance_id = $7, instance_port = $8, enabled = $9, \
         description = $10, remark = $11, allowed_sources = $12, max_connections = $13, \
         udp_idle_s = $14, generation = generation + 1, updated_at = $15 where id = $1";
    tx.run(SQL, values(id, fields, now)).await.map(|_| ())
}

/// Returns what [`insert`] and [`update`] bind alike, from `$1` on.
fn values(id: ForwardId, fields: &Fields, now: UnixMillis) -> Vec<Value> {
    args![
        id,
        fields.listen_ip.to_string(),
        fields.listen_port,
        fields.protocol.as_str(),
        fields.target_ip.map(|ip| ip.to_string()),
        fields.target_port,
        fields.instance_id,
        fields.instance_port,
        fields.enabled,
        &fields.description,
        &fields.remark,
        sources(fields),
        fields.max_connections,
        fields.udp_idle_s,
        now,
    ]
}

fn sources(fields: &Fields) -> String {
    serde_json::Value::from(fields.allowed_sources.clone()).to_string()
}

/// Removes a forward.
pub(super) async fn delete(tx: &mut Tx, id: ForwardId) -> Result<(), DbError> {
    tx.run("delete from forwards where id = $1", args![id]).await.map(|_| ())
}
