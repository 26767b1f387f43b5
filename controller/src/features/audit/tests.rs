use chrono::DateTime;
use serde_json::json;
use tianqi_common::clock::UnixMillis;

use super::routes::AuditQuery;
use super::store;
use crate::core::audit::{Doer, Entry, Outcome, record_alone};
use crate::core::db::{Db, testing};
use crate::core::page::PageQuery;

async fn write(db: &Db, at: i64, action: &'static str, target: &str) {
    let doer = Doer::anonymous("127.0.0.1");
    let entry = Entry {
        doer: &doer,
        action,
        target_kind: "node",
        target_id: target.to_owned(),
        outcome: Outcome::Refused,
        detail: json!({ "n": at }),
    };
    record_alone(db, UnixMillis(at), &entry).await.unwrap();
}

async fn actions(db: &Db, query: &AuditQuery) -> (Vec<String>, i64) {
    let paging = PageQuery { page_size: Some(2), ..PageQuery::default() };
    let paging = paging.check(&[("at", "at")], "-at", "id").unwrap();
    let (rows, total) = store::page(db, query, &paging).await.unwrap();
    (rows.into_iter().map(|row| row.action).collect(), total)
}

#[tokio::test]
async fn events_come_newest_first_and_narrow_by_every_filter() {
    for db in testing::databases().await {
        for (at, action, target) in
            [(1_000, "nodes:join", "a"), (2_000, "nodes:join", "b"), (3_000, "nodes:remove", "a")]
        {
            write(&db, at, action, target).await;
        }
        let of = |text: &str| Some(text.to_owned());

        let all = actions(&db, &AuditQuery::default()).await;
        assert_eq!(all, (vec!["nodes:remove".to_owned(), "nodes:join".to_owned()], 3));

        let joins = AuditQuery { action: of("JOIN"), target_id: of("a"), ..AuditQuery::default() };
        assert_eq!(actions(&db, &joins).await, (vec!["nodes:join".to_owned()], 1));

        let since = DateTime::from_timestamp_millis(2_000);
        let until = DateTime::from_timestamp_millis(3_000);
        let between = AuditQuery { since, until, ..AuditQuery::default() };
        assert_eq!(actions(&db, &between).await.1, 1);

        let none = AuditQuery { outcome: of("done"), ..AuditQuery::default() };
        assert_eq!(actions(&db, &none).await.1, 0);
    }
}

#[tokio::test]
async fn a_target_that_is_too_long_for_a_key_is_cut_not_lost() {
    for db in testing::databases().await {
        write(&db, 1, "nodes:join", &"长".repeat(500)).await;

        assert_eq!(actions(&db, &AuditQuery::default()).await.1, 1);
    }
}
