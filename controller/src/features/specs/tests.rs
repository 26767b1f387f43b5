use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::testing::{Answer, Api, audited_changes};

const PATH: &str = "/specs";

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

async fn keyed(room: &Api, token: &str, key: &str, body: Value) -> (u16, Value) {
    let headers = [("idempotency-key", key)];
    let answer = room.call_with(token, "POST", PATH, Some(body), &headers).await;
    (answer.status.as_u16(), answer.body)
}

fn spec(changes: &Value) -> Value {
    let mut body = json!({ "name": "slice", "gpu_model": "NVIDIA L40", "gpu_count": 1,
        "gpu_memory_mib": 8_192, "slicing": true, "cpu_cores": 0.5, "memory_mib": 512,
        "price_per_hour": "1.25" });
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn create(room: &Api, admin: &str, changes: Value) -> (u16, Value) {
    call(room, admin, "POST", PATH, Some(spec(&changes))).await
}

#[tokio::test]
async fn a_spec_keeps_its_numbers_exactly_on_every_engine() {
    for room in Api::engines().await {
        let admin = room.person("root", RoleName::ADMIN).await;

        let (status, made) = create(&room, &admin, json!({ "price_per_hour": "0.000001" })).await;

        assert_eq!(status, 201, "{made}");
        assert_eq!(made["price_per_hour"], "0.000001");
        assert_eq!(made["cpu_cores"], 0.5);
        assert_eq!((&made["listed"], &made["gpu_core_percent"]), (&json!(true), &Value::Null));
        let path = format!("{PATH}/{}", made["id"].as_str().unwrap());
        let patch = Some(json!({ "gpu_core_percent": 30, "gpu_model": null, "cpu_cores": 2 }));
        let (_, changed) = call(&room, &admin, "PATCH", &path, patch).await;
        assert_eq!(
            (&changed["gpu_core_percent"], &changed["gpu_model"]),
            (&json!(30), &Value::Null)
        );
        assert_eq!((&changed["cpu_cores"], &changed["memory_mib"]), (&json!(2), &json!(512)));

        let changes = audited_changes(&room.ctx.db).await;
        assert_eq!(changes["gpu_core_percent"], json!({ "before": null, "after": 30 }));
        assert_eq!(changes["memory_mib"], Value::Null, "what stayed is told: {changes}");

        let query = format!("{PATH}?slicing=true&name=SLI&sort=-price_per_hour");
        let (_, found) = call(&room, &admin, "GET", &query, None).await;
        assert_eq!(found["total"], 1);
        let (status, _) = call(&room, &admin, "DELETE", &path, None).await;
        assert_eq!(status, 204);
    }
}

#[tokio::test]
async fn sizes_that_make_no_sense_are_refused_with_the_field_and_what_to_write() {
    let room = Api::sqlite().await;
    let admin = room.person("root", RoleName::ADMIN).await;

    for (field, changes) in [
        ("memory_mib", json!({ "memory_mib": 0 })),
        ("memory_mib", json!({ "memory_mib": 1_u64 << 40 })),
        ("-1", json!({ "memory_mib": -1 })),
        ("cores", json!({ "cpu_cores": 0 })),
        ("cores", json!({ "cpu_cores": -2 })),
        ("cores", json!({ "cpu_cores": 0.000_1 })),
        ("gpu_count", json!({ "gpu_count": 17, "slicing": false, "gpu_memory_mib": null })),
        ("gpu_count 1", json!({ "gpu_count": 2 })),
        ("gpu_memory_mib", json!({ "gpu_memory_mib": null })),
        ("gpu_memory_mib", json!({ "gpu_memory_mib": 1 })),
        ("gpu_memory_mib", json!({ "slicing": false })),
        ("gpu_core_percent", json!({ "gpu_core_percent": 101 })),
        ("gpu_model", json!({ "slicing": false, "gpu_memory_mib": null, "gpu_count": 0 })),
        ("data_disk_gib", json!({ "data_disk_gib": 1_u64 << 30 })),
        ("amount", json!({ "price_per_hour": "-1" })),
        ("amount", json!({ "price_per_hour": "0.0000001" })),
    ] {
        let (status, refused) = create(&room, &admin, changes.clone()).await;
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(status == 422 && detail.contains(field), "{changes}: {status} {refused}");
    }
}

#[tokio::test]
async fn a_spec_without_cards_asks_for_none() {
    let room = Api::sqlite().await;
    let admin = room.person("root", RoleName::ADMIN).await;
    let body = json!({ "name": "cpu", "cpu_cores": 1, "memory_mib": 256 });

    let (status, made) = call(&room, &admin, "POST", PATH, Some(body)).await;

    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["gpu_count"], &made["price_per_hour"]), (&json!(0), &json!("0")));
}

#[tokio::test]
async fn a_repeated_request_with_a_key_makes_one_spec() {
    let room = Api::sqlite().await;
    let admin = room.person("root", RoleName::ADMIN).await;
    let alice = room.person("alice", RoleName::USER).await;

    let (_, first) = keyed(&room, &admin, "k1", spec(&json!({}))).await;
    let (status, second) = keyed(&room, &admin, "k1", spec(&json!({}))).await;
    assert_eq!((status, &second["id"]), (201, &first["id"]));
    let (status, other) = keyed(&room, &admin, "k1", spec(&json!({ "name": "x" }))).await;
    assert_eq!((status, &other["code"]), (409, &json!("idempotency_key_reused")));

    let (status, _) = create(&room, &alice, json!({ "name": "mine" })).await;
    assert_eq!(status, 403);
}
