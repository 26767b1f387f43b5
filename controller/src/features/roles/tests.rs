use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::authz::policy::PERMISSIONS;
use crate::core::event::Event;
use crate::testing::Api;

fn allow(permission: &str, reach: &str) -> Value {
    json!({ "permission": permission, "reach": reach })
}

async fn make(api: &Api, token: &str, name: &str, permissions: Vec<Value>) -> (u16, String) {
    let body = json!({ "name": name, "permissions": permissions });
    let answer = api.call(token, "POST", "/roles", Some(body)).await;
    (answer.code(), answer.problem().to_owned())
}

/// Makes an account with a role and returns its id.
async fn account(api: &Api, token: &str, name: &str, role: &str) -> (u16, String) {
    let body = json!({
        "name": name, "password": crate::testing::PASSWORD, "role": role,
        "must_change_password": false,
    });
    let answer = api.call(token, "POST", "/users", Some(body)).await;
    let word = if answer.code() == 201 { answer.text("/id") } else { answer.problem() };
    (answer.code(), word.to_owned())
}

#[tokio::test]
async fn a_custom_role_allows_what_it_says_until_it_is_changed_on_every_engine() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let made = make(&api, &admin, "operator", vec![allow("nodes:read", "all")]).await;
        assert_eq!(made, (201, String::new()));
        account(&api, &admin, "olga", "operator").await;
        let olga = api.log_in("olga").await;

        assert_eq!(api.call(&olga, "GET", "/nodes", None).await.code(), 200);
        assert_eq!(api.call(&olga, "GET", "/users", None).await.problem(), "forbidden");
        let session = api.call(&olga, "GET", "/session", None).await;
        assert_eq!(session.text("/user/role"), "operator");
        let held = session.body["permissions"].as_array().unwrap();
        assert!(held.contains(&allow("nodes:read", "all")), "{held:?}");

        let mut heard = api.ctx.events.listen();
        let patch = json!({ "permissions": [allow("users:read", "all")], "description": "looks" });
        let changed = api.call(&admin, "PATCH", "/roles/operator", Some(patch)).await;
        assert_eq!((changed.code(), changed.text("/description")), (200, "looks"), "{changed:?}");
        assert_eq!(changed.body["accounts"], 1);
        assert_eq!(heard.try_recv().unwrap(), Event::Roles);
        assert_eq!(api.call(&olga, "GET", "/nodes", None).await.problem(), "forbidden");
        assert_eq!(api.call(&olga, "GET", "/users", None).await.code(), 200);
    }
}

#[tokio::test]
async fn a_role_that_somebody_has_stays_and_built_in_roles_always_do_on_every_engine() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        make(&api, &admin, "operator", vec![]).await;
        let (_, olga) = account(&api, &admin, "olga", "operator").await;

        let refused = api.call(&admin, "DELETE", "/roles/operator", None).await;
        assert_eq!(refused.problem(), "in_use", "{refused:?}");
        let patch = json!({ "role": "user" });
        api.call(&admin, "PATCH", &format!("/users/{olga}"), Some(patch)).await;
        assert_eq!(api.call(&admin, "DELETE", "/roles/operator", None).await.code(), 204);
        let gone = api.call(&admin, "GET", "/roles/operator", None).await;
        assert_eq!(gone.problem(), "no_such_role");

        for name in ["admin", "user", "auditor"] {
            let path = format!("/roles/{name}");
            assert_eq!(api.call(&admin, "DELETE", &path, None).await.problem(), "built_in");
            let patch = Some(json!({ "permissions": [] }));
            assert_eq!(api.call(&admin, "PATCH", &path, patch).await.problem(), "built_in");
            assert_eq!(make(&api, &admin, name, vec![]).await, (409, "duplicate".to_owned()));
        }
    }
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    let lead = ["roles:read", "roles:write", "users:read", "users:write", "nodes:read"];
    let lead = lead.map(|name| allow(name, "all")).to_vec();
    make(&api, &admin, "lead", lead.clone()).await;
    make(&api, &admin, "reader", vec![allow("nodes:read", "own")]).await;
    account(&api, &admin, "lea", "lead").await;
    let (_, root) = account(&api, &admin, "root2", "admin").await;
    let lea = api.log_in("lea").await;

    let beyond = (403, "beyond_own_rights".to_owned());
    assert_eq!(make(&api, &lea, "wide", vec![allow("nodes:write", "all")]).await, beyond);
    assert_eq!(make(&api, &lea, "same", lead).await.0, 201);
    assert_eq!(account(&api, &lea, "eve", "admin").await, beyond);
    assert_eq!(account(&api, &lea, "ed", "auditor").await, beyond);
    assert_eq!(account(&api, &lea, "rita", "reader").await.0, 201);
    // Somebody with more rights is out of reach in every way.
    let path = format!("/users/{root}");
    for (method, path, body) in [
        ("PATCH", path.clone(), Some(json!({ "disabled": true }))),
        ("PATCH", path.clone(), Some(json!({ "role": "reader" }))),
        ("PUT", format!("{path}/password"), Some(json!({ "password": "taken over by lea" }))),
        ("DELETE", path.clone(), None),
    ] {
        let answer = api.call(&lea, method, &path, body).await;
        assert_eq!(answer.problem(), "beyond_own_rights", "{method} {answer:?}");
    }
    // Nor may one's own role be widened.
    let patch = json!({ "permissions": [allow("nodes:write", "all")] });
    let answer = api.call(&lea, "PATCH", "/roles/lead", Some(patch.clone())).await;
    assert_eq!(answer.problem(), "own_role");
    let answer = api.call(&lea, "PATCH", "/roles/reader", Some(patch)).await;
    assert_eq!(answer.problem(), "beyond_own_rights");
}

#[tokio::test]
async fn roles_that_make_no_sense_are_refused_with_what_to_write() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    let twice = vec![allow("nodes:read", "own"), allow("nodes:read", "all")];

    for (name, permissions) in [
        ("", vec![]),
        ("x", vec![]),
        ("Operator", vec![]),
        ("../admin", vec![]),
        ("ok", vec![allow("no:such", "all")]),
        ("ok", twice),
        ("ok", vec![allow("nodes:read", "none")]),
        (&"x".repeat(33), vec![]),
    ] {
        let refused = make(&api, &admin, name, permissions).await;
        assert_eq!(refused, (422, "bad_field".to_owned()), "{name:?}");
    }
    let unknown = account(&api, &admin, "olga", "no-such-role").await;
    assert_eq!(unknown, (422, "bad_field".to_owned()));
}

#[tokio::test]
async fn permissions_are_listed_with_their_sentences_and_roles_with_their_accounts() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    make(&api, &admin, "operator", vec![]).await;

    let listed = api.call(&admin, "GET", "/permissions", None).await;
    let roles = api.call(&admin, "GET", "/roles?page_size=3", None).await;
    let found = api.call(&admin, "GET", "/roles?name=OPER", None).await;

    let listed = listed.body.as_array().unwrap().clone();
    assert_eq!(listed.len(), PERMISSIONS.len());
    assert!(listed.iter().all(|it| it["sentence"].as_str().unwrap().ends_with('.')));
    assert_eq!((&roles.body["total"], roles.text("/items/0/name")), (&json!(4), "admin"));
    assert_eq!(roles.body["items"][0]["accounts"], 1);
    assert_eq!((&found.body["total"], found.text("/items/0/name")), (&json!(1), "operator"));
}
