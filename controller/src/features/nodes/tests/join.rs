//! Tokens, joins, certificates.

use tianqi_common::id::NodeId;
use tianqi_common::wire::join::JoinRefusal;

use super::*;
use crate::authz::policy::JoinTokensWrite;
use crate::authz::resource::JoinTokenRef;
use crate::core::ca::AgentCertificate;
use crate::core::page::PageQuery;
use crate::features::nodes::actions;
use crate::features::nodes::tokens::JoinTokenState;
use crate::link::{Admission, JoinDenied, Refusal};

fn refusal(result: Result<NodeId, JoinDenied>) -> JoinRefusal {
    match result {
        Err(JoinDenied::Refused(code, message)) => {
            assert!(!message.is_empty());
            code
        }
        other => panic!("not refused: {other:?}"),
    }
}

async fn nodes(room: &Room) -> i64 {
    room.ctx.db.number("select count(*) from nodes", args![]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_machines_at_once_share_five_uses_exactly() {
    for room in Room::on_all_engines().await {
        let token = room.token(5, 600).await;
        let tries: Vec<_> = (0..20)
            .map(|n| {
                let (directory, attempt) =
                    (room.directory.clone(), attempt(&token, "gpu", &format!("key {n}")));
                tokio::spawn(async move { directory.join(attempt).await })
            })
            .collect();
        let mut joined = 0;
        for tried in tries {
            match tried.await.unwrap() {
                Ok(_) => joined += 1,
                refused => assert_eq!(refusal(refused), JoinRefusal::UsedUp),
            }
        }

        assert_eq!((joined, nodes(&room).await), (5, 5), "{:?}", room.ctx.db.engine());
        let names = room.ctx.db.number("select count(distinct name) from nodes", args![]).await;
        assert_eq!(names.unwrap(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn machines_of_one_name_joining_by_different_tokens_get_different_names() {
    for room in Room::on_all_engines().await {
        let mut tries = Vec::new();
        for n in 0..6 {
            let token = room.token(1, 600).await;
            let (directory, attempt) =
                (room.directory.clone(), attempt(&token, "gpu_%", &format!("key {n}")));
            tries.push(tokio::spawn(async move { directory.join(attempt).await }));
        }
        for tried in tries {
            tried.await.unwrap().unwrap();
        }

        assert_eq!(nodes(&room).await, 6, "{:?}", room.ctx.db.engine());
    }
}

#[tokio::test]
async fn unknown_expired_and_used_up_tokens_are_told_apart() {
    for room in Room::on_all_engines().await {
        let token = room.token(1, 60).await;
        let unknown = JoinToken { secret: "wrong".to_owned(), fingerprint: token.fingerprint };
        let join = |token, key| room.directory.join(attempt(token, "gpu", key));

        assert_eq!(refusal(join(&unknown, "a").await), JoinRefusal::UnknownToken);
        join(&token, "a").await.unwrap();
        assert_eq!(refusal(join(&token, "b").await), JoinRefusal::UsedUp);
        room.clock.advance(Duration::from_secs(60));
        assert_eq!(refusal(join(&token, "b").await), JoinRefusal::Expired);
        assert_eq!(nodes(&room).await, 1);
    }
}

#[tokio::test]
async fn the_same_key_is_the_same_node_and_takes_one_use_of_a_token() {
    for room in Room::on_all_engines().await {
        let (first, second) = (room.token(1, 600).await, room.token(1, 600).await);
        let join = |token, key| room.directory.join(attempt(token, "gpu", key));

        let node = join(&first, "a").await.unwrap();

        assert_eq!(join(&first, "a").await.unwrap(), node);
        assert_eq!(join(&second, "a").await.unwrap(), node);
        assert_eq!(refusal(join(&second, "b").await), JoinRefusal::UsedUp);
        assert_eq!(nodes(&room).await, 1);
    }
}

fn certificate(serial: &str) -> AgentCertificate {
    let pem = String::new();
    AgentCertificate { pem, serial: serial.to_owned(), not_before: NOW, not_after: NOW }
}

#[tokio::test]
async fn a_certificate_is_admitted_until_its_node_is_removed() {
    for room in Room::on_all_engines().await {
        let (node, other) = (room.node("a").await, room.node("b").await);
        room.directory.record_certificate(node, &certificate("01")).await.unwrap();
        let admit = |node, serial| room.directory.admit(node, serial);

        assert_eq!(admit(node, "01").await.unwrap(), Admission::Admitted);
        assert_eq!(admit(other, "01").await.unwrap(), Admission::Unknown);
        assert_eq!(admit(node, "02").await.unwrap(), Admission::Unknown);

        actions::delete(&room.ctx, &on(node)).await.unwrap();

        assert_eq!(admit(node, "01").await.unwrap(), Admission::Removed);
        assert!(room.directory.record_certificate(node, &certificate("03")).await.is_err());
        let again = room.node("a").await;
        assert_ne!(again, node);
    }
}

#[tokio::test]
async fn a_refusal_and_a_join_are_on_the_audit_trail_without_the_secret() {
    for room in Room::on_all_engines().await {
        let token = room.token(1, 600).await;
        room.directory.join(attempt(&token, "gpu", "a")).await.unwrap();
        let refused = Refusal {
            address: "192.0.2.1:5".parse().unwrap(),
            code: "unknown_token",
            message: "no".to_owned(),
            node: None,
        };
        room.directory.record_refusal(refused).await;

        let audit = room.audit().await;
        assert!(audit.contains("nodes:join done"), "{audit}");
        assert!(audit.contains("nodes:join refused"), "{audit}");
        assert!(audit.contains("unknown_token"), "{audit}");
        assert!(!audit.contains(&token.secret), "{audit}");
    }
}

#[tokio::test]
async fn a_token_is_listed_without_its_secret_and_can_be_withdrawn() {
    for room in Room::on_all_engines().await {
        let token = room.token(2, 60).await;
        room.directory.join(attempt(&token, "gpu", "a")).await.unwrap();

        let page = tokens::list(&room.ctx, &PageQuery::default()).await.unwrap();
        let shown = serde_json::to_string(&page).unwrap();
        assert_eq!((page.total, page.items[0].uses), (1, 1));
        assert_eq!(page.items[0].state, JoinTokenState::Usable);
        assert!(!shown.contains(&token.secret) && !shown.contains("hash"), "{shown}");

        let grant: Grant<_, JoinTokensWrite> = grant(JoinTokenRef { id: page.items[0].id });
        tokens::delete(&room.ctx, &grant).await.unwrap();
        let tried = room.directory.join(attempt(&token, "gpu", "b")).await;
        assert_eq!(refusal(tried), JoinRefusal::UnknownToken);
    }
}

#[tokio::test]
async fn a_token_with_absurd_numbers_is_refused() {
    let room = Room::sqlite().await;
    for (ttl, uses) in [(59, 1), (2_592_001, 1), (u64::MAX, 1), (60, 0), (60, 1_001)] {
        let wanted = CreateJoinToken {
            ttl_seconds: Some(ttl),
            max_uses: Some(uses),
            ..CreateJoinToken::default()
        };
        let refused = tokens::create(&room.ctx, &grant(Anything), &wanted).await;
        assert_eq!(refused.unwrap_err().status, 422, "{ttl} {uses}");
    }
}

#[tokio::test]
async fn the_command_and_the_debug_output_of_a_new_token() {
    let room = Room::sqlite().await;
    let wanted = CreateJoinToken::default();
    let made = tokens::create(&room.ctx, &grant(Anything), &wanted).await.unwrap();
    let fingerprint = made.token.parse::<JoinToken>().unwrap().fingerprint;

    assert_eq!(fingerprint, room.ctx.ca.fingerprint(NOW).unwrap());
    assert!(made.command.starts_with("tianqi-agent join --controller "), "{}", made.command);
    assert!(made.command.ends_with(&made.token));
    assert!(!format!("{made:?}").contains(&made.token));
}
