//! Reading `audit_events`.

use uuid::Uuid;

use super::model::AuditQuery;
use crate::core::db::{Db, DbError, Filter, Value, row};
use crate::core::page::Paging;

row! {
    pub(super) struct AuditRow {
        pub id: Uuid,
        pub at: i64,
        pub actor_id: Option<Uuid>,
        pub actor_name: String,
        pub actor_kind: String,
        pub via: String,
        pub action: String,
        pub target_kind: String,
        pub target_id: String,
        pub outcome: String,
        pub detail: String,
        pub remote_address: String,
        pub request_id: String,
    }
}

const SELECT: &str = "select id, at, actor_id, actor_name, actor_kind, via, action, target_kind, \
     target_id, outcome, detail, remote_address, request_id from audit_events";

fn filter(query: &AuditQuery) -> (String, Vec<Value>) {
    Filter::new()
        .contains("actor_name", query.actor.as_deref())
        .equals("actor_id", query.actor_id)
        .equals("via", query.via.as_deref())
        .contains("action", query.action.as_deref())
        .equals("target_kind", query.target_kind.as_deref())
        .equals("target_id", query.target_id.as_deref())
        .equals("outcome", query.outcome.as_deref())
        .equals("request_id", query.request_id.as_deref())
        .compare("at", ">=", query.since)
        .compare("at", "<", query.until)
        .compare("id", "<", query.before)
        .build()
}

/// Returns one page of events and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &AuditQuery,
    paging: &Paging,
) -> Result<(Vec<AuditRow>, i64), DbError> {
    let (condition, args) = filter(query);
    let count = format!("select count(*) from audit_events{condition}");
    let total = db.number(&count, args.clone()).await?;
    Ok((db.all(&format!("{SELECT}{condition}{}", paging.sql()), args).await?, total))
}

/// Returns the newest `limit` events that `query` wants, without counting them.
pub(super) async fn newest(
    db: &Db,
    query: &AuditQuery,
    limit: usize,
) -> Result<Vec<AuditRow>, DbError> {
    let (condition, args) = filter(query);
    db.all(&format!("{SELECT}{condition} order by id desc limit {limit}"), args).await
}
