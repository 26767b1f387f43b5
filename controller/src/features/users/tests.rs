//! Accounts through the API, on three engines.

use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::core::db::args;
use crate::core::event::Event;
use crate::testing::{Api, PASSWORD};

async fn made(api: &Api, admin: &str, name: &str, role: &str) -> String {
    let body = json!({ "name": name, "password": PASSWORD, "role": role,
        "must_change_password": false });
    let answer = api.call(admin, "POST", "/users", Some(body)).await;
    assert_eq!(answer.code(), 201, "{answer:?}");
    answer.text("/id").to_owned()
}

async fn own_id(api: &Api, token: &str) -> String {
    api.call(token, "GET", "/session", None).await.text("/user/id").to_owned()
}

#[tokio::test]
async fn an_account_is_made_read_listed_changed_and_deleted() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let id = made(&api, &admin, "alice", "user").await;
        made(&api, &admin, "bob", "auditor").await;

        let patch = json!({ "display_name": "爱丽丝" });
        let changed = api.call(&admin, "PATCH", &format!("/users/{id}"), Some(patch)).await;
        assert_eq!((changed.code(), changed.text("/display_name")), (200, "爱丽丝"));
        assert_eq!(changed.text("/role"), "user", "a field that was left out changed");

        let listed = api.call(&admin, "GET", "/users?name=LI&sort=-created_at", None).await;
        assert_eq!(listed.body["total"], 1);
        assert_eq!(listed.text("/items/0/name"), "alice");
        let auditors = api.call(&admin, "GET", "/users?role=auditor&disabled=false", None).await;
        assert_eq!(auditors.text("/items/0/name"), "bob");
        assert!(!listed.body.to_string().contains("argon2"), "a hash is shown");

        let gone = api.call(&admin, "DELETE", &format!("/users/{id}"), None).await;
        assert_eq!(gone.code(), 204);
        let missing = api.call(&admin, "GET", &format!("/users/{id}"), None).await;
        assert_eq!(missing.problem(), "no_such_user");
        let audit = "select count(*) from audit_events where target_id = $1 and outcome = 'done'";
        assert_eq!(api.ctx.db.number(audit, args![id]).await.unwrap(), 3);
    }
}

#[tokio::test]
async fn bad_accounts_are_refused_with_what_to_write_instead() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    let with = |field: &str, value: Value| {
        let mut body = json!({ "name": "alice", "password": PASSWORD });
        body[field] = value;
        body
    };
    let table = [
        (422, "bad_field", with("name", json!("Alice"))),
        (422, "bad_field", with("name", json!("../x"))),
        (422, "bad_field", with("name", json!("爱丽丝"))),
        (422, "bad_field", with("name", json!("a".repeat(33)))),
        (422, "bad_field", with("name", json!(7))),
        (422, "bad_field", with("role", json!("root"))),
        (422, "bad_field", with("display_name", json!("a\nb"))),
        (422, "bad_field", with("unknown", json!(1))),
        (422, "weak_password", with("password", json!("123456789"))),
        (422, "weak_password", with("password", json!("x".repeat(2_000)))),
        (409, "duplicate", with("name", json!("root"))),
    ];

    for (status, code, body) in table {
        let shown = body.to_string();
        let answer = api.call(&admin, "POST", "/users", Some(body)).await;
        assert_eq!((answer.code(), answer.problem()), (status, code), "{shown}: {answer:?}");
    }
    let id = made(&api, &admin, "bob", "user").await;
    let null = json!({ "role": null });
    let answer = api.call(&admin, "PATCH", &format!("/users/{id}"), Some(null)).await;
    assert_eq!(answer.problem(), "bad_field");
}

#[tokio::test]
async fn an_owner_of_instances_the_caller_and_the_last_admin_cannot_be_deleted() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let (me, other) = (own_id(&api, &admin).await, made(&api, &admin, "bob", "user").await);
        const INSTANCE: &str = "insert into instances (id, owner_id, name, live_name, image_id, \
             spec_id, image_address, spec, environment, restart_policy, priority, remark, desired, \
             generation, phase, reason_code, reason, reason_detail, observed_generation, \
             container_name, gpus, limits, fail_if_full, restarts, queued_at, created_at, updated_at) \
             values ($1, $2, 'x', 'x', $1, $1, '', '', '', '', 0, '', '', 0, '', '', '', '', 0, \
             '', '', '', $3, 0, 0, 0, 0)";
        let (instance, owner) = (uuid::Uuid::now_v7(), other.parse::<uuid::Uuid>().unwrap());
        api.ctx.db.run(INSTANCE, args![instance, owner, false]).await.unwrap();

        let used = api.call(&admin, "DELETE", &format!("/users/{other}"), None).await;
        assert_eq!((used.code(), used.problem()), (409, "in_use"));
        assert_eq!(used.body["data"]["instances"], 1);
        let own = api.call(&admin, "DELETE", &format!("/users/{me}"), None).await;
        assert_eq!(own.problem(), "own_account");
        let patch = json!({ "role": "user" });
        let own = api.call(&admin, "PATCH", &format!("/users/{me}"), Some(patch)).await;
        assert_eq!(own.problem(), "own_account");

        let deleted = "update instances set deleted_at = 1 where id = $1";
        api.ctx.db.run(deleted, args![instance]).await.unwrap();
        let gone = api.call(&admin, "DELETE", &format!("/users/{other}"), None).await;
        assert_eq!(gone.code(), 204);
    }
}

