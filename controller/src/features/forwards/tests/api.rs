use serde_json::{Value, json};

use super::{World, body, path};
use crate::testing::{Api, audited_changes};

#[tokio::test]
async fn a_forward_is_made_listed_changed_and_deleted_on_each_engine() {
    for api in Api::engines().await {
        let world = World::on(api).await;
        let first = json!({ "listen_port": 8_080, "target_ip": "::ffff:10.0.0.9",
            "target_port": 80, "allowed_sources": ["10.1.2.3/8", "192.168.0.1"],
            "description": "网关", "remark": "%_!", "enabled": false });

        let made = world.made(first).await;
        let into = json!({ "listen_port": 30_000, "protocol": "udp", "udp_idle_s": 5,
            "instance_id": world.instance, "instance_port": 53 });
        let second = world.create(&world.alice, into).await;

        assert_eq!(second.code(), 201, "{second:?}");
        assert_eq!((&made["enabled"], &made["live"]["state"]), (&json!(false), &json!("stopped")));
        assert_eq!((&made["target_ip"], &made["protocol"]), (&json!("10.0.0.9"), &json!("tcp")));
        assert_eq!(made["allowed_sources"], json!(["10.0.0.0/8", "192.168.0.1/32"]));
        assert_eq!((&made["max_connections"], &made["udp_idle_s"]), (&json!(1_024), &json!(60)));
        assert_eq!(second.body["instance_name"], "one");
        assert_eq!(second.body["owner_name"], "alice");
        let listed = world.get("/forwards").await;
        assert_eq!(listed["total"], 2, "{listed}");
        assert_eq!(listed["items"][0]["id"], second.body["id"], "newest first");

        let changed = world
            .change(
                &path(&made),
                json!({ "target_ip": null, "target_port": null,
                "instance_id": world.instance, "instance_port": 8_000 }),
            )
            .await;
        assert_eq!(changed["instance_name"], "one", "{changed}");
        assert_eq!((&changed["target_ip"], &changed["generation"]), (&Value::Null, &json!(2)));
        let told = audited_changes(&world.api.ctx.db).await;
        assert_eq!(told["target_ip"], json!({ "before": "10.0.0.9", "after": null }));
        let deleted = world.api.call(&world.admin, "DELETE", &path(&made), None).await;
        assert_eq!(deleted.code(), 204, "{deleted:?}");
        assert_eq!(world.get(&path(&made)).await["code"], "no_such_forward");
    }
}

#[tokio::test]
async fn every_filter_narrows_the_list_on_each_engine() {
    for api in Api::engines().await {
        let world = World::on(api).await;
        let host = json!({ "listen_port": 8_080, "target_ip": "10.0.0.9", "target_port": 80,
            "enabled": false });
        world.made(host).await;
        let into = json!({ "listen_port": 30_000, "protocol": "udp",
            "instance_id": world.instance, "instance_port": 53 });
        let alices = world.create(&world.alice, into).await.body;
        let owner = alices["owner_id"].as_str().unwrap();

        for (query, expected) in [
            ("", 2),
            ("listen_ip=127.0", 2),
            ("listen_ip=9.9", 0),
            ("listen_port=8080", 1),
            ("protocol=udp", 1),
            ("target=0.0.9", 1),
            ("target=ON", 1),
            ("enabled=true", 1),
            ("state=stopped", 2),
            ("state=stopped&enabled=false", 1),
            ("state=listening", 0),
            (&format!("owner={owner}"), 1),
            ("page_size=1&sort=listen_port", 2),
        ] {
            let listed = world.get(&format!("/forwards?{query}")).await;
            assert_eq!(listed["total"], expected, "{query}: {listed}");
        }
        let own = world.api.call(&world.alice, "GET", "/forwards", None).await.body;
        assert_eq!((&own["total"], &own["items"][0]["id"]), (&json!(1), &alices["id"]));
        let totals = world.get("/forwards/totals").await;
        assert_eq!((&totals["rules"], &totals["enabled"]), (&json!(2), &json!(1)));
        let totals = world.api.call(&world.bob, "GET", "/forwards/totals", None).await.body;
        assert_eq!(totals["rules"], 0);
    }
}

