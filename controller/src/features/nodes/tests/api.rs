//! The paths, as a client sees them.

use serde_json::json;

use super::*;
use crate::testing::Api;

#[tokio::test]
async fn an_admin_makes_a_token_a_machine_joins_and_the_node_is_changed_and_removed() {
    let api = Api::sqlite().await;
    let admin = api.person("root1", RoleName::ADMIN).await;
    let wanted = json!({ "description": "rack 1", "max_uses": 2 });
    let made = api.call(&admin, "POST", "/join-tokens", Some(wanted)).await;
    assert_eq!(made.code(), 201, "{made:?}");
    let token: JoinToken = made.text("/token").parse().unwrap();
    let directory = Directory::new(&api.ctx);
    let node = directory.join(attempt(&token, "gpu", "a")).await.unwrap();

    let listed = api.call(&admin, "GET", "/nodes?name=gp&listed=true&page_size=5", None).await;
    assert_eq!((listed.code(), listed.body["total"].clone()), (200, json!(1)), "{listed:?}");
    let path = format!("/nodes/{node}");
    let saved = api.call(&admin, "PATCH", &path, Some(json!({ "region": "east" }))).await;
    assert_eq!((saved.code(), saved.text("/region")), (200, "east"), "{saved:?}");
    let drained = api.call(&admin, "POST", &format!("{path}/drain"), Some(json!({}))).await;
    assert_eq!((drained.code(), drained.body["cordoned"].clone()), (202, json!(true)));
    let open = api.call(&admin, "POST", &format!("{path}/uncordon"), None).await;
    assert_eq!((open.code(), open.body["cordoned"].clone()), (200, json!(false)));
    let cards = api.call(&admin, "GET", &format!("{path}/gpus"), None).await;
    assert_eq!((cards.code(), cards.body), (200, json!([])));
    let card = api.call(&admin, "PATCH", &format!("{path}/gpus/G9"), Some(json!({}))).await;
    assert_eq!((card.code(), card.problem()), (404, "no_such_gpu"));
    let tokens = api.call(&admin, "GET", "/join-tokens", None).await;
    assert_eq!(tokens.body["items"][0]["uses"], 1);
    assert!(!tokens.body.to_string().contains(&token.secret));

    assert_eq!(api.call(&admin, "DELETE", &path, None).await.code(), 204);
    assert_eq!(api.call(&admin, "GET", &path, None).await.problem(), "no_such_node");
    let id = made.text("/id");
    let gone = api.call(&admin, "DELETE", &format!("/join-tokens/{id}"), None).await;
    assert_eq!(gone.code(), 204);
    let bad = api.call(&admin, "GET", "/nodes?docker_status=maybe", None).await;
    assert_eq!(bad.code(), 400);
}

#[tokio::test]
async fn only_admins_write_and_only_they_see_join_tokens() {
    let api = Api::sqlite().await;
    let user = api.person("alice", RoleName::USER).await;
    let auditor = api.person("audit1", RoleName::AUDITOR).await;

    for (token, method, path, code) in [
        ("", "GET", "/nodes", 401),
        ("", "POST", "/join-tokens", 401),
        (user.as_str(), "GET", "/nodes", 403),
        (user.as_str(), "POST", "/join-tokens", 403),
        (auditor.as_str(), "GET", "/nodes", 200),
        (auditor.as_str(), "GET", "/join-tokens", 403),
        (auditor.as_str(), "POST", "/join-tokens", 403),
    ] {
        let body = (method == "POST").then(|| json!({}));
        let answer = api.call(token, method, path, body).await;
        assert_eq!(answer.code(), code, "{method} {path}");
    }
}
