//! Reading `audit_events`.

use uuid::Uuid;

use super::routes::AuditQuery;
use crate::core::db::{Db, DbError, Filter, row};
use crate::core::page::Paging;

row! {
    pub(super) struct AuditRow {
        pub id: Uuid,
        pub at: i64,
        pub actor_id: Option<Uuid>,
        pub actor_name: String,
        pub actor_kind: String,
        pub action: String,
        pub target_kind: String,
        pub target_id: String,
        pub outcome: String,
        pub detail: String,
        pub remote_address: String,
        pub request_id: String,
    }
}

/// Returns one page of events and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &AuditQuery,
    paging: &Paging,
) -> Result<(Vec<AuditRow>, i64), DbError> {
    let (condition, args) = Filter::new()
        .contains("actor_name", query.actor.as_deref())
        .contains("action", query.action.as_deref())
        .equals("target_kind", query.target_kind.as_deref())
        .equals("target_id", query.target_id.as_deref())
        .equals("outcome", query.outcome.as_deref())
        .compare("at", ">=", query.since.map(|at| at.timestamp_millis()))
        .compare("at", "<", query.until.map(|at| at.timestamp_millis()))
        .compare("id", "<", query.before)
        .build();
    let count = format!("select count(*) from audit_events{condition}");
    let total = db.number(&count, args.clone()).await?;
    let sql = format!(
        "select id, at, actor_id, actor_name, actor_kind, action, target_kind, target_id, outcome, \
         detail, remote_address, request_id from audit_events{condition}{}",
        paging.sql()
    );
    Ok((db.all(&sql, args).await?, total))
}
