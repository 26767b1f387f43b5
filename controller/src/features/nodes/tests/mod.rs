//! The room on all three engines.

mod api;
mod edit;
mod join;
mod live;

use std::sync::Arc;
use std::time::Duration;

use tianqi_common::clock::{ManualClock, UnixMillis};
use tianqi_common::id::{InstanceId, NodeId, UserId};
use tianqi_common::wire::join::JoinToken;
use uuid::Uuid;

use super::Directory;
use super::tokens::{self, CreateJoinToken};
use crate::authz::policy::Permission;
use crate::authz::resource::{NodeRef, Resource};
use crate::authz::{Actor, Anything, Grant, Role, RoleName, Way};
use crate::core::db::testing::{databases, sqlite};
use crate::core::db::{Db, args, row};
use crate::features::Ctx;
use crate::link::{JoinAttempt, NodeDirectory};
use crate::testing::ctx_on;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// One process without a network, on one engine.
struct Room {
    ctx: Ctx,
    clock: Arc<ManualClock>,
    directory: Directory,
}

impl Room {
    async fn new(db: Db) -> Self {
        let clock = Arc::new(ManualClock::at(NOW));
        let ctx = ctx_on(db, clock.clone()).await;
        let directory = Directory::new(&ctx);
        Self { ctx, clock, directory }
    }

    async fn sqlite() -> Self {
        Self::new(sqlite().await).await
    }

    async fn on_all_engines() -> Vec<Self> {
        let mut rooms = Vec::new();
        for db in databases().await {
            rooms.push(Self::new(db).await);
        }
        rooms
    }

    async fn token(&self, max_uses: u32, ttl_seconds: u64) -> JoinToken {
        let wanted = CreateJoinToken {
            description: "test".to_owned(),
            ttl_seconds: Some(ttl_seconds),
            max_uses: Some(max_uses),
        };
        let made = tokens::create(&self.ctx, &grant(Anything), &wanted).await.unwrap();
        made.token.parse().unwrap()
    }

    async fn node(&self, hostname: &str) -> NodeId {
        let token = self.token(1, 600).await;
        let key = Uuid::now_v7().simple().to_string();
        self.directory.join(attempt(&token, hostname, &key)).await.unwrap()
    }

    async fn instance_on(&self, node: NodeId) -> InstanceId {
        const SQL: &str = "insert into instances (id, owner_id, name, live_name, image_id, spec_id, \
             node_id, image_address, spec, environment, restart_policy, priority, remark, desired, \
             generation, phase, reason_code, reason, reason_detail, observed_generation, \
             container_name, limits, gpus, fail_if_full, restarts, queued_at, created_at, updated_at) values \
             ($1, $1, 'a', 'a', $1, $1, $2, '', '{}', '[]', 'never', 0, '', 'running', 1, \
             'running', '', '', '', 1, '', '[]', '[]', $3, 0, 0, 0, 0)";
        let id = InstanceId::new();
        self.ctx.db.run(SQL, args![id, node, false]).await.unwrap();
        id
    }

    async fn audit(&self) -> String {
        let sql = "select action, outcome, detail from audit_events order by id";
        let rows: Vec<AuditRow> = self.ctx.db.all(sql, args![]).await.unwrap();
        let line = |row: &AuditRow| format!("{} {} {}\n", row.action, row.outcome, row.detail);
        rows.iter().map(line).collect()
    }
}

row! {
    struct AuditRow { action: String, outcome: String, detail: String }
}

fn admin() -> Actor {
    Actor {
        id: UserId::new(),
        name: "admin".to_owned(),
        role: Role::admin(),
        session: Uuid::now_v7(),
        way: Way::Token,
        expires_at: NOW,
        must_change_password: false,
        remote_address: "127.0.0.1".to_owned(),
        request_id: "r".to_owned(),
    }
}

fn grant<R: Resource, P: Permission>(resource: R) -> Grant<R, P> {
    Grant::decide(admin(), resource).unwrap()
}

fn on<P: Permission>(node: NodeId) -> Grant<NodeRef, P> {
    grant(NodeRef { id: node })
}

fn attempt(token: &JoinToken, hostname: &str, key: &str) -> JoinAttempt {
    use sha2::{Digest, Sha256};
    JoinAttempt {
        secret_hash: Sha256::digest(token.secret.as_bytes()).into(),
        hostname: hostname.to_owned(),
        key_hash: Sha256::digest(key.as_bytes()).into(),
        address: "10.0.0.7:4000".parse().unwrap(),
        skew_ms: 0,
    }
}
