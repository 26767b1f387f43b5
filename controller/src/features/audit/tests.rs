use serde_json::json;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;

use super::model::AuditQuery;
use super::{export, store};
use crate::core::audit::{Doer, Entry, Outcome, Via, record_alone};
use crate::core::db::{Db, testing};
use crate::core::page::PageQuery;
use crate::core::timestamp::Timestamp;

async fn write(db: &Db, at: i64, action: &'static str, target: &str) {
    write_as(db, at, action, target, &Doer::anonymous("127.0.0.1", Via::Agent)).await;
}

async fn write_as(db: &Db, at: i64, action: &'static str, target: &str, doer: &Doer) {
    let entry = Entry {
        doer,
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
    let paging = paging.check(&[("id", "id")], "-id", "id").unwrap();
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

        let since = Some(Timestamp::from_stored(2_000));
        let until = Some(Timestamp::from_stored(3_000));
        let between = AuditQuery { since, until, ..AuditQuery::default() };
        assert_eq!(actions(&db, &between).await.1, 1);

        let none = AuditQuery { outcome: of("done"), ..AuditQuery::default() };
        assert_eq!(actions(&db, &none).await.1, 0);
    }
}

#[tokio::test]
async fn how_who_and_which_request_narrow_too_and_a_wrong_filter_is_refused() {
    for db in testing::databases().await {
        let (id, other) = (UserId::new(), UserId::new());
        for (user, via, request) in
            [(id, Via::Cookie, "r1"), (id, Via::Ssh, "r2"), (other, Via::Ssh, "r3")]
        {
            let doer = Doer {
                id: Some(user),
                request_id: request.to_owned(),
                ..Doer::anonymous("127.0.0.1", via)
            };
            write_as(&db, 1, "instances:exec", "a", &doer).await;
        }
        let query = AuditQuery::default;

        let by_account = AuditQuery { actor_id: Some(id.0), ..query() };
        assert_eq!(actions(&db, &by_account).await.1, 2);
        let by_face = AuditQuery { via: Some("ssh".to_owned()), ..by_account };
        assert_eq!(actions(&db, &by_face).await.1, 1);
        let by_request = AuditQuery { request_id: Some("r3".to_owned()), ..query() };
        assert_eq!(actions(&db, &by_request).await.1, 1);
        assert!(serde_json::from_value::<AuditQuery>(json!({ "actr": "x" })).is_err());
    }
}

#[tokio::test]
async fn pages_by_before_hold_every_event_once_while_others_arrive() {
    for db in testing::databases().await {
        for n in 0..7 {
            write(&db, 5_000, "nodes:join", &n.to_string()).await;
        }
        let mut seen = Vec::new();
        let mut query = AuditQuery::default();
        loop {
            let rows = store::newest(&db, &query, 3).await.unwrap();
            let Some(oldest) = rows.last() else { break };
            query.before = Some(oldest.id);
            seen.extend(rows.iter().map(|row| row.target_id.clone()));
            write(&db, 6_000, "nodes:join", "later").await;
        }

        assert_eq!(seen, ["6", "5", "4", "3", "2", "1", "0"]);
    }
}

#[tokio::test]
async fn an_export_holds_every_event_that_the_filters_let_through_over_many_pages() {
    for db in testing::databases().await {
        for n in 0..1_203 {
            write(&db, n, "nodes:join", &n.to_string()).await;
        }
        write(&db, 9, "nodes:remove", "=cmd|' /C calc'!A0").await;
        let query =
            |action: &str| AuditQuery { action: Some(action.to_owned()), ..AuditQuery::default() };
        let export = async |query| {
            let body = axum::body::to_bytes(export::body(db.clone(), query), 1 << 24).await;
            String::from_utf8(body.unwrap().to_vec()).unwrap()
        };

        let joins = export(query("join")).await;
        let removed = export(query("remove")).await;

        let lines: Vec<_> = joins.split("\r\n").collect();
        assert!(lines[0].starts_with("\u{feff}id,at,actor_id,"), "{}", lines[0]);
        assert_eq!(lines.len(), 1 + 1_203 + 1);
        assert!(lines[1].contains("\"1202\"") && lines[1_203].contains("\"0\""));
        assert!(removed.contains("\"'=cmd|"), "{removed}");
    }
}

#[tokio::test]
async fn a_target_that_is_too_long_for_a_key_is_cut_not_lost() {
    for db in testing::databases().await {
        write(&db, 1, "nodes:join", &"长".repeat(500)).await;

        assert_eq!(actions(&db, &AuditQuery::default()).await.1, 1);
    }
}
