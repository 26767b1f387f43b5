//! `/instances/{id}/ssh` over HTTP.

use std::sync::Arc;

use serde_json::{Value, json};

use super::bind;
use crate::authz::RoleName;
use crate::config::{Config, Jumpbox as Rules};
use crate::testing::{Answer, Api};

struct World {
    api: Api,
    admin: String,
    alice: String,
    path: String,
    id: String,
}

impl World {
    async fn start(rules: Rules) -> Self {
        let mut api = Api::sqlite().await;
        let jumpbox = Rules { listen: ([127, 0, 0, 1], 0).into(), ..rules };
        api.ctx.config = Arc::new(Config { jumpbox, ..(*api.ctx.config).clone() });
        api.serve();
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let image = json!({ "name": "busybox", "address": "busybox:latest" });
        let image = api.call(&admin, "POST", "/images", Some(image)).await.body["id"].clone();
        let spec = json!({ "name": "small", "cpu_cores": 1, "memory_mib": 1_024 });
        let spec = api.call(&admin, "POST", "/specs", Some(spec)).await.body["id"].clone();
        let body = json!({ "name": "one", "image_id": image, "spec_id": spec });
        let made = api.call(&alice, "POST", "/instances", Some(body)).await;
        let id = made.text("/id").to_owned();
        Self { admin, alice, path: format!("/instances/{id}/ssh"), id, api }
    }

    async fn ask(&self, token: &str, host: &str) -> Answer {
        self.api.call_with(token, "GET", &self.path, None, &[("host", host)]).await
    }
}

#[tokio::test]
async fn lines_to_paste_name_the_configured_address_and_the_keys_in_use() {
    let public_address = Some("gpu.example.org:2222".to_owned());
    let world = World::start(Rules { public_address, ..Rules::default() }).await;
    let jumpbox = bind(&world.api.ctx).await.unwrap().unwrap();

    let said = world.ask(&world.alice, "elsewhere").await;

    assert_eq!(said.code(), 200, "{said:?}");
    assert_eq!((said.text("/host"), &said.body["port"]), ("gpu.example.org", &json!(2_222)));
    assert_eq!(said.text("/user"), "alice+one");
    assert_eq!(said.text("/ssh"), "ssh -p 2222 alice+one@gpu.example.org");
    let keys = world.api.ctx.entrance.keys(world.id.parse().unwrap()).unwrap();
    assert_eq!(said.text("/host_key_fingerprint"), keys[0].fingerprint);
    assert_eq!(said.text("/instance_host_key_fingerprint"), keys[1].fingerprint);
    assert_ne!(keys[0], keys[1]);
    assert!(keys.iter().all(|key| key.fingerprint.starts_with("SHA256:")), "{keys:?}");
    let known = format!("[gpu.example.org]:2222 {}\none {}\n", keys[0].line, keys[1].line);
    assert_eq!(said.text("/known_hosts"), known);
    drop(jumpbox);
}

#[tokio::test]
async fn without_a_configured_address_the_requests_own_host_is_named_with_the_port_in_use() {
    let world = World::start(Rules::default()).await;
    let jumpbox = bind(&world.api.ctx).await.unwrap().unwrap();
    let port = jumpbox.address().port();

    let said = world.ask(&world.admin, "gpu.example.org:8890").await;

    let expected = format!("ssh -p {port} root+{}@gpu.example.org", world.id);
    assert_eq!(said.text("/ssh"), expected, "somebody else's instance is named by its id");
    let evil = world.ask(&world.alice, "$(id)").await;
    assert_eq!(evil.problem(), "no_host", "{evil:?}");
}

#[tokio::test]
async fn where_ssh_is_off_the_answer_says_so() {
    let world = World::start(Rules { enabled: false, ..Rules::default() }).await;

    let said = world.ask(&world.alice, "localhost").await;

    assert_eq!((said.code(), said.problem()), (409, "ssh_off"), "{said:?}");
    assert_eq!(said.body["host"], Value::Null);
}
