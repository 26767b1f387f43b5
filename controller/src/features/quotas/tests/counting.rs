//! What counts, and that requests at once count one after the other.

use futures_util::future::join_all;
use serde_json::json;

use super::{World, exceeded, nothing, own_id};
use crate::authz::RoleName;
use crate::core::db::args;

#[tokio::test]
async fn of_32_creates_at_once_exactly_as_many_get_through_as_the_quota_allows() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        world.limit(json!({ "instances": 5 })).await;

        let names: Vec<String> = (0..32).map(|n| format!("at-once-{n}")).collect();
        let answers = join_all(names.iter().map(|name| world.create(name, &spec))).await;

        let (made, refused): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.code() == 202);
        assert_eq!(made.len(), 5);
        for answer in refused {
            exceeded(answer);
        }
        assert_eq!(world.used().await["instances"], 5);
    }
}

#[tokio::test]
async fn creates_of_different_sizes_at_once_never_exceed_any_quantity() {
    for world in World::engines().await {
        let cards = world.spec("cards", json!({ "gpu_count": 2 })).await;
        let slice = json!({ "gpu_count": 1, "slicing": true, "gpu_memory_mib": 3_000 });
        let slice = world.spec("slice", slice).await;
        world.limit(json!({ "gpus": 5, "gpu_memory_mib": 10_000, "cpu_cores": 4.5 })).await;

        let names: Vec<String> = (0..16).map(|n| format!("mixed-{n}")).collect();
        let sizes = [&cards, &slice];
        let requests = names.iter().zip(sizes.iter().cycle());
        join_all(requests.map(|(name, spec)| world.create(name, spec))).await;

        let used = world.used().await;
        assert_eq!(used["cpu_cores"], 4, "{used}");
        assert!(used["gpus"].as_u64().unwrap() <= 5, "{used}");
        assert!(used["gpu_memory_mib"].as_u64().unwrap() <= 10_000, "{used}");
    }
}

#[tokio::test]
async fn of_starts_at_once_exactly_as_many_get_through_as_the_quota_allows() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        let mut paths = Vec::new();
        for n in 0..8 {
            paths.push(world.created(&format!("stopped-{n}"), &spec).await);
        }
        for path in &paths {
            assert_eq!(world.act(path, "stop").await.code(), 202);
        }
        world.limit(json!({ "cpu_cores": 3, "instances": 8 })).await;

        let answers = join_all(paths.iter().map(|path| world.act(path, "start"))).await;

        let (started, refused): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.code() == 202);
        assert_eq!(started.len(), 3);
        for answer in refused {
            exceeded(answer);
        }
        assert_eq!(world.used().await["cpu_cores"], 3);
    }
}

#[tokio::test]
async fn an_instance_that_two_start_at_once_counts_once() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        let path = world.created("twice", &spec).await;
        world.act(&path, "stop").await;
        world.limit(json!({ "cpu_cores": 1 })).await;

        let answers = join_all((0..8).map(|_| world.act(&path, "start"))).await;

        let mut codes: Vec<_> = answers.iter().map(|answer| answer.problem()).collect();
        codes.sort_unstable();
        assert_eq!(codes[0], "", "{answers:?}");
        assert!(codes[1..].iter().all(|code| *code == "not_possible"), "{answers:?}");
    }
}

#[tokio::test]
async fn the_queue_counts_a_stop_gives_back_and_a_delete_keeps_the_disk_until_it_is_gone() {
    for world in World::engines().await {
        let cards = world.spec("cards", json!({ "gpu_count": 2 })).await;
        let slice = json!({ "gpu_count": 1, "slicing": true, "gpu_memory_mib": 3_000,
            "cpu_cores": 0.5 });
        let slice = world.spec("slice", slice).await;
        assert_eq!(world.used().await, nothing());

        let first = world.created("first", &cards).await;
        let second = world.created("second", &slice).await;
        let waiting = json!({ "instances": 2, "gpus": 2, "gpu_memory_mib": 3_000,
            "cpu_cores": 1.5, "memory_mib": 2_048, "disk_gib": 20 });
        assert_eq!(world.used().await, waiting);

        world.act(&first, "stop").await;
        let stopped = json!({ "instances": 2, "gpus": 0, "gpu_memory_mib": 3_000,
            "cpu_cores": 0.5, "memory_mib": 1_024, "disk_gib": 20 });
        assert_eq!(world.used().await, stopped);

        // What has a place goes when its node says so.
        let placed = "update instances set node_id = id where name = $1";
        world.api.ctx.db.run(placed, args!["second"]).await.unwrap();
        for path in [&first, &second] {
            let deleted = world.api.call(&world.alice, "DELETE", path, None).await;
            assert_eq!(deleted.code(), 202);
        }
        let mut going = nothing();
        going["disk_gib"] = json!(10);
        assert_eq!(world.used().await, going);
    }
}

#[tokio::test]
async fn what_is_handed_over_counts_for_whoever_has_it_and_may_exceed_their_quota() {
    for world in World::engines().await {
        let spec = world.spec("small", json!({})).await;
        let bob = world.api.person("bob", RoleName::USER).await;
        let bob_id: uuid::Uuid = own_id(&world.api, &bob).await.parse().unwrap();
        let body = world.request("his", &spec);
        world.api.call(&bob, "POST", "/instances", Some(body)).await;
        world.created("hers", &spec).await;
        world.limit(json!({ "instances": 1 })).await;

        let hand_over = "update instances set owner_id = $1 where owner_id = $2";
        let alice_id: uuid::Uuid = world.alice_id.parse().unwrap();
        world.api.ctx.db.run(hand_over, args![alice_id, bob_id]).await.unwrap();

        assert_eq!(world.used().await["instances"], 2);
        let refused = exceeded(world.create("third", &spec).await);
        assert_eq!(refused.body["data"]["exceeded"][0]["over"], 2);
        let theirs = world.api.call(&bob, "GET", "/me/quota", None).await;
        assert_eq!(theirs.body["used"], nothing());
    }
}
