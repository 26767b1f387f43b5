use serde_json::json;
use tokio::net::TcpStream;

use super::{World, free, path};
use crate::testing::Api;

#[tokio::test]
async fn people_forward_into_own_instances_on_the_ports_set_aside_and_nowhere_else() {
    let world = World::on(Api::sqlite().await).await;
    let into = json!({ "instance_id": world.instance, "instance_port": 22 });
    for (token, fields, code) in [
        (&world.alice, json!({ "listen_port": 20_000 }), ""),
        (&world.alice, json!({ "listen_port": 19_999 }), "port_not_allowed"),
        (&world.alice, json!({ "listen_port": 80 }), "port_not_allowed"),
        (
            &world.alice,
            json!({ "listen_ip": "0.0.0.0", "listen_port": 20_001 }),
            "address_not_allowed",
        ),
        (&world.bob, json!({ "listen_port": 20_002 }), "no_such_instance"),
        (&world.admin, json!({ "listen_port": 80, "enabled": false }), ""),
    ] {
        let mut asked = into.clone();
        super::lay_over(&mut asked, fields.clone());
        let answer = world.create(token, asked).await;
        assert_eq!(answer.problem(), code, "{fields}: {answer:?}");
    }
    let host = json!({ "listen_port": 20_003, "target_ip": "10.0.0.9", "target_port": 80 });
    let answer = world.create(&world.alice, host).await;
    assert_eq!(answer.problem(), "target_not_allowed", "{answer:?}");
    let outside = json!({ "target_ip": "10.0.0.9", "target_port": 80,
        "instance_id": null, "instance_port": null });
    let own = world.api.call(&world.alice, "GET", "/forwards", None).await.body;
    let own = path(&own["items"][0]);
    for token in [&world.alice, &world.admin] {
        let turned = world.api.call(token, "PATCH", &own, Some(outside.clone())).await;
        assert_eq!(turned.problem(), "target_not_allowed", "its owner may not: {turned:?}");
    }
}

#[tokio::test]
async fn a_forward_stands_on_its_owners_right_and_comes_back_with_it() {
    let world = World::listening().await;
    let listen = free(false);
    let into = json!({ "listen_port": listen.port(), "instance_id": world.instance,
        "instance_port": 22 });
    let made = world.create(&world.alice, into).await.body;
    assert_eq!(made["live"]["state"], "listening", "{made}");
    let owner = made["owner_id"].as_str().unwrap();
    let account = format!("/users/{owner}");
    let disable = |disabled: bool| {
        world.api.call(&world.admin, "PATCH", &account, Some(json!({ "disabled": disabled })))
    };

    assert_eq!(disable(true).await.code(), 200);
    let off = world.until(&path(&made), |live| live["state"] == "error").await;
    assert!(off["live"]["reason"].as_str().unwrap().contains("disabled"), "{off}");
    assert!(TcpStream::connect(listen).await.is_err(), "the port is still there");

    assert_eq!(disable(false).await.code(), 200);
    // The room of accounts tells of rights that are lost; those that come back are found by a look.
    world.api.ctx.events.send(crate::core::event::Event::Roles);
    world.until(&path(&made), |live| live["state"] == "listening").await;

    let instance = format!("/instances/{}", world.instance.as_str().unwrap());
    let gone = world.api.call(&world.admin, "DELETE", &instance, None).await;
    assert_eq!(gone.code(), 202, "{gone:?}");
    world.until_gone(&path(&made)).await;
}

#[tokio::test]
async fn a_forward_goes_with_its_instance_and_its_port_is_free_for_others() {
    for api in Api::engines().await {
        let mut world = World::on(api).await;
        world.keep().await;
        let listen = free(false);
        let into = json!({ "listen_port": listen.port(), "instance_id": world.instance,
            "instance_port": 22 });
        let made = world.create(&world.alice, into).await.body;
        let off = json!({ "listen_port": free(false).port(), "instance_id": world.instance,
            "instance_port": 22, "enabled": false });
        let off = world.create(&world.alice, off).await.body;
        let stays = json!({ "listen_port": free(false).port(), "target_ip": "127.0.0.1",
            "target_port": 9, "enabled": false });
        let stays = world.made(stays).await;

        let instance = format!("/instances/{}", world.instance.as_str().unwrap());
        let gone = world.api.call(&world.admin, "DELETE", &instance, None).await;

        assert_eq!(gone.code(), 202, "{gone:?}");
        world.until_gone(&path(&made)).await;
        world.until_gone(&path(&off)).await;
        assert_eq!(world.get(&path(&stays)).await["id"], stays["id"]);
        assert!(TcpStream::connect(listen).await.is_err(), "the port is still there");
        let again = json!({ "listen_port": listen.port(), "target_ip": "127.0.0.1",
            "target_port": 9 });
        assert_eq!(world.made(again).await["live"]["state"], "listening");
        let rows = world.audited("forwards:write").await;
        let deleted: Vec<_> = rows.iter().filter(|it| it["detail"]["verb"] == "delete").collect();
        assert_eq!(deleted.len(), 2, "{rows:?}");
        for row in deleted {
            assert_eq!(row["via"], "system", "{row}");
            assert_eq!(row["detail"]["reason"], "instance_deleted", "{row}");
            assert_eq!(row["detail"]["owner"], made["owner_id"], "{row}");
        }
        world.end().await;
    }
}

