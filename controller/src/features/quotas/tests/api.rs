//! Setting, reading and removing quotas.

use serde_json::{Value, json};

use super::{World, own_id};
use crate::authz::RoleName;
use crate::core::db::args;
use crate::testing::{Api, PASSWORD};

#[tokio::test]
async fn quotas_are_set_read_listed_and_removed() {
    for world in World::engines().await {
        let get = async |path: &str| world.api.call(&world.admin, "GET", path, None).await;
        let user = format!("/quotas/users/{}", world.alice_id);
        let none = json!({ "instances": null, "gpus": null, "gpu_memory_mib": null,
            "cpu_cores": null, "memory_mib": null, "disk_gib": null });
        assert_eq!(get(&user).await.body["quota"], none);
        assert_eq!(get("/quotas").await.body["total"], 0);

        let said = json!({ "instances": 3, "gpus": "unlimited", "gpu_memory_mib": 0,
            "cpu_cores": 1.5, "memory_mib": 9_007_199_254_740_991_u64, "disk_gib": null });
        world.limit(said.clone()).await;
        let set = world.set("roles/user", json!({ "disk_gib": 100 })).await;
        assert_eq!((set.code(), set.text("/role")), (200, "user"));

        let seen = get(&user).await.body;
        assert_eq!(seen["quota"], said);
        assert_eq!((&seen["user_name"], &seen["role"]), (&json!("alice"), &json!("user")));
        let applies = (&seen["limits"]["gpus"], &seen["limits"]["disk_gib"]);
        assert_eq!(applies, (&Value::Null, &json!(100)));
        let list = get("/quotas?sort=-name").await.body;
        let names: Vec<_> = list["items"].as_array().unwrap().iter().collect();
        assert_eq!((&names[0]["role"], &names[1]["user_name"]), (&json!("user"), &json!("alice")));
        assert_eq!(get("/quotas?name=ALI").await.body["items"][0]["quota"], said);

        // What a later body leaves out is no longer said.
        world.limit(json!({ "gpus": 1 })).await;
        assert_eq!(get(&user).await.body["quota"]["instances"], Value::Null);
        for path in [user.as_str(), "/quotas/roles/user"] {
            let delete = async || world.api.call(&world.admin, "DELETE", path, None).await;
            assert_eq!(delete().await.code(), 204);
            assert_eq!(delete().await.problem(), "no_such_quota");
        }
        assert_eq!(get("/quotas").await.body["total"], 0);
    }
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused_with_what_to_write() {
    let world = World::on(Api::sqlite().await).await;

    for (said, body) in [
        ("whole number", json!({ "instances": -1 })),
        ("whole number", json!({ "gpus": 1.5 })),
        ("whole number", json!({ "memory_mib": "many" })),
        ("whole number", json!({ "memory_mib": true })),
        ("whole number", json!({ "disk_gib": 1_u64 << 53 })),
        ("3 decimals", json!({ "cpu_cores": 0.0001 })),
        ("3 decimals", json!({ "cpu_cores": -1 })),
        ("3 decimals", json!({ "cpu_cores": 1_000_001 })),
        ("unlimited", json!({ "cpu_cores": "2" })),
        ("unknown field", json!({ "cards": 1 })),
    ] {
        for whose in [format!("users/{}", world.alice_id), "roles/user".to_owned()] {
            let refused = world.set(&whose, body.clone()).await;
            let is_told = refused.text("/detail").contains(said);
            assert!(refused.code() == 422 && is_told, "{body}: {refused:?}");
        }
    }
    let unknown = world.set("roles/no-such-role", json!({})).await;
    assert_eq!((unknown.code(), unknown.problem()), (404, "no_such_role"));
    let nobody = uuid::Uuid::now_v7();
    let unknown = world.set(&format!("users/{nobody}"), json!({})).await;
    assert_eq!((unknown.code(), unknown.problem()), (404, "no_such_user"));
}

#[tokio::test]
async fn everybody_sees_their_own_quota_and_only_some_see_others() {
    let world = World::on(Api::sqlite().await).await;
    let auditor = world.api.person("ada", RoleName::AUDITOR).await;
    let user = format!("/quotas/users/{}", world.alice_id);

    for path in ["/quotas", &user, "/quotas/roles/user"] {
        assert_eq!(world.api.call(&world.alice, "GET", path, None).await.code(), 403, "{path}");
        assert_eq!(world.api.call(&auditor, "GET", path, None).await.code(), 200, "{path}");
    }
    for path in [&user, "/quotas/roles/user"] {
        for token in [&world.alice, &auditor] {
            let put = world.api.call(token, "PUT", path, Some(json!({ "gpus": 9 }))).await;
            assert_eq!(put.code(), 403, "{path}");
        }
    }
    for token in [&world.alice, &auditor, &world.admin] {
        assert_eq!(world.api.call(token, "GET", "/me/quota", None).await.code(), 200);
    }
}

#[tokio::test]
async fn nobody_but_an_admin_gives_more_to_themselves() {
    let world = World::on(Api::sqlite().await).await;
    let role = json!({ "name": "lead", "permissions": [
        { "permission": "quotas:write", "reach": "all" },
        { "permission": "users:read", "reach": "all" },
    ] });
    let made = world.api.call(&world.admin, "POST", "/roles", Some(role)).await;
    assert_eq!(made.code(), 201, "{made:?}");
    let lead = world.api.person("lou", RoleName::new("lead")).await;
    let own = format!("/quotas/users/{}", own_id(&world.api, &lead).await);
    let put = async |token: &str, path: &str| {
        let answer = world.api.call(token, "PUT", path, Some(json!({ "gpus": 9 }))).await;
        (answer.code(), answer.problem().to_owned())
    };

    assert_eq!(put(&lead, &own).await, (409, "own_account".to_owned()));
    assert_eq!(put(&lead, "/quotas/roles/lead").await, (409, "own_role".to_owned()));
    let delete = world.api.call(&lead, "DELETE", &own, None).await;
    assert_eq!(delete.problem(), "own_account");
    assert_eq!(put(&lead, &format!("/quotas/users/{}", world.alice_id)).await.0, 200);
    let admins = format!("/quotas/users/{}", own_id(&world.api, &world.admin).await);
    assert_eq!(put(&world.admin, &admins).await.0, 200);
    assert_eq!(put(&world.admin, "/quotas/roles/admin").await.0, 200);
}

#[tokio::test]
async fn what_changed_stands_in_the_audit_before_and_after() {
    for world in World::engines().await {
        world.limit(json!({ "gpus": 1 })).await;
        world.limit(json!({ "gpus": 2 })).await;
        let path = format!("/quotas/users/{}", world.alice_id);
        world.api.call(&world.admin, "DELETE", &path, None).await;

        let path = "/audit-events?action=quotas:write";
        let rows = world.api.call(&world.admin, "GET", path, None).await.body;

        let gpus = |at: usize, when: &str| rows["items"][at]["detail"][when]["gpus"].clone();
        assert_eq!(rows["total"], 3, "{rows}");
        assert_eq!((gpus(2, "before"), gpus(2, "after")), (Value::Null, json!(1)));
        assert_eq!((gpus(1, "before"), gpus(1, "after")), (json!(1), json!(2)));
        assert_eq!((gpus(0, "before"), gpus(0, "after")), (json!(2), Value::Null));
        assert_eq!(rows["items"][0]["target_id"], json!(world.alice_id));
    }
}

#[tokio::test]
async fn a_quota_goes_with_its_account_or_its_role() {
    for world in World::engines().await {
        let call = async |method: &str, path: &str, body: Option<Value>| {
            let answer = world.api.call(&world.admin, method, path, body).await;
            assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
            answer
        };
        let account = json!({ "name": "bob", "password": PASSWORD });
        let bob = call("POST", "/users", Some(account)).await.text("/id").to_owned();
        call("POST", "/roles", Some(json!({ "name": "guest", "permissions": [] }))).await;
        call("PUT", &format!("/quotas/users/{bob}"), Some(json!({ "gpus": 1 }))).await;
        call("PUT", "/quotas/roles/guest", Some(json!({ "gpus": 1 }))).await;
        call("PUT", "/quotas/roles/user", Some(json!({ "gpus": 1 }))).await;

        call("DELETE", &format!("/users/{bob}"), None).await;
        call("DELETE", "/roles/guest", None).await;

        let left = world.api.ctx.db.number("select count(*) from quotas", args![]).await.unwrap();
        assert_eq!(left, 1);
    }
}
