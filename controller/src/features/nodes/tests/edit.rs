//! What admins do to nodes.

use serde_json::{Value, json};

use super::*;
use crate::core::error::Problem;
use crate::core::event::Event;
use crate::core::page::PageQuery;
use crate::features::nodes::actions::{self, Drain, GpuPatch};
use crate::features::nodes::model::{NodeFilter, NodePatch};
use crate::features::nodes::{settings, view};
use crate::testing::audited_changes;

fn patch(body: &Value) -> NodePatch {
    serde_json::from_value(body.clone()).unwrap()
}

async fn change(room: &Room, node: NodeId, body: Value) -> Result<Value, Problem> {
    let saved = actions::update(&room.ctx, &on(node), &patch(&body)).await?;
    Ok(serde_json::to_value(saved).unwrap())
}

fn pems() -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec!["docker".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn every_editable_field_is_saved_and_shown() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let body = json!({
            "name": "训练 节点-1", "region": "上海", "public_ip": "203.0.113.9",
            "private_ip": "fd00::1", "ssh_port": 2222, "ssh_user": "ops", "remark": "a\nb",
            "listed": false, "hami_dir": "/opt/hami", "docker_endpoint": "tcp://10.0.0.7:2376",
        });

        let saved = change(&room, node, body.clone()).await.unwrap();

        for (field, value) in body.as_object().unwrap() {
            assert_eq!(&saved[field], value, "{field}");
        }
        let unavailable = saved["check"]["unavailable"].as_str().unwrap();
        assert!(unavailable.contains("offline"), "{unavailable}");
        let cleared = json!({ "hami_dir": null, "docker_endpoint": "", "public_ip": "" });
        let saved = change(&room, node, cleared).await.unwrap();
        assert_eq!((&saved["hami_dir"], &saved["docker_endpoint"]), (&Value::Null, &Value::Null));
        let saved = change(&room, node, json!({ "remark": "x" })).await.unwrap();
        assert_eq!(saved.get("check"), None);
        assert_eq!(saved["region"], "上海");
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_and_nothing_of_it_is_saved() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let other = room.node("taken").await;
        let long = "a".repeat(65);
        for (field, bad) in [
            ("name", json!("")),
            ("name", json!("../x")),
            ("name", json!(" a")),
            ("name", json!("a\u{0}b")),
            ("name", json!("a/b")),
            ("name", json!(long)),
            ("name", json!(null)),
            ("region", json!("a\nb")),
            ("public_ip", json!("1.2.3")),
            ("public_ip", json!("1.2.3.4/8")),
            ("private_ip", json!("example.org")),
            ("ssh_port", json!(0)),
            ("ssh_user", json!("-o x")),
            ("ssh_user", json!("a b")),
            ("remark", json!("a\u{0}")),
            ("hami_dir", json!("opt/hami")),
            ("hami_dir", json!("/opt/../etc")),
            ("hami_dir", json!("/a\nb")),
            ("docker_endpoint", json!("http://x:1")),
            ("docker_endpoint", json!("unix://run/docker.sock")),
            ("docker_endpoint", json!("unix:///run/../x")),
            ("docker_endpoint", json!("tcp://x")),
            ("docker_endpoint", json!("tcp://x:0")),
            ("docker_endpoint", json!("tcp://x:+1")),
            ("docker_endpoint", json!("tcp://user@x:1")),
            ("docker_endpoint", json!("tcp://:2375")),
            ("docker_tls_ca", json!("garbage")),
            (
                "docker_tls_cert",
                json!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"),
            ),
            ("docker_tls_key", json!(pems().1)),
        ] {
            let mut body = json!({ "remark": "changed" });
            body[field] = bad.clone();
            let refused = change(&room, node, body).await;
            assert_eq!(refused.unwrap_err().status, 422, "{field} {bad}");
        }
        let taken = change(&room, node, json!({ "name": "taken" })).await.unwrap_err();
        assert_eq!((taken.status.as_u16(), taken.code), (409, "duplicate"));
        let shown = actions::get(&room.ctx, &on(node)).await.unwrap();
        assert_eq!((shown.name.as_str(), shown.remark.as_str()), ("gpu", ""));
        assert_ne!(node, other);
        let unknown = serde_json::from_value::<NodePatch>(json!({ "docker_status": "connected" }));
        assert!(unknown.is_err());
    }
}

