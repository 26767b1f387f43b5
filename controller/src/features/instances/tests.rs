//! The room with real databases.

use std::collections::BTreeMap;

use tianqi_common::id::InstanceId;
use uuid::Uuid;

use super::actions::{self, Verb};
use super::lifecycle::{Desired, Phase};
use super::model::{CreateInstance, PatchInstance};
use super::testing::{World, anything, granted, image};
use super::view::{self, InstanceQuery};
use super::{fleet, store};
use crate::core::db::{args, testing};
use crate::core::error::Problem;
use crate::core::page::PageQuery;

async fn phase(world: &World, id: InstanceId) -> (Desired, Phase) {
    let it = store::get(&world.ctx.db, id).await.unwrap().unwrap();
    (it.state.desired, it.state.phase)
}

#[tokio::test]
async fn a_new_instance_waits_and_is_shown_with_everything_it_was_made_of() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let spec = world.spec("slice", 1, Some((1_024, 10))).await;
        let mut request = world.request("train-7", spec);
        request.env = BTreeMap::from([("SEED".to_owned(), "7".to_owned())]);

        let id = world.create(&world.alice, request).await.unwrap();
        let shown = view::one(&world.ctx.db, id).await.unwrap().unwrap();

        assert_eq!((shown.phase, shown.desired), (Phase::Pending, Desired::Running));
        assert_eq!(shown.owner_name.as_deref(), Some("alice"));
        assert_eq!(shown.image_name.as_deref(), Some("sliceable"));
        assert_eq!(shown.spec.gpu_memory_mib, Some(1_024));
        assert_eq!(shown.spec.price_per_hour, "1.5");
        assert!(shown.container_name.starts_with(&format!("train-7-{id}-")));
        assert_eq!(shown.queue.unwrap().position, 1);
        let history = view::history(&world.ctx.db, id, &PageQuery::default()).await.unwrap();
        assert_eq!(history.items[0].kind, "created");
    }
}

#[tokio::test]
async fn wrong_requests_are_refused_with_a_code_that_says_why() {
    let world = World::on(testing::sqlite().await).await;
    let spec = world.spec("slice", 1, Some((1_024, 10))).await;
    let hidden_image = image(&world.ctx.db, "hidden", true, false).await;
    let hidden_node = world.node("hidden", 4, 0).await;
    let unlist = "update nodes set listed = $1 where id = $2";
    world.ctx.db.run(unlist, args![false, hidden_node]).await.unwrap();
    let with = |change: &dyn Fn(&mut CreateInstance)| {
        let mut request = world.request("ok", spec);
        change(&mut request);
        request
    };
    let env = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let many: BTreeMap<_, _> = (0..101).map(|n| (format!("V{n}"), String::new())).collect();
    let table = [
        ("bad_name", with(&|r| r.name = "训练".into())),
        ("bad_name", with(&|r| r.name = "a b".into())),
        ("bad_name", with(&|r| r.name = "../x".into())),
        ("bad_name", with(&|r| r.name = "a".repeat(51))),
        ("bad_name", with(&|r| r.name = String::new())),
        ("bad_remark", with(&|r| r.remark = "长".repeat(1_001))),
        ("bad_env", with(&|r| r.env = env("1A", ""))),
        ("bad_env", with(&|r| r.env = env("A=B", ""))),
        ("bad_env", with(&|r| r.env = env("A", &"x".repeat(5_000)))),
        ("bad_env", with(&|r| r.env = env("A", "x\0y"))),
        ("bad_env", with(&|r| r.env = many.clone())),
        ("reserved_env", with(&|r| r.env = env("LD_PRELOAD", "/x.so"))),
        ("reserved_env", with(&|r| r.env = env("ld_audit", "/x.so"))),
        ("reserved_env", with(&|r| r.env = env("CUDA_DEVICE_MEMORY_LIMIT_0", "0"))),
        ("reserved_env", with(&|r| r.env = env("NVIDIA_VISIBLE_DEVICES", "all"))),
        ("reserved_env", with(&|r| r.env = env("CUDA_VISIBLE_DEVICES", "0"))),
        ("no_such_image", with(&|r| r.image_id = Uuid::now_v7())),
        ("no_such_spec", with(&|r| r.spec_id = Uuid::now_v7())),
        ("no_such_node", with(&|r| r.node_id = Some(Uuid::now_v7()))),
        ("not_listed", with(&|r| r.image_id = hidden_image)),
        ("not_listed", with(&|r| r.node_id = Some(hidden_node.0))),
        ("image_cannot_slice", with(&|r| r.image_id = world.plain_image)),
        ("priority_forbidden", with(&|r| r.priority = Some(1))),
        ("bad_priority", with(&|r| r.priority = Some(101))),
    ];

    for (code, request) in table {
        let shown = format!("{request:?}");
        let problem = world.create(&world.alice, request).await.unwrap_err();
        assert_eq!(problem.code, code, "{shown}");
        assert!(problem.status.is_client_error());
    }
    assert!(world.create(&world.alice, world.request("ok", spec)).await.is_ok());
}