#[tokio::test]
async fn a_port_is_given_once_on_each_engine_also_to_many_who_ask_at_once() {
    for api in Api::engines().await {
        let world = World::on(api).await;
        let ask = |ip: &'static str| {
            let fields = json!({ "listen_ip": ip, "listen_port": 8_080, "target_ip": "10.0.0.9",
                "target_port": 80 });
            world.create(&world.admin, fields)
        };
        let asked = ["127.0.0.1", "0.0.0.0", "127.0.0.1", "10.0.0.1", "0.0.0.0"].map(ask);

        let answers = futures_util::future::join_all(asked).await;

        let made = answers.iter().filter(|answer| answer.code() == 201).count();
        let refused = answers.iter().filter(|it| it.problem() == "listen_taken").count();
        assert_eq!(made + refused, 5, "{answers:?}");
        let listed = world.get("/forwards").await;
        let ips: Vec<_> =
            listed["items"].as_array().unwrap().iter().map(|it| it["listen_ip"].clone()).collect();
        let is_all = ips == ["0.0.0.0"];
        assert!(is_all || !ips.contains(&json!("0.0.0.0")), "{ips:?}");
        let other = json!({ "listen_ip": "::", "listen_port": 8_080, "target_ip": "10.0.0.9",
            "target_port": 80 });
        assert_eq!(world.create(&world.admin, other).await.code(), 201, "IPv6 is apart");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_field_and_what_to_write() {
    let world = World::on(Api::sqlite().await).await;
    let target = json!({ "target_ip": "10.0.0.9", "target_port": 80 });
    for (fields, code) in [
        (json!({ "listen_port": 0 }), "bad_field"),
        (json!({ "listen_port": 8_080, "target_port": 0 }), "bad_field"),
        (json!({ "listen_port": 8_080, "target_port": null }), "bad_field"),
        (json!({ "listen_port": 8_080, "instance_id": world.instance }), "bad_field"),
        (json!({ "listen_port": 8_080, "allowed_sources": ["10.0.0.0/33"] }), "bad_field"),
        (json!({ "listen_port": 8_080, "allowed_sources": ["everybody"] }), "bad_field"),
        (json!({ "listen_port": 8_080, "max_connections": 0 }), "bad_field"),
        (json!({ "listen_port": 8_080, "udp_idle_s": 86_401 }), "bad_field"),
        (json!({ "listen_port": 8_080, "description": "a\u{1b}" }), "bad_field"),
        (json!({ "listen_port": 8_080, "target_ip": "0.0.0.0" }), "bad_target"),
        (json!({ "listen_port": 8_080, "target_ip": "169.254.169.254" }), "bad_target"),
        (
            json!({ "listen_port": 8_080, "target_ip": "127.0.0.1", "target_port": 8_080 }),
            "forward_loop",
        ),
        (json!({ "listen_port": 8_890 }), "port_reserved"),
        (json!({ "listen_port": 2_026 }), "port_reserved"),
    ] {
        let mut asked = target.clone();
        super::lay_over(&mut asked, fields.clone());
        let answer = world.create(&world.admin, asked).await;
        assert_eq!(answer.problem(), code, "{fields}: {answer:?}");
    }
    for odd in [
        json!({ "listen_ip": "localhost", "listen_port": 1 }),
        json!({ "listen_port": 70_000 }),
        json!({ "listen_port": 1, "protocol": "sctp" }),
        json!({ "listen_port": 1, "unknown": 1 }),
    ] {
        let answer = world.create(&world.admin, odd.clone()).await;
        assert!(answer.status.is_client_error(), "{odd}: {answer:?}");
    }
    assert_eq!(world.get("/forwards").await["total"], 0);
}

#[tokio::test]
async fn a_circle_is_refused_also_when_it_is_closed_by_a_change() {
    let world = World::on(Api::sqlite().await).await;
    let lead = |from: u16, to: u16| json!({ "listen_port": from, "target_ip": "127.0.0.1", "target_port": to });
    let first = world.made(lead(8_081, 8_082)).await;
    world.made(lead(8_082, 8_083)).await;

    let closing = world.create(&world.admin, lead(8_083, 8_081)).await;
    let turned = json!({ "target_port": 8_081 });
    let turned = world.api.call(&world.admin, "PATCH", &path(&first), Some(turned)).await;

    assert_eq!(closing.problem(), "forward_loop", "{closing:?}");
    assert_eq!(turned.problem(), "forward_loop", "{turned:?}");
}

#[tokio::test]
async fn people_have_as_many_forwards_as_they_may_and_a_repeated_request_makes_one() {
    let world = World::on(Api::sqlite().await).await;
    let into = |port: u16| {
        body(json!({ "listen_port": port, "instance_id": world.instance, "instance_port": 1 }))
    };
    let key = [("idempotency-key", "k1")];
    let call =
        |port: u16| world.api.call_with(&world.alice, "POST", "/forwards", Some(into(port)), &key);

    let (first, again) = (call(30_000).await, call(30_000).await);

    assert_eq!((first.code(), again.code()), (201, 201), "{again:?}");
    assert_eq!(first.body["id"], again.body["id"]);
    for port in [30_001, 30_002] {
        assert_eq!(world.create(&world.alice, into(port)).await.code(), 201);
    }
    let fourth = world.create(&world.alice, into(30_003)).await;
    assert_eq!(fourth.problem(), "too_many_forwards", "{fourth:?}");
}

#[tokio::test]
async fn many_are_deleted_each_by_itself_and_nobody_elses() {
    let world = World::on(Api::sqlite().await).await;
    let into = json!({ "listen_port": 30_000, "instance_id": world.instance, "instance_port": 1 });
    let alices = world.create(&world.alice, into).await.body["id"].clone();
    let host = json!({ "listen_port": 8_080, "target_ip": "10.0.0.9", "target_port": 80 });
    let admins = world.made(host).await["id"].clone();
    let ids = json!({ "ids": [alices, admins] });

    let by_bob = world.api.call(&world.bob, "POST", "/forwards/delete", Some(ids.clone())).await;
    let by_alice = world.api.call(&world.alice, "POST", "/forwards/delete", Some(ids)).await;

    for item in by_bob.body["items"].as_array().unwrap() {
        assert_eq!((&item["deleted"], &item["code"]), (&json!(false), &json!("no_such_forward")));
    }
    assert_eq!(by_alice.body["items"][0]["deleted"], true, "{by_alice:?}");
    assert_eq!(by_alice.body["items"][1]["code"], "no_such_forward", "{by_alice:?}");
    assert_eq!(world.get("/forwards").await["total"], 1);
    let none = world.api.call(&world.alice, "POST", "/forwards/delete", Some(json!({ "ids": [] })));
    assert_eq!(none.await.problem(), "bad_ids");
}

#[tokio::test]
async fn addresses_are_those_of_the_machine_or_what_is_set_aside() {
    let world = World::on(Api::sqlite().await).await;

    let admins = world.get("/forwards/addresses").await;
    let alices = world.api.call(&world.alice, "GET", "/forwards/addresses", None).await.body;

    let all: Vec<_> =
        admins["addresses"].as_array().unwrap().iter().map(|it| &it["address"]).collect();
    assert!(all.contains(&&json!("0.0.0.0")) && all.contains(&&json!("::")), "{admins}");
    assert_eq!(admins["any_target"], true);
    let expected = json!({ "addresses": [{ "address": "127.0.0.1", "interface": "" }],
        "ports": "20000-65535", "any_target": false });
    assert_eq!(alices, expected);
}