#[tokio::test]
async fn pems_are_sealed_and_never_shown() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let (certificate, key) = pems();
        let body = json!({
            "docker_tls_ca": certificate, "docker_tls_cert": certificate, "docker_tls_key": key,
        });

        let saved = change(&room, node, body.clone()).await.unwrap();

        assert_eq!(saved["has_docker_tls"], true);
        assert_eq!(audited_changes(&room.ctx.db).await, json!({ "docker_tls": "changed" }));
        let inside = key.lines().nth(1).unwrap();
        for shown in [saved.to_string(), format!("{:?}", patch(&body)), room.audit().await] {
            assert!(!shown.contains(inside) && !shown.contains("BEGIN"), "{shown}");
        }
        let told = settings::of_node(&room.ctx, node).await.unwrap().unwrap();
        assert_eq!(told.docker_tls_key.unwrap().trim(), key.trim());
        let stored = "select count(*) from nodes where sealed_docker_tls is not null";
        assert_eq!(room.ctx.db.number(stored, args![]).await.unwrap(), 1);

        let half = change(&room, node, json!({ "docker_tls_key": null })).await.unwrap_err();
        assert_eq!(half.code, "bad_pem");
        let none =
            json!({ "docker_tls_ca": null, "docker_tls_cert": null, "docker_tls_key": null });
        let saved = change(&room, node, none).await.unwrap();
        assert_eq!(saved["has_docker_tls"], false);
    }
}