#[tokio::test]
async fn a_name_is_unique_among_its_owners_live_instances() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let spec = world.spec("cpu", 0, None).await;
        let first = world.create(&world.alice, world.request("same", spec)).await.unwrap();

        let again = world.create(&world.alice, world.request("same", spec)).await.unwrap_err();
        assert_eq!(again.code, "name_taken");
        assert!(world.create(&world.bob, world.request("same", spec)).await.is_ok());

        let other = world.create(&world.alice, world.request("other", spec)).await.unwrap();
        let grant = granted(&world.ctx, &world.alice, other).await.unwrap();
        let patch = PatchInstance { name: Some("same".into()), remark: None };
        let taken = actions::patch(&world.ctx, &grant, patch).await.unwrap_err();
        assert_eq!(taken.code, "name_taken");

        let grant = granted(&world.ctx, &world.alice, first).await.unwrap();
        actions::delete(&world.ctx, &grant).await.unwrap();
        assert!(world.create(&world.alice, world.request("same", spec)).await.is_ok());
    }
}

#[tokio::test]
async fn an_account_that_was_deleted_while_it_asked_gets_no_instance() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let spec = world.spec("cpu", 0, None).await;
        let delete = "delete from users where id = $1";
        world.ctx.db.run(delete, args![world.alice.id]).await.unwrap();

        let refused = world.create(&world.alice, world.request("late", spec)).await.unwrap_err();

        assert_eq!((refused.status.as_u16(), refused.code), (409, "owner_gone"));
        assert_eq!(
            view::list(&world.ctx.db, None, InstanceQuery::default()).await.unwrap().total,
            0
        );
    }
}

#[tokio::test]
async fn a_user_sees_and_steers_only_what_is_theirs() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let spec = world.spec("cpu", 0, None).await;
        let hers = world.create(&world.alice, world.request("hers", spec)).await.unwrap();
        let his = world.create(&world.bob, world.request("his", spec)).await.unwrap();

        let list = |owner| view::list(&world.ctx.db, owner, InstanceQuery::default());
        assert_eq!(list(Some(world.alice.id)).await.unwrap().total, 1);
        assert_eq!(list(None).await.unwrap().total, 2);
        let missing = |problem: Problem| assert_eq!(problem.code, "no_such_instance");
        missing(
            granted::<crate::authz::policy::InstancesWrite>(&world.ctx, &world.alice, his)
                .await
                .unwrap_err(),
        );
        let many = anything(&world.alice).unwrap();
        missing(actions::delete_one_of_many(&world.ctx, &many, his.0).await.unwrap_err());
        actions::delete_one_of_many(&world.ctx, &many, hers.0).await.unwrap();
        assert_eq!(list(None).await.unwrap().items[0].id, his.0);
        let admin = granted(&world.ctx, &world.admin, his).await.unwrap();
        actions::steer(&world.ctx, &admin, Verb::Stop).await.unwrap();
        assert_eq!(phase(&world, his).await, (Desired::Stopped, Phase::Exited));
    }
}

#[tokio::test]
async fn a_verb_that_does_not_apply_says_what_does() {
    let world = World::on(testing::sqlite().await).await;
    let spec = world.spec("cpu", 0, None).await;
    let id = world.create(&world.alice, world.request("a", spec)).await.unwrap();
    let grant = granted(&world.ctx, &world.alice, id).await.unwrap();

    let refused = actions::steer(&world.ctx, &grant, Verb::Start).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), refused.code), (409, "not_possible"));
    assert_eq!(refused.data.unwrap()["possible"], serde_json::json!(["stop", "delete"]));

    actions::steer(&world.ctx, &grant, Verb::Stop).await.unwrap();
    actions::steer(&world.ctx, &grant, Verb::Start).await.unwrap();
    assert_eq!(phase(&world, id).await, (Desired::Running, Phase::Pending));
}

