//! The room over HTTP, without a port.

mod api;
mod counting;
mod limits;

use serde_json::{Value, json};

use crate::authz::RoleName;
use crate::testing::{Answer, Api};

/// An API with an admin, a user, and something to make instances of.
struct World {
    api: Api,
    admin: String,
    alice: String,
    alice_id: String,
    image: Value,
}

impl World {
    async fn on(api: Api) -> Self {
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let alice_id = own_id(&api, &alice).await;
        let image =
            json!({ "name": "busybox", "address": "busybox:latest", "supports_slicing": true });
        let image = api.call(&admin, "POST", "/images", Some(image)).await.body["id"].clone();
        Self { api, admin, alice, alice_id, image }
    }

    async fn engines() -> Vec<Self> {
        let mut all = Vec::new();
        for api in Api::engines().await {
            all.push(Self::on(api).await);
        }
        all
    }

    /// Makes a spec of one core, 1 GiB and 10 GiB of disk with these fields besides.
    async fn spec(&self, name: &str, fields: Value) -> Value {
        let mut body = json!({ "name": name, "cpu_cores": 1, "memory_mib": 1_024,
            "system_disk_gib": 4, "data_disk_gib": 6 });
        for (key, value) in fields.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let made = self.api.call(&self.admin, "POST", "/specs", Some(body)).await;
        assert_eq!(made.code(), 201, "{made:?}");
        made.body["id"].clone()
    }

    fn request(&self, name: &str, spec: &Value) -> Value {
        json!({ "name": name, "image_id": self.image, "spec_id": spec })
    }

    /// Asks for an instance as alice.
    async fn create(&self, name: &str, spec: &Value) -> Answer {
        self.api.call(&self.alice, "POST", "/instances", Some(self.request(name, spec))).await
    }

    /// Makes an instance as alice and returns its path.
    async fn created(&self, name: &str, spec: &Value) -> String {
        let made = self.create(name, spec).await;
        assert_eq!(made.code(), 202, "{made:?}");
        format!("/instances/{}", made.text("/id"))
    }

    /// Does a verb as alice.
    async fn act(&self, path: &str, verb: &str) -> Answer {
        self.api.call(&self.alice, "POST", &format!("{path}/{verb}"), None).await
    }

    /// Sets a quota as the admin: of `users/ID` or `roles/NAME`.
    async fn set(&self, whose: &str, fields: Value) -> Answer {
        self.api.call(&self.admin, "PUT", &format!("/quotas/{whose}"), Some(fields)).await
    }

    /// Sets alice's own quota.
    async fn limit(&self, fields: Value) {
        let set = self.set(&format!("users/{}", self.alice_id), fields).await;
        assert_eq!(set.code(), 200, "{set:?}");
    }

    /// What alice uses.
    async fn used(&self) -> Value {
        self.api.call(&self.alice, "GET", "/me/quota", None).await.body["used"].clone()
    }
}

async fn own_id(api: &Api, token: &str) -> String {
    api.call(token, "GET", "/session", None).await.text("/user/id").to_owned()
}

/// Asserts that an answer is the refusal, and returns it.
fn exceeded(answer: Answer) -> Answer {
    assert_eq!((answer.code(), answer.problem()), (409, "quota_exceeded"), "{answer:?}");
    answer
}

/// What nobody uses.
fn nothing() -> Value {
    json!({ "instances": 0, "gpus": 0, "gpu_memory_mib": 0, "cpu_cores": 0, "memory_mib": 0,
        "disk_gib": 0 })
}
