//! The room over HTTP, without a port.

use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::testing::Api;

async fn catalogue(api: &Api, admin: &str) -> (Value, Value) {
    let image = json!({ "name": "busybox", "address": "busybox:latest" });
    let image = api.call(admin, "POST", "/images", Some(image)).await.body;
    let spec = json!({ "name": "small", "gpu_count": 0, "cpu_cores": 0.5, "memory_mib": 256 });
    let spec = api.call(admin, "POST", "/specs", Some(spec)).await.body;
    (image["id"].clone(), spec["id"].clone())
}

#[tokio::test]
async fn an_instance_is_made_seen_steered_and_deleted_over_http() {
    for api in Api::engines().await {
        let admin = api.person("root", RoleName::ADMIN).await;
        let user = api.person("alice", RoleName::USER).await;
        let other = api.person("bob", RoleName::USER).await;
        let (image, spec) = catalogue(&api, &admin).await;
        let body = json!({ "name": "train-7", "image_id": image, "spec_id": spec });

        let made = api.call(&user, "POST", "/instances", Some(body.clone())).await;
        assert_eq!(made.code(), 202, "{:?}", made.body);
        assert_eq!(made.body["phase"], "pending");
        let path = format!("/instances/{}", made.body["id"].as_str().unwrap());
        let again = api.call(&user, "POST", "/instances", Some(body)).await;
        assert_eq!((again.code(), again.problem()), (409, "name_taken"));

        assert_eq!(api.call(&user, "GET", "/instances?name=RAIN", None).await.body["total"], 1);
        assert_eq!(api.call(&other, "GET", "/instances", None).await.body["total"], 0);
        for (method, end) in
            [("GET", ""), ("DELETE", ""), ("POST", "/stop"), ("GET", "/logs"), ("GET", "/stats")]
        {
            let hidden = api.call(&other, method, &format!("{path}{end}"), None).await;
            assert_eq!((hidden.code(), hidden.problem()), (404, "no_such_instance"), "{end}");
        }
        for (end, code) in
            [("/logs", "not_placed"), ("/stats", "not_placed"), ("/terminal", "not_a_websocket")]
        {
            let answer = api.call(&user, "GET", &format!("{path}{end}"), None).await;
            assert_eq!(answer.problem(), code);
        }
        let query = format!(
            "/placements?image_id={}&spec_id={}",
            image.as_str().unwrap(),
            spec.as_str().unwrap()
        );
        let placements = api.call(&user, "GET", &query, None).await;
        assert_eq!((placements.code(), &placements.body["candidates"]), (200, &json!([])));

        let patch = Some(json!({ "remark": "mine" }));
        assert_eq!(api.call(&user, "PATCH", &path, patch).await.body["remark"], "mine");
        let refused = api.call(&user, "PATCH", &path, Some(json!({ "owner_id": "x" }))).await;
        assert_eq!(refused.code(), 422);
        assert_eq!(api.call(&user, "POST", &format!("{path}/start"), None).await.code(), 409);
        assert_eq!(api.call(&user, "POST", &format!("{path}/stop"), None).await.code(), 202);
        let events = api.call(&user, "GET", &format!("{path}/events"), None).await.body;
        assert_eq!(events["items"][0]["kind"], "stop_requested");

        let ids = json!({ "ids": [made.body["id"], "00000000-0000-0000-0000-000000000000"] });
        let deleted = api.call(&user, "POST", "/instances/delete", Some(ids)).await;
        assert_eq!(deleted.code(), 202);
        let accepted: Vec<_> =
            deleted.body["items"].as_array().unwrap().iter().map(|it| &it["accepted"]).collect();
        assert_eq!(accepted, [&json!(true), &json!(false)]);
        assert_eq!(api.call(&user, "GET", &path, None).await.code(), 404);
    }
}