#[tokio::test]
async fn fail_if_full_refuses_at_once_and_leaves_nothing() {
    let world = World::on(testing::sqlite().await).await;
    let spec = world.spec("card", 1, None).await;
    let mut request = world.request("now", spec);
    request.fail_if_full = true;

    let refused = world.create(&world.alice, request.clone()).await.unwrap_err();
    assert_eq!((refused.status.as_u16(), refused.code), (409, "no_capacity"));
    assert_eq!(view::list(&world.ctx.db, None, InstanceQuery::default()).await.unwrap().total, 0);

    world.node("gpu-1", 8, 1).await;
    assert!(world.create(&world.alice, request).await.is_ok());
}

#[tokio::test]
async fn lists_narrow_by_every_filter() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let (small, large) =
            (world.spec("small", 0, None).await, world.spec("large", 0, None).await);
        let first = world.create(&world.alice, world.request("Train_1", small)).await.unwrap();
        world.create(&world.alice, world.request("serve", large)).await.unwrap();
        let set = "update instances set container_id = $1 where id = $2";
        world.ctx.db.run(set, args!["abcdef0123", first]).await.unwrap();
        let names = async |query: InstanceQuery| -> Vec<String> {
            let page = view::list(&world.ctx.db, None, query).await.unwrap();
            assert_eq!(page.total, i64::try_from(page.items.len()).unwrap());
            page.items.into_iter().map(|it| it.name).collect()
        };
        let query = InstanceQuery::default;

        assert_eq!(
            names(InstanceQuery { name: Some("train_".into()), ..query() }).await,
            ["Train_1"]
        );
        assert_eq!(names(InstanceQuery { spec_id: Some(large), ..query() }).await, ["serve"]);
        assert_eq!(
            names(InstanceQuery { container_id: Some("CDEF".into()), ..query() }).await,
            ["Train_1"]
        );
        assert_eq!(
            names(InstanceQuery { phase: Some("running".into()), ..query() }).await,
            [""; 0]
        );
        assert_eq!(names(InstanceQuery { sort: Some("name".into()), ..query() }).await.len(), 2);
        let later = Some(view::time(i64::from(u32::MAX) * 1_000));
        assert_eq!(names(InstanceQuery { created_after: later, ..query() }).await, [""; 0]);
        assert_eq!(names(InstanceQuery { created_before: later, ..query() }).await.len(), 2);
        let bad = InstanceQuery { phase: Some("dancing".into()), ..query() };
        assert_eq!(view::list(&world.ctx.db, None, bad).await.unwrap_err().code, "bad_phase");
    }
}

#[tokio::test]
async fn the_fleet_reads_capacity_and_use_alike_on_every_engine() {
    for db in testing::databases().await {
        let world = World::on(db).await;
        let node = world.node("gpu-1", 8, 2).await;
        let spec = world.spec("slice", 1, Some((1_024, 10))).await;
        let id = world.create(&world.alice, world.request("a", spec)).await.unwrap();
        let it = store::get(&world.ctx.db, id).await.unwrap().unwrap();
        let nodes = fleet::all_nodes(&world.ctx.db).await.unwrap();
        let snapshot = tianqi_scheduler::Snapshot::new(nodes);
        let placement = tianqi_scheduler::place(&snapshot, &it.request()).unwrap();
        let mut tx = world.ctx.db.begin().await.unwrap();
        store::grant(&mut tx, &it, &it.request(), &placement, world.ctx.clock.now()).await.unwrap();
        tx.commit().await.unwrap();

        let only = std::collections::BTreeSet::from([node]);
        let some = fleet::some_nodes(&world.ctx.db, &only).await.unwrap();

        assert_eq!(some, fleet::all_nodes(&world.ctx.db).await.unwrap());
        let used = (some[0].cpu_used.0, some[0].memory_used.0, some[0].disk_used.0);
        assert_eq!(used, (1_000, 1_024, 2));
        let cards: Vec<_> =
            some[0].gpus.iter().map(|gpu| (gpu.shares, gpu.memory_used.0)).collect();
        assert!(cards.contains(&(1, 1_024)) && cards.contains(&(0, 0)), "{cards:?}");
    }
}