#[tokio::test]
async fn a_node_with_instances_is_not_removed() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        let instance = room.instance_on(node).await;

        let refused = actions::delete(&room.ctx, &on(node)).await.unwrap_err();

        assert_eq!((refused.status.as_u16(), refused.code), (409, "node_in_use"));
        assert_eq!(refused.data.unwrap()["instances"], 1);
        let sql = "update instances set deleted_at = 1 where id = $1";
        room.ctx.db.run(sql, args![instance]).await.unwrap();
        actions::delete(&room.ctx, &on(node)).await.unwrap();
        assert_eq!(room.ctx.db.number("select count(*) from nodes", args![]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_drain_stops_instances_only_when_it_says_so() {
    for room in Room::on_all_engines().await {
        let node = room.node("gpu").await;
        room.instance_on(node).await;
        let mut events = room.ctx.events.listen();

        let drained = actions::drain(&room.ctx, &on(node), Drain::default()).await.unwrap();
        assert!(drained.node.cordoned && !drained.stopping);
        assert_eq!(drained.running, 1);
        assert_eq!(events.try_recv().unwrap(), Event::Node(node));
        assert!(events.try_recv().is_err());

        let stop = Drain { stop_instances: true };
        assert!(actions::drain(&room.ctx, &on(node), stop).await.unwrap().stopping);
        assert_eq!(events.try_recv().unwrap(), Event::Node(node));
        assert_eq!(events.try_recv().unwrap(), Event::Drain(node));
        let open = actions::set_cordoned(&room.ctx, &on(node), false).await.unwrap();
        assert!(!open.cordoned);
        let cordoned = json!({ "cordoned": { "before": true, "after": false } });
        assert_eq!(audited_changes(&room.ctx.db).await, cordoned);
    }
}

#[tokio::test]
async fn lists_are_filtered_and_sorted() {
    for room in Room::on_all_engines().await {
        let (a, b) = (room.node("alpha").await, room.node("beta").await);
        change(&room, a, json!({ "region": "East", "public_ip": "203.0.113.1" })).await.unwrap();
        change(&room, b, json!({ "region": "west", "listed": false })).await.unwrap();
        let sql = "insert into node_gpus (uuid, node_id, card_index, model, memory_total_mib, \
             memory_reserved_mib, pci_bus_id, simulated, present, sick, mig_enabled, mode, \
             max_shares, updated_at) values \
             ('G1', $1, 0, 'NVIDIA L40', 46068, 600, '', $2, $3, '', $2, 'shared', 10, 0)";
        room.ctx.db.run(sql, args![b, false, true]).await.unwrap();
        let all = PageQuery::default();

        for (filter, expected) in [
            (json!({}), vec!["alpha", "beta"]),
            (json!({ "name": "ALP" }), vec!["alpha"]),
            (json!({ "name": "%" }), vec![]),
            (json!({ "region": "east" }), vec!["alpha"]),
            (json!({ "public_ip": "113.1" }), vec!["alpha"]),
            (json!({ "private_ip": "10.0.0" }), vec!["alpha", "beta"]),
            (json!({ "gpu_model": "l40" }), vec!["beta"]),
            (json!({ "gpu_model": "h100" }), vec![]),
            (json!({ "listed": false }), vec!["beta"]),
            (json!({ "docker_status": "unknown", "online": false }), vec!["alpha", "beta"]),
            (json!({ "online": true }), vec![]),
        ] {
            let wanted: NodeFilter = serde_json::from_value(filter.clone()).unwrap();
            let page = actions::list(&room.ctx, &grant(Anything), &wanted, &all).await.unwrap();
            let names: Vec<_> = page.items.iter().map(|node| node.name.as_str()).collect();
            assert_eq!(names, expected, "{filter} {:?}", room.ctx.db.engine());
            assert_eq!(page.total, i64::try_from(expected.len()).unwrap());
        }
        let last = PageQuery { sort: Some("-name".to_owned()), page_size: Some(1), page: None };
        let page = actions::list(&room.ctx, &grant(Anything), &NodeFilter::default(), &last).await;
        let page = page.unwrap();
        assert_eq!((page.items[0].name.as_str(), page.total), ("beta", 2));
        assert_eq!(page.items[0].gpus[0].model, "NVIDIA L40");
    }
}

#[tokio::test]
async fn a_card_shows_what_is_granted_of_it_and_its_mode_can_be_set() {
    for room in Room::on_all_engines().await {
        let (node, other) = (room.node("gpu").await, room.node("other").await);
        let instance = room.instance_on(node).await;
        let sql = "insert into node_gpus (uuid, node_id, card_index, model, memory_total_mib, \
             memory_reserved_mib, pci_bus_id, simulated, present, sick, mig_enabled, mode, \
             max_shares, updated_at) values \
             ('G1', $1, 0, 'NVIDIA L40', 46068, 600, '', $2, $3, '', $2, 'shared', 10, 0)";
        room.ctx.db.run(sql, args![node, true, true]).await.unwrap();
        let sql = "update node_gpus set mig_enabled = $1";
        room.ctx.db.run(sql, args![false]).await.unwrap();
        let sql = "insert into gpu_grants (instance_id, gpu_uuid, node_id, memory_mib, cores, \
             exclusive, created_at) values ($1, 'G1', $2, 8192, 25, $3, 0)";
        room.ctx.db.run(sql, args![instance, node, false]).await.unwrap();

        let cards: Vec<view::GpuView> = actions::gpus(&room.ctx, &on(node)).await.unwrap();
        let card = &cards[0];
        assert_eq!(
            (card.memory_granted_mib, card.cores_granted_percent, card.shares),
            (8192, 25, 1)
        );
        assert!(card.healthy && card.simulated && !card.exclusive);
        assert!(card.memory_usable_mib < 46_068 - 600);

        let body: GpuPatch = serde_json::from_value(json!({ "mode": "whole" })).unwrap();
        let card = actions::set_gpu(&room.ctx, &on(node), "G1", body).await.unwrap();
        assert_eq!((card.mode.as_str(), card.max_shares), ("whole", 10));
        let mode = json!({ "mode": { "before": "shared", "after": "whole" } });
        assert_eq!(audited_changes(&room.ctx.db).await, mode);
        let missing = actions::set_gpu(&room.ctx, &on(other), "G1", body).await.unwrap_err();
        assert_eq!(missing.status, 404);
        let zero = GpuPatch { max_shares: Some(0), mode: None };
        assert_eq!(
            actions::set_gpu(&room.ctx, &on(node), "G1", zero).await.unwrap_err().status,
            422
        );
        assert!(serde_json::from_value::<GpuPatch>(json!({ "mode": "half" })).is_err());
    }
}
