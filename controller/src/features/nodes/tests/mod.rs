//! The room on all three engines.

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
use crate::authz::actor::SessionRules;
use crate::authz::policy::Permission;
use crate::authz::resource::{NodeRef, Resource};
use crate::authz::{Actor, Anything, Authz, Grant, Role};
use crate::config::Config;
use crate::core::ca::{Authority, Ca, Lifetimes};
use crate::core::db::testing::databases;
use crate::core::db::{Db, args, row};
use crate::core::event::Events;
use crate::core::seal::Seal;
use crate::features::{Clock, Ctx};
use crate::link::{JoinAttempt, Link, NodeDirectory};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// One process without a network, on one engine.
struct Room {
    ctx: Ctx,
    clock: Arc<ManualClock>,
    directory: Directory,
}

impl Room {
    fn new(db: Db) -> Self {
        let clock = Arc::new(ManualClock::at(NOW));
        let folder = tempfile::tempdir().unwrap();
        let seal = Seal::open_or_create(&folder.path().join("key")).unwrap();
        let rules =
            SessionRules { idle: Duration::from_secs(60), absolute: Duration::from_secs(600) };
        let authority = Authority::generate(NOW).unwrap();
        let authz =
            Authz { db: db.clone(), clock: clock.clone(), sessions: rules, public_origin: None };
        let ctx = Ctx {
            db,
            clock: Clock(clock.clone()),
            events: Events::new(),
            seal: Arc::new(seal),
            config: Arc::new(Config::default()),
            authz,
            link: Link::default(),
            ca: Arc::new(Ca::new(vec![authority], Lifetimes::default()).unwrap()),
        };
        let directory = Directory::new(&ctx);
        Self { ctx, clock, directory }
    }

    async fn on_all_engines() -> Vec<Self> {
        databases().await.into_iter().map(Self::new).collect()
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
             container_name, limits, restarts, queued_at, created_at, updated_at) values \
             ($1, $1, 'a', 'a', $1, $1, $2, '', '{}', '[]', 'never', 0, '', 'running', 1, \
             'running', '', '', '', 1, '', '[]', 0, 0, 0, 0)";
        let id = InstanceId::new();
        self.ctx.db.run(SQL, args![id, node]).await.unwrap();
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
        role: Role::Admin,
        session: Uuid::now_v7(),
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