#[tokio::test]
async fn a_forward_whose_instance_went_while_nobody_kept_it_is_gone_after_the_start() {
    let mut world = World::on(Api::sqlite().await).await;
    let into = json!({ "listen_port": free(false).port(), "instance_id": world.instance,
        "instance_port": 22 });
    let made = world.create(&world.alice, into).await.body;
    let instance = format!("/instances/{}", world.instance.as_str().unwrap());
    world.api.call(&world.admin, "DELETE", &instance, None).await;

    world.keep().await;

    world.until_gone(&path(&made)).await;
    world.end().await;
}

#[tokio::test]
async fn a_forward_goes_with_the_account_of_its_owner() {
    let world = World::listening().await;
    let instance = format!("/instances/{}", world.instance.as_str().unwrap());
    let listen = free(false);
    let into = json!({ "listen_port": listen.port(), "instance_id": world.instance,
        "instance_port": 22 });
    let made = world.create(&world.alice, into).await.body;
    assert_eq!(made["live"]["state"], "listening", "{made}");
    let open = TcpStream::connect(listen).await;
    assert!(open.is_ok(), "{open:?}");
    let session = world.api.call(&world.bob, "GET", "/me", None).await.body;
    let path_of_account = format!(
        "/users/{}?hand_over_to={}",
        made["owner_id"].as_str().unwrap(),
        session["id"].as_str().unwrap()
    );

    let left = world.api.call(&world.admin, "DELETE", &path_of_account, None).await;

    assert_eq!(left.code(), 204, "{left:?}");
    world.until_gone(&path(&made)).await;
    let deadline = async {
        while TcpStream::connect(listen).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::PATIENCE, deadline).await.unwrap();
    let kept = world.api.call(&world.bob, "GET", &instance, None).await;
    assert_eq!(kept.code(), 200, "the instance is bob's: {kept:?}");
    let rows = world.audited("users:delete").await;
    assert_eq!(rows[0]["detail"]["deleted_forwards"], 1, "{rows:?}");
}

#[tokio::test]
async fn a_visit_that_cannot_reach_its_instance_says_why_and_is_written_down_once() {
    let world = World::listening().await;
    let listen = free(false);
    let into = json!({ "listen_port": listen.port(), "instance_id": world.instance,
        "instance_port": 22 });
    let made = world.create(&world.alice, into).await.body;

    for count in 1..=3 {
        let _ = TcpStream::connect(listen).await.unwrap();
        world
            .until(&path(&made), |live| {
                live["total_connections"] == count && live["connections"] == 0
            })
            .await;
    }

    let failed = world.get(&path(&made)).await["live"]["last_error"].clone();
    assert!(failed.as_str().unwrap().contains("is not placed on a node"), "{failed}");
    let rows = world.audited("forwards:write").await;
    let opened: Vec<_> = rows.iter().filter(|row| row["detail"]["event"] == "opened").collect();
    assert_eq!(opened.len(), 1, "three connections of one source in a minute: {rows:?}");
    assert_eq!(opened[0]["via"], "forward", "{opened:?}");
    assert_eq!(opened[0]["remote_address"], "127.0.0.1", "{opened:?}");
    assert_eq!(opened[0]["detail"]["forward"], made["id"], "{opened:?}");
    world.change(&path(&made), json!({ "enabled": false })).await;
    let rows = world.audited("forwards:write").await;
    let closed: Vec<_> = rows.iter().filter(|row| row["detail"]["event"] == "closed").collect();
    assert_eq!(closed.len(), 1, "{rows:?}");
    assert_eq!(closed[0]["detail"]["connections"], 3, "{closed:?}");
    assert_eq!(closed[0]["detail"]["access"], opened[0]["detail"]["access"]);
}
