//! Accounts through the API, on three engines.

use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::core::db::args;
use crate::core::event::Event;
use crate::testing::{Api, PASSWORD, audited_changes};

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

/// Makes a live instance of somebody's.
pub(super) async fn instance_of(api: &Api, owner: &str, name: &str) -> uuid::Uuid {
    const INSTANCE: &str = "insert into instances (id, owner_id, name, live_name, image_id, \
         spec_id, image_address, spec, environment, restart_policy, priority, remark, desired, \
         generation, phase, reason_code, reason, reason_detail, observed_generation, \
         container_name, gpus, limits, fail_if_full, restarts, queued_at, created_at, updated_at) \
         values ($1, $2, $4, $4, $1, $1, '', '', '', '', 0, '', '', 0, '', '', '', '', 0, \
         '', '', '', $3, 0, 0, 0, 0)";
    let (instance, owner) = (uuid::Uuid::now_v7(), owner.parse::<uuid::Uuid>().unwrap());
    api.ctx.db.run(INSTANCE, args![instance, owner, false, name]).await.unwrap();
    instance
}

async fn count(api: &Api, sql: &str, args: Vec<crate::core::db::Value>) -> i64 {
    api.ctx.db.number(sql, args).await.unwrap()
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
        let changes = json!({ "display_name": { "before": "", "after": "爱丽丝" } });
        assert_eq!(audited_changes(&api.ctx.db).await, changes);

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
        let instance = instance_of(&api, &other, "x").await;

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

#[tokio::test]
async fn a_leavers_instances_become_somebody_elses_in_the_same_step() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let (alice, bob) =
            (made(&api, &admin, "alice", "user").await, made(&api, &admin, "bob", "user").await);
        let (same, other) =
            (instance_of(&api, &alice, "x").await, instance_of(&api, &alice, "y").await);
        instance_of(&api, &bob, "x").await;
        instance_of(&api, &bob, "x-2").await;
        let mut events = api.ctx.events.listen();

        let path = format!("/users/{alice}?hand_over_to={bob}");
        let answer = api.call(&admin, "DELETE", &path, None).await;

        assert_eq!(answer.code(), 204, "{answer:?}");
        let owns = "select count(*) from instances where id = $1 and owner_id = $2 \
             and name = $3 and live_name = $3";
        let bob = bob.parse::<uuid::Uuid>().unwrap();
        assert_eq!(count(&api, owns, args![same, bob, "x-3"]).await, 1);
        assert_eq!(count(&api, owns, args![other, bob, "y"]).await, 1);
        let told = "select count(*) from instance_events where instance_id = $1 \
             and kind = 'handed_over'";
        assert_eq!(count(&api, told, args![same]).await, 1);
        let audit = "select count(*) from audit_events where action = 'instances:hand_over' \
             and target_id = $1 and actor_name = 'root'";
        assert_eq!(count(&api, audit, args![same.to_string()]).await, 1);
        assert_eq!(events.try_recv().unwrap(), Event::Revoked(alice.parse().unwrap()));
        let moved = [events.try_recv().unwrap(), events.try_recv().unwrap()];
        assert!(moved.iter().all(|event| matches!(event, Event::Instance(_))), "{moved:?}");
    }
}

#[tokio::test]
async fn instances_are_handed_over_to_a_living_enabled_other_account_or_not_at_all() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = made(&api, &admin, "alice", "user").await;
        let gone = made(&api, &admin, "gone", "user").await;
        let patch = Some(json!({ "disabled": true }));
        api.call(&admin, "PATCH", &format!("/users/{gone}"), patch).await;
        instance_of(&api, &alice, "x").await;

        for heir in [alice.clone(), gone, uuid::Uuid::now_v7().to_string()] {
            let path = format!("/users/{alice}?hand_over_to={heir}");
            let refused = api.call(&admin, "DELETE", &path, None).await;
            assert_eq!((refused.code(), refused.problem()), (422, "bad_heir"), "{refused:?}");
        }
        let path = format!("/users/{alice}?hand_over_to=nobody");
        assert_eq!(api.call(&admin, "DELETE", &path, None).await.problem(), "bad_query");
        let kept = "select count(*) from users where name = 'alice'";
        assert_eq!(count(&api, kept, args![]).await, 1);
    }
}

#[tokio::test]
async fn people_change_what_their_own_account_says_and_nothing_else_of_it() {
    for api in Api::engines().await {
        let alice = api.person("alice", RoleName::USER).await;
        let patch = json!({ "display_name": "爱丽丝", "email": "alice@example.org",
            "phone": "+86 10 1234", "avatar_color": "#1890FF" });

        let changed = api.call(&alice, "PATCH", "/me", Some(patch)).await;

        assert_eq!(changed.code(), 200, "{changed:?}");
        let read = api.call(&alice, "GET", "/me", None).await;
        assert_eq!(read.body, changed.body);
        assert_eq!(read.text("/avatar_color"), "#1890ff");
        assert_eq!(
            (read.text("/email"), read.text("/phone")),
            ("alice@example.org", "+86 10 1234")
        );
        let cleared = api.call(&alice, "PATCH", "/me", Some(json!({ "email": "" }))).await;
        assert_eq!((cleared.text("/email"), cleared.text("/phone")), ("", "+86 10 1234"));
        for bad in [
            json!({ "role": "admin" }),
            json!({ "disabled": false }),
            json!({ "name": "root" }),
            json!({ "email": "alice" }),
            json!({ "email": format!("{}@example.org", "a".repeat(190)) }),
            json!({ "phone": "call me" }),
            json!({ "avatar_color": "red" }),
            json!({ "display_name": "x".repeat(101) }),
            json!({ "display_name": null }),
        ] {
            let refused = api.call(&alice, "PATCH", "/me", Some(bad.clone())).await;
            assert_eq!((refused.code(), refused.problem()), (422, "bad_field"), "{bad}");
        }
    }
}

#[tokio::test]
async fn accounts_are_found_by_what_they_say_and_in_the_order_asked_for() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        for (name, email, phone) in
            [("alice", "a@example.org", "111 222"), ("bob", "b@example.com", "333 444")]
        {
            let body = json!({ "name": name, "password": PASSWORD, "email": email, "phone": phone,
                "display_name": format!("Dr. {name}"), "avatar_color": "#00ff00" });
            assert_eq!(api.call(&admin, "POST", "/users", Some(body)).await.code(), 201);
        }
        let names = async |query: &str| {
            let list = api.call(&admin, "GET", &format!("/users?{query}"), None).await;
            let items = list.body["items"].as_array().unwrap().clone();
            items.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };

        assert_eq!(names("email=EXAMPLE.org").await, ["alice"]);
        assert_eq!(names("phone=333").await, ["bob"]);
        assert_eq!(names("display_name=dr.&sort=-email").await, ["bob", "alice"]);
        assert_eq!(names("role=user&sort=-display_name").await, ["bob", "alice"]);
        assert_eq!(names("role=admin").await, ["root"]);
    }
}
