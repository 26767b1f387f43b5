use proptest::prelude::*;
use serde_json::{Value, json};
use tianqi_common::id::ImageId;
use uuid::Uuid;

use super::model::check_address;
use super::store;
use crate::authz::RoleName;
use crate::core::db::args;
use crate::testing::{Answer, Api, audited_changes};

const PATH: &str = "/images";

async fn call(
    room: &Api,
    token: &str,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let Answer { status, body, .. } = room.call(token, method, path, body).await;
    (status.as_u16(), body)
}

async fn create(room: &Api, admin: &str, body: Value) -> (u16, Value) {
    call(room, admin, "POST", PATH, Some(body)).await
}

fn path_of(image: &Value) -> String {
    format!("{PATH}/{}", image["id"].as_str().unwrap())
}

#[tokio::test]
async fn an_image_is_made_listed_changed_and_deleted_on_every_engine() {
    for room in Api::engines().await {
        let admin = room.person("root", RoleName::ADMIN).await;
        let body = json!({ "name": "训练", "address": "registry.example.org/team/pytorch:2.4" });

        let (status, image) = create(&room, &admin, body.clone()).await;
        assert_eq!(status, 201, "{image}");
        assert_eq!((&image["listed"], &image["supports_slicing"]), (&json!(true), &json!(false)));
        let (status, again) = create(&room, &admin, body).await;
        assert_eq!((status, &again["code"]), (409, &json!("duplicate")));

        let patch = Some(json!({ "supports_slicing": true, "description": "with CUDA" }));
        let (status, changed) = call(&room, &admin, "PATCH", &path_of(&image), patch).await;
        assert_eq!((status, &changed["description"]), (200, &json!("with CUDA")));
        assert_eq!(changed["address"], image["address"]);

        let query = format!("{PATH}?name=%E8%AE%AD&supports_slicing=true&sort=-created_at");
        let (_, found) = call(&room, &admin, "GET", &query, None).await;
        assert_eq!(found["total"], 1);
        let (_, none) = call(&room, &admin, "GET", &format!("{PATH}?source=x"), None).await;
        assert_eq!(none["total"], 0);

        let (status, _) = call(&room, &admin, "DELETE", &path_of(&image), None).await;
        assert_eq!(status, 204);
        let (status, _) = call(&room, &admin, "GET", &path_of(&image), None).await;
        assert_eq!(status, 404);
        let audited = "select count(*) from audit_events where action = 'images:write'";
        assert_eq!(room.ctx.db.number(audited, args![]).await.unwrap(), 3);
    }
}

