//! Which limits apply, and how a refusal reads.

use serde_json::{Value, json};

use super::{World, exceeded};
use crate::authz::RoleName;
use crate::testing::Api;

#[tokio::test]
async fn a_refusal_says_which_limit_and_by_how_much_in_words_and_in_numbers() {
    for world in World::engines().await {
        let spec = world.spec("cards", json!({ "gpu_count": 2, "cpu_cores": 1.25 })).await;
        world.created("one", &spec).await;
        world.limit(json!({ "gpus": 3, "cpu_cores": 2, "memory_mib": 9_999 })).await;

        let refused = exceeded(world.create("two", &spec).await);

        assert_eq!(
            refused.text("/detail"),
            "this goes over the quota of alice: \
             3 whole GPUs allowed, 2 in use, 2 more needed, 1 too many; \
             2 CPU cores allowed, 1.25 in use, 1.25 more needed, 0.5 too many; \
             stop or delete instances, or ask an admin for a larger quota"
        );
        let expected = json!({ "exceeded": [
            { "limit": "gpus", "allowed": 3, "used": 2, "wanted": 2, "over": 1 },
            { "limit": "cpu_cores", "allowed": 2, "used": 1.25, "wanted": 1.25, "over": 0.5 },
        ] });
        assert_eq!(refused.body["data"], expected);
        let list = world.api.call(&world.alice, "GET", "/instances", None).await;
        assert_eq!(list.body["total"], 1);
    }
}

#[tokio::test]
async fn an_account_has_its_roles_quota_and_its_own_field_by_field() {
    for world in World::engines().await {
        let limits = async || -> Value {
            world.api.call(&world.alice, "GET", "/me/quota", None).await.body["limits"].clone()
        };
        let all = |instances: Value, gpus: Value, cores: Value| {
            json!({ "instances": instances, "gpus": gpus, "gpu_memory_mib": null,
                "cpu_cores": cores, "memory_mib": null, "disk_gib": null })
        };
        assert_eq!(limits().await, all(Value::Null, Value::Null, Value::Null));

        let of_role = json!({ "instances": 4, "gpus": 0, "cpu_cores": 2.5 });
        assert_eq!(world.set("roles/user", of_role).await.code(), 200);
        assert_eq!(limits().await, all(json!(4), json!(0), json!(2.5)));

        world.limit(json!({ "instances": 9, "gpus": "unlimited" })).await;
        assert_eq!(limits().await, all(json!(9), Value::Null, json!(2.5)));

        let path = format!("/quotas/users/{}", world.alice_id);
        assert_eq!(world.api.call(&world.admin, "DELETE", &path, None).await.code(), 204);
        assert_eq!(limits().await, all(json!(4), json!(0), json!(2.5)));
    }
}

#[tokio::test]
async fn a_roles_quota_refuses_its_accounts_and_nobody_else() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        world.set("roles/user", json!({ "instances": 0 })).await;

        exceeded(world.create("hers", &spec).await);

        let body = world.request("mine", &spec);
        let made = world.api.call(&world.admin, "POST", "/instances", Some(body)).await;
        assert_eq!(made.code(), 202, "{made:?}");
        world.limit(json!({ "instances": "unlimited" })).await;
        assert_eq!(world.create("hers", &spec).await.code(), 202);
    }
}

#[tokio::test]
async fn lowering_a_quota_below_what_is_used_ends_nothing_and_refuses_more() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        let paths = [world.created("one", &spec).await, world.created("two", &spec).await];

        world.limit(json!({ "cpu_cores": 1 })).await;

        for path in &paths {
            let seen = world.api.call(&world.alice, "GET", path, None).await;
            assert_eq!(seen.text("/desired"), "running");
        }
        let refused = exceeded(world.create("three", &spec).await);
        assert_eq!(refused.body["data"]["exceeded"][0]["over"], 2);
        assert_eq!(world.act(&paths[0], "stop").await.code(), 202);
        exceeded(world.act(&paths[0], "start").await);
        assert_eq!(world.act(&paths[1], "stop").await.code(), 202);
        assert_eq!(world.act(&paths[0], "start").await.code(), 202);
        assert_eq!(world.api.call(&world.alice, "DELETE", &paths[1], None).await.code(), 202);
    }
}

#[tokio::test]
async fn too_much_of_one_thing_does_not_refuse_another() {
    let world = World::on(Api::sqlite().await).await;
    let cards = world.spec("cards", json!({ "gpu_count": 4 })).await;
    let plain = world.spec("plain", json!({})).await;
    world.created("cards", &cards).await;

    world.limit(json!({ "gpus": 1 })).await;

    assert_eq!(world.create("plain", &plain).await.code(), 202);
    exceeded(world.create("more", &cards).await);
}

#[tokio::test]
async fn the_owners_quota_counts_whoever_starts_their_instance() {
    let world = World::on(Api::sqlite().await).await;
    let spec = world.spec("small", json!({})).await;
    let path = world.created("hers", &spec).await;
    world.act(&path, "stop").await;

    world.limit(json!({ "cpu_cores": 0 })).await;

    let started = world.api.call(&world.admin, "POST", &format!("{path}/start"), None).await;
    let refused = exceeded(started);
    assert!(refused.text("/detail").contains("the quota of alice"), "{refused:?}");
}

#[tokio::test]
async fn a_repeated_create_with_a_key_gives_the_first_instance_although_the_quota_is_full() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        world.limit(json!({ "instances": 1 })).await;
        let create = async |name: &str, key: &str| {
            let (body, headers) = (Some(world.request(name, &spec)), [("idempotency-key", key)]);
            world.api.call_with(&world.alice, "POST", "/instances", body, &headers).await
        };

        let first = create("one", "k1").await;
        let again = create("one", "k1").await;

        assert_eq!((again.code(), again.text("/id")), (202, first.text("/id")));
        exceeded(create("two", "k2").await);
        // A refusal leaves the key free for when there is room.
        world.limit(json!({ "instances": 2 })).await;
        assert_eq!(create("two", "k2").await.code(), 202);
    }
}

#[tokio::test]
async fn placements_say_that_the_quota_would_refuse() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        let (image, spec) = (world.image.as_str().unwrap(), spec.as_str().unwrap());
        let path = format!("/placements?image_id={image}&spec_id={spec}");
        let refused =
            async || world.api.call(&world.alice, "GET", &path, None).await.body["refused"].clone();
        assert_eq!(refused().await, Value::Null);

        world.limit(json!({ "disk_gib": 9 })).await;

        let told = refused().await;
        assert_eq!(told["code"], "quota_exceeded", "{told}");
        assert_eq!(told["data"]["exceeded"][0]["over"], 1, "{told}");
        let auditor = world.api.person("ada", RoleName::AUDITOR).await;
        let theirs = world.api.call(&auditor, "GET", &path, None).await;
        assert_eq!(theirs.body["refused"], Value::Null);
    }
}

#[tokio::test]
async fn whoever_may_not_have_it_is_told_so_before_they_are_told_to_wait() {
    let world = World::on(Api::sqlite().await).await;
    let spec = world.spec("cards", json!({ "gpu_count": 1 })).await;
    let mut body = world.request("now", &spec);
    body["fail_if_full"] = json!(true);
    let create =
        async || world.api.call(&world.alice, "POST", "/instances", Some(body.clone())).await;
    assert_eq!(create().await.problem(), "no_capacity");

    world.limit(json!({ "gpus": 0 })).await;

    exceeded(create().await);
}
