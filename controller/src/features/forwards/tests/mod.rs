//! The room over HTTP on a temporary database, and its listeners on loopback.

mod api;
mod carry;
mod datagrams;
mod rights;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::authz::RoleName;
use crate::config::Forwards;
use crate::testing::{Answer, Api};

/// Longest wait for something that is on its way.
const PATIENCE: Duration = Duration::from_secs(20);

/// An API with an admin and two people, of whom alice has an instance; forwards are kept on demand.
struct World {
    api: Api,
    admin: String,
    alice: String,
    bob: String,
    instance: Value,
    kept: Option<(CancellationToken, JoinHandle<()>)>,
}

impl World {
    async fn on(api: Api) -> Self {
        Self::with(api, |_| ()).await
    }

    async fn with(mut api: Api, set: impl FnOnce(&mut Forwards)) -> Self {
        let mut config = (*api.ctx.config).clone();
        config.forwards.user_addresses = vec!["127.0.0.1".parse().unwrap()];
        config.forwards.user_ports = "20000-65535".parse().unwrap();
        config.forwards.user_rules = 3;
        set(&mut config.forwards);
        api.ctx.config = Arc::new(config);
        api.serve();
        let admin = api.person("root", RoleName::ADMIN).await;
        let alice = api.person("alice", RoleName::USER).await;
        let bob = api.person("bob", RoleName::USER).await;
        let image = json!({ "name": "busybox", "address": "busybox:latest" });
        let image = api.call(&admin, "POST", "/images", Some(image)).await.body["id"].clone();
        let spec = json!({ "name": "small", "cpu_cores": 1, "memory_mib": 1_024 });
        let spec = api.call(&admin, "POST", "/specs", Some(spec)).await.body["id"].clone();
        let body = json!({ "name": "one", "image_id": image, "spec_id": spec });
        let made = api.call(&alice, "POST", "/instances", Some(body)).await;
        assert_eq!(made.code(), 202, "{made:?}");
        let instance = made.body["id"].clone();
        Self { api, admin, alice, bob, instance, kept: None }
    }

    /// A world whose forwards listen.
    async fn listening() -> Self {
        let mut world = Self::on(Api::sqlite().await).await;
        world.keep().await;
        world
    }

    /// Begins to keep forwards, as a controller that starts.
    async fn keep(&mut self) {
        let cancel = CancellationToken::new();
        let task = tokio::spawn(super::run(self.api.ctx.clone(), cancel.clone()));
        self.kept = Some((cancel, task));
        let sentinel = async {
            while !self.api.ctx.ports.is_kept() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, sentinel).await.unwrap();
    }

    /// Stops keeping forwards, as a controller that ends.
    async fn end(&mut self) {
        let (cancel, task) = self.kept.take().unwrap();
        cancel.cancel();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }

    async fn create(&self, token: &str, fields: Value) -> Answer {
        self.api.call(token, "POST", "/forwards", Some(body(fields))).await
    }

    /// Makes a forward as the admin and returns it.
    async fn made(&self, fields: Value) -> Value {
        let made = self.create(&self.admin, fields).await;
        assert_eq!(made.code(), 201, "{made:?}");
        made.body
    }

    /// Makes a forward that listens on loopback and leads to `target`; returns its path and address.
    async fn leads_to(&self, target: SocketAddr, fields: Value) -> (String, SocketAddr) {
        let udp = fields["protocol"] == "udp";
        let listen = free(udp);
        let mut body = json!({ "listen_port": listen.port(), "target_ip": target.ip(),
            "target_port": target.port() });
        lay_over(&mut body, fields);
        let made = self.made(body).await;
        assert_eq!(made["live"]["state"], "listening", "{made}");
        (path(&made), listen)
    }

    async fn get(&self, path: &str) -> Value {
        self.api.call(&self.admin, "GET", path, None).await.body
    }

    async fn change(&self, path: &str, fields: Value) -> Value {
        let changed = self.api.call(&self.admin, "PATCH", path, Some(fields)).await;
        assert_eq!(changed.code(), 200, "{changed:?}");
        changed.body
    }

    /// Waits until a forward is as `wanted` says.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let seen = async {
            loop {
                let forward = self.get(path).await;
                if wanted(&forward["live"]) {
                    return forward;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, seen).await {
            Ok(forward) => forward,
            Err(_) => panic!("{}", self.get(path).await),
        }
    }

    /// Waits until a forward is not there any more.
    async fn until_gone(&self, path: &str) {
        let gone = async {
            while self.get(path).await["code"] != "no_such_forward" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }

    /// Returns the details of the audit's rows with this action, oldest first.
    async fn audited(&self, action: &str) -> Vec<Value> {
        let path = format!("/audit-events?action={action}&page_size=200");
        let mut rows = self.get(&path).await["items"].as_array().unwrap().clone();
        rows.reverse();
        rows
    }
}

/// A forward on loopback, with these fields besides.
fn body(fields: Value) -> Value {
    let mut body = json!({ "listen_ip": "127.0.0.1" });
    lay_over(&mut body, fields);
    body
}

fn lay_over(body: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else { return };
    body.as_object_mut().unwrap().extend(fields);
}

fn path(forward: &Value) -> String {
    format!("/forwards/{}", forward["id"].as_str().unwrap())
}

/// Returns an address that was free a moment ago.
fn free(udp: bool) -> SocketAddr {
    if udp {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    } else {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }
}
