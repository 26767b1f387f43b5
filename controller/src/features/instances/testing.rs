//! A small world for tests: accounts, an image, specs, nodes with cards.

use tianqi_common::clock::{SystemClock, UnixMillis};
use tianqi_common::id::{InstanceId, NodeId, UserId};
use uuid::Uuid;

use super::actions;
use super::model::CreateInstance;
use crate::authz::resource::{InstanceRef, Resource};
use crate::authz::{Actor, Anything, Grant, Permission, Role, Way};
use crate::core::db::{Db, args};
use crate::core::error::Result;
use crate::features::Ctx;

/// Everything a test of instances needs.
pub(crate) struct World {
    pub(crate) ctx: Ctx,
    pub(crate) admin: Actor,
    pub(crate) alice: Actor,
    pub(crate) bob: Actor,
    pub(crate) image: Uuid,
    pub(crate) plain_image: Uuid,
}

impl World {
    /// Makes a world with three accounts and two images, of which one supports slices.
    pub(crate) async fn on(db: Db) -> Self {
        let ctx = crate::testing::ctx_on(db, SystemClock::shared()).await;
        let admin = account(&ctx.db, "admin", Role::admin()).await;
        let alice = account(&ctx.db, "alice", Role::user()).await;
        let bob = account(&ctx.db, "bob", Role::user()).await;
        let image = image(&ctx.db, "sliceable", true, true).await;
        let plain_image = image_named(&ctx.db, "plain").await;
        Self { ctx, admin, alice, bob, image, plain_image }
    }

    /// Makes a listed spec of one core and 1 GiB with `gpus` whole cards, or a slice of one.
    pub(crate) async fn spec(&self, name: &str, gpus: i64, slice: Option<(i64, i64)>) -> Uuid {
        const SQL: &str = "insert into specs (id, name, gpu_model, gpu_count, gpu_memory_mib, \
             gpu_core_percent, slicing, cpu_millicores, memory_mib, system_disk_gib, data_disk_gib, \
             price_per_hour_micros, listed, remark, created_at, updated_at) \
             values ($1, $2, $3, $4, $5, $6, $7, 1000, 1024, 1, 1, 1500000, $8, '', 0, 0)";
        let id = Uuid::now_v7();
        let (memory, cores) = slice.unzip();
        let is_slice = slice.is_some();
        let values = args![id, name, None::<&str>, gpus, memory, cores, is_slice, true];
        self.ctx.db.run(SQL, values).await.unwrap();
        id
    }

    /// Makes a listed, connected node with `cores` cores and GiB, and `gpus` cards of 46 068 MiB.
    pub(crate) async fn node(&self, name: &str, cores: i64, gpus: u32) -> NodeId {
        const NODE: &str = "insert into nodes (id, name, region, public_ip, private_ip, ssh_port, \
             ssh_user, remark, listed, cordoned, docker_status, docker_reason, agent_program, \
             boot_started_at, online, offline_reason, clock_skew_ms, cpu_millicores, memory_mib, \
             disk_gib, observed_epoch, observed_generation, created_at, \
             updated_at) values ($1, $2, '', '', '', 22, 'root', '', $3, $4, 'connected', '', '', \
             0, $3, '', 0, $5, $6, 1000, 0, 0, 0, 0)";
        const GPU: &str = "insert into node_gpus (uuid, node_id, card_index, model, \
             memory_total_mib, memory_reserved_mib, pci_bus_id, simulated, present, sick, \
             mig_enabled, mode, max_shares, updated_at) \
             values ($1, $2, $3, 'NVIDIA L40', 46068, 0, $4, $5, $6, '', $7, 'shared', 10, 0)";
        let id = NodeId::new();
        let values = args![id, name, true, false, cores * 1_000, cores * 1_024];
        self.ctx.db.run(NODE, values).await.unwrap();
        for index in 0..gpus {
            let values = args![
                format!("GPU-{name}-{index}"),
                id,
                index,
                format!("00000000:{index:02}:00.0"),
                false,
                true,
                false
            ];
            self.ctx.db.run(GPU, values).await.unwrap();
        }
        id
    }

    /// A request for an instance of the sliceable image.
    pub(crate) fn request(&self, name: &str, spec: Uuid) -> CreateInstance {
        CreateInstance {
            name: name.to_owned(),
            image_id: self.image,
            spec_id: spec,
            node_id: None,
            remark: String::new(),
            env: Default::default(),
            restart_policy: Default::default(),
            priority: None,
            fail_if_full: false,
        }
    }

    /// Creates an instance as `actor` would.
    pub(crate) async fn create(
        &self,
        actor: &Actor,
        request: CreateInstance,
    ) -> Result<InstanceId> {
        let grant = anything(actor)?;
        actions::create(&self.ctx, &grant, request.check()?, None).await
    }
}

/// Returns a grant of `actor` for no resource in particular.
pub(crate) fn anything<P: Permission>(actor: &Actor) -> Result<Grant<Anything, P>> {
    Grant::decide(actor.clone(), Anything)
}

/// Returns a grant of `actor` for an instance, found as a request would find it.
pub(crate) async fn granted<P: Permission>(
    ctx: &Ctx,
    actor: &Actor,
    id: InstanceId,
) -> Result<Grant<InstanceRef, P>> {
    let instance = InstanceRef::find(&ctx.db, Some(&id.to_string())).await?;
    Grant::decide(actor.clone(), instance)
}

/// Makes an image.
pub(crate) async fn image(db: &Db, name: &str, slicing: bool, listed: bool) -> Uuid {
    const SQL: &str = "insert into images (id, name, address, description, source, \
         supports_slicing, listed, remark, created_at, updated_at) \
         values ($1, $2, $2, '', '', $3, $4, '', 0, 0)";
    let id = Uuid::now_v7();
    db.run(SQL, args![id, name, slicing, listed]).await.unwrap();
    id
}

async fn image_named(db: &Db, name: &str) -> Uuid {
    image(db, name, false, true).await
}

async fn account(db: &Db, name: &str, role: Role) -> Actor {
    const SQL: &str = "insert into users (id, name, display_name, password_hash, role, disabled, \
         must_change_password, created_at, updated_at) values ($1, $2, $2, '', $3, $4, $4, 0, 0)";
    let id = UserId::new();
    db.run(SQL, args![id, name, role.name().as_str(), false]).await.unwrap();
    Actor {
        id,
        name: name.to_owned(),
        role,
        session: Uuid::now_v7(),
        way: Way::Token,
        expires_at: UnixMillis(i64::MAX),
        must_change_password: false,
        remote_address: "127.0.0.1".to_owned(),
        request_id: String::new(),
    }
}