#[tokio::test]
async fn a_registry_password_is_sealed_never_answered_and_opens_for_a_pull() {
    for room in Api::engines().await {
        let admin = room.person("root", RoleName::ADMIN).await;
        let body = json!({ "name": "private", "address": "r.example.org/x:1",
            "registry_username": "robot", "registry_password": "sesame-4711" });

        let (_, image) = create(&room, &admin, body).await;
        assert_eq!(image["has_registry_password"], true);
        assert!(!image.to_string().contains("sesame"));
        let id = ImageId(image["id"].as_str().unwrap().parse().unwrap());
        let opened = store::credentials(&room.ctx.db, &room.ctx.seal, id).await.unwrap().unwrap();
        assert_eq!((opened.username.as_str(), opened.password.as_str()), ("robot", "sesame-4711"));

        let leaks = "select count(*) from audit_events where detail like '%sesame%'";
        assert_eq!(room.ctx.db.number(leaks, args![]).await.unwrap(), 0);

        let half = Some(json!({ "registry_username": "other" }));
        let (status, _) = call(&room, &admin, "PATCH", &path_of(&image), half).await;
        assert_eq!(status, 422, "another account with the first one's password");
        let forget = Some(json!({ "registry_username": null }));
        let (_, cleared) = call(&room, &admin, "PATCH", &path_of(&image), forget).await;
        assert_eq!(cleared["has_registry_password"], false);
        let account = json!({ "before": "robot", "after": null });
        let changes = json!({ "registry_username": account, "registry_password": "changed" });
        assert_eq!(audited_changes(&room.ctx.db).await, changes);
        assert!(store::credentials(&room.ctx.db, &room.ctx.seal, id).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn an_image_that_an_instance_was_made_from_is_not_deleted() {
    for room in Api::engines().await {
        let admin = room.person("root", RoleName::ADMIN).await;
        let (_, image) = create(&room, &admin, json!({ "name": "a", "address": "a:1" })).await;
        let id: Uuid = image["id"].as_str().unwrap().parse().unwrap();
        make_instance(&room, &admin, id).await;

        let (status, refused) = call(&room, &admin, "DELETE", &path_of(&image), None).await;
        assert_eq!((status, &refused["code"]), (409, &json!("in_use")));
        assert_eq!(refused["data"]["instances"], 1);

        room.ctx.db.run("update instances set deleted_at = 1", args![]).await.unwrap();
        let (status, _) = call(&room, &admin, "DELETE", &path_of(&image), None).await;
        assert_eq!(status, 204);
    }
}

async fn make_instance(room: &Api, admin: &str, image: Uuid) {
    let spec = json!({ "name": "cpu", "cpu_cores": 1, "memory_mib": 256 });
    let (_, spec) = call(room, admin, "POST", "/specs", Some(spec)).await;
    let body = json!({ "name": "i", "image_id": image, "spec_id": spec["id"] });
    let (status, made) = call(room, admin, "POST", "/instances", Some(body)).await;
    assert_eq!(status, 202, "{made}");
}

#[tokio::test]
async fn people_see_listed_images_and_change_none() {
    let room = Api::sqlite().await;
    let admin = room.person("root", RoleName::ADMIN).await;
    let alice = room.person("alice", RoleName::USER).await;
    let body = json!({ "name": "hidden", "address": "h:1", "listed": false });
    let (_, hidden) = create(&room, &admin, body).await;
    create(&room, &admin, json!({ "name": "shown", "address": "s:1" })).await;

    let (_, seen) = call(&room, &alice, "GET", PATH, None).await;
    assert_eq!((&seen["total"], &seen["items"][0]["name"]), (&json!(1), &json!("shown")));
    let (status, _) = call(&room, &alice, "GET", &path_of(&hidden), None).await;
    assert_eq!(status, 404);
    let mine = Some(json!({ "name": "mine", "address": "m:1" }));
    let (status, _) = call(&room, &alice, "POST", PATH, mine).await;
    assert_eq!(status, 403);
    let (status, _) = call(&room, "", "GET", PATH, None).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn bad_fields_are_refused_with_their_name() {
    let room = Api::sqlite().await;
    let admin = room.person("root", RoleName::ADMIN).await;

    for (field, body) in [
        ("name", json!({ "name": "", "address": "a:1" })),
        ("name", json!({ "name": "x".repeat(151), "address": "a:1" })),
        ("address", json!({ "name": "a", "address": "a b" })),
        ("address", json!({ "name": "a", "address": "../../etc/passwd" })),
        ("remark", json!({ "name": "a", "address": "a:1", "remark": "\u{1b}[2J" })),
        ("registry_password", json!({ "name": "a", "address": "a:1", "registry_username": "u" })),
        ("owner", json!({ "name": "a", "address": "a:1", "owner": "x" })),
    ] {
        let (status, refused) = create(&room, &admin, body).await;
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(status == 422 && detail.contains(field), "{field}: {status} {refused}");
    }
}

proptest! {
    #[test]
    fn an_accepted_address_is_never_a_path_or_an_option(address in "[ -~]{0,40}") {
        if check_address(&address).is_ok() {
            prop_assert!(!address.starts_with(['-', '/', '.']));
            prop_assert!(!address.contains("..") && !address.contains(' '));
        }
    }
}