#[tokio::test]
async fn two_admins_who_delete_each_other_at_once_leave_one() {
    for api in Api::engines().await {
        let (a, b) = (
            api.person("root-a", RoleName::ADMIN).await,
            api.person("root-b", RoleName::ADMIN).await,
        );
        let (path_a, path_b) = (
            format!("/users/{}", own_id(&api, &a).await),
            format!("/users/{}", own_id(&api, &b).await),
        );

        let (one, two) = tokio::join!(
            api.call(&a, "DELETE", &path_b, None),
            api.call(&b, "DELETE", &path_a, None),
        );

        let admins = api.ctx.db.number("select count(*) from users", args![]).await.unwrap();
        assert_eq!(admins, 1, "{one:?} {two:?}");
        assert!([&one, &two].iter().all(|answer| answer.code() < 500), "{one:?} {two:?}");
    }
}

#[tokio::test]
async fn disabling_or_resetting_an_account_ends_its_sessions_and_says_so() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let id = own_id(&api, &alice).await;
        let mut events = api.ctx.events.listen();

        let body = json!({ "password": "another password" });
        let path = format!("/users/{id}/password");
        assert_eq!(api.call(&admin, "PUT", &path, Some(body)).await.code(), 204);
        assert_eq!(api.call(&alice, "GET", "/session", None).await.code(), 401);
        assert_eq!(events.try_recv().unwrap(), Event::Revoked(id.parse().unwrap()));
        let body = json!({ "username": "alice", "password": "another password", "mode": "token" });
        let session = api.call("", "POST", "/session", Some(body)).await;
        let token = session.text("/token");
        assert_eq!(session.body["user"]["must_change_password"], true);
        let refused = api.call(token, "GET", "/instances", None).await;
        assert_eq!(refused.problem(), "password_change_required");

        let patch = Some(json!({ "disabled": true }));
        assert_eq!(api.call(&admin, "PATCH", &format!("/users/{id}"), patch).await.code(), 200);
        assert_eq!(api.call(token, "GET", "/session", None).await.code(), 401);
        assert_eq!(events.try_recv().unwrap(), Event::Revoked(id.parse().unwrap()));
        let body = json!({ "username": "alice", "password": "another password" });
        let disabled = api.call("", "POST", "/session", Some(body)).await;
        assert_eq!(disabled.problem(), "account_disabled");
    }
}

#[tokio::test]
async fn nobody_and_the_wrong_roles_get_past_no_operation_of_the_room() {
    let api = Api::sqlite().await;
    let admin = api.person("root", RoleName::ADMIN).await;
    let user = api.person("alice", RoleName::USER).await;
    let auditor = api.person("ada", RoleName::AUDITOR).await;
    let id = made(&api, &admin, "bob", "user").await;
    let (one, password) = (format!("/users/{id}"), format!("/users/{id}/password"));
    let body = || Some(json!({ "password": PASSWORD, "name": "carol" }));
    let table = [
        ("GET", "/users", None, 200),
        ("GET", &one, None, 200),
        ("POST", "/users", body(), 403),
        ("PATCH", &one, Some(json!({ "disabled": true })), 403),
        ("PUT", &password, Some(json!({ "password": PASSWORD })), 403),
        ("DELETE", &one, None, 403),
    ];

    for (method, path, body, for_auditor) in table {
        let as_nobody = api.call("", method, path, body.clone()).await;
        assert_eq!(as_nobody.code(), 401, "{method} {path}");
        let as_user = api.call(&user, method, path, body.clone()).await;
        assert_eq!((as_user.code(), as_user.problem()), (403, "forbidden"), "{method} {path}");
        let as_auditor = api.call(&auditor, method, path, body).await;
        assert_eq!(as_auditor.code(), for_auditor, "{method} {path}");
    }
}
