use std::time::Duration;

use tianqi_common::id::{InstanceId, TerminalId, UserId};
use tianqi_common::wire::stream::Shell;
use uuid::Uuid;

use super::store::{self, KEPT, Kept, Of};
use super::ticket::Ticket;
use super::{PER_ACCOUNT, keeper, open};
use crate::authz::RoleName;
use crate::core::db::{args, row};
use crate::core::event::Event;
use crate::testing::Api;

/// Somebody with an instance.
struct World {
    api: Api,
    token: String,
    user: UserId,
    instance: InstanceId,
}

row! {
    struct IdRow { id: Uuid }
}

row! {
    struct DetailRow { detail: String }
}

impl World {
    async fn on(api: Api) -> Self {
        let token = api.person("alice", RoleName::USER).await;
        let row: Option<IdRow> =
            api.ctx.db.first("select id from users where name = 'alice'", args![]).await.unwrap();
        let user = UserId(row.unwrap().id);
        let instance = make_instance(&api, &token).await;
        Self { api, token, user, instance }
    }

    async fn engines() -> Vec<Self> {
        let mut all = Vec::new();
        for api in Api::engines().await {
            all.push(Self::on(api).await);
        }
        all
    }

    /// Writes a terminal that was left just now.
    async fn left(&self) -> (Ticket, Kept) {
        let now = self.api.ctx.clock.now();
        let ticket = Ticket::random();
        let kept = Kept {
            id: TerminalId::new(),
            instance: self.instance,
            user: self.user,
            ticket_hash: ticket.hash(),
            attachment: Uuid::now_v7(),
            shell: Shell::Sh,
            created_at: now,
            detached_at: Some(now),
        };
        let mut tx = self.api.ctx.db.begin().await.unwrap();
        store::insert(&mut tx, &kept).await.unwrap();
        tx.commit().await.unwrap();
        (ticket, kept)
    }

    async fn found(&self, ticket: &Ticket) -> Option<Kept> {
        store::by_ticket(&self.api.ctx.db, ticket).await.unwrap()
    }

    /// Returns why terminals were ended, from the audit, oldest first.
    async fn ends(&self) -> Vec<String> {
        let sql = "select detail from audit_events where detail like '%\"ended\"%' order by id";
        let rows: Vec<DetailRow> = self.api.ctx.db.all(sql, args![]).await.unwrap();
        let reason = |row: DetailRow| {
            let detail: serde_json::Value = serde_json::from_str(&row.detail).unwrap();
            detail["reason"].as_str().unwrap().to_owned()
        };
        rows.into_iter().map(reason).collect()
    }

    fn path(&self) -> String {
        format!("/instances/{}/terminals", self.instance)
    }
}

async fn make_instance(api: &Api, token: &str) -> InstanceId {
    let admin = api.person("root", RoleName::ADMIN).await;
    let image = serde_json::json!({ "name": "busybox", "address": "busybox:latest" });
    let image = api.call(&admin, "POST", "/images", Some(image)).await.body;
    let spec = serde_json::json!({
        "name": "small", "gpu_count": 0, "cpu_cores": 0.5, "memory_mib": 256,
    });
    let spec = api.call(&admin, "POST", "/specs", Some(spec)).await.body;
    let body = serde_json::json!({
        "name": "train-7", "image_id": image["id"], "spec_id": spec["id"],
    });
    let made = api.call(token, "POST", "/instances", Some(body)).await;
    made.text("/id").parse().unwrap()
}

#[tokio::test]
async fn a_ticket_is_exchanged_once_and_given_back_when_it_was_taken_in_vain_on_every_engine() {
    for world in World::engines().await {
        let db = &world.api.ctx.db;
        let (ticket, kept) = world.left().await;
        let (next, here) = (Ticket::random(), Uuid::now_v7());
        assert_eq!(world.found(&ticket).await.unwrap(), kept);

        assert!(store::attach(db, &kept, &next, here).await.unwrap());
        assert!(!store::attach(db, &kept, &Ticket::random(), Uuid::now_v7()).await.unwrap());
        assert_eq!(world.found(&ticket).await, None, "the old one is worthless at once");
        let attached = world.found(&next).await.unwrap();
        assert_eq!((attached.detached_at, attached.attachment), (None, here));
        assert_eq!(store::attached(db).await.unwrap(), 1);

        let now = world.api.ctx.clock.now();
        store::detach(db, kept.id, kept.attachment, now).await.unwrap();
        assert_eq!(store::attached(db).await.unwrap(), 1, "who was sent away changes nothing");
        store::put_back(db, &kept, here, now).await.unwrap();
        assert_eq!(world.found(&ticket).await.unwrap(), kept);

        assert!(store::attach(db, &kept, &next, here).await.unwrap());
        keeper::begin(&world.api.ctx).await.unwrap();
        assert_eq!(world.found(&next).await.unwrap().detached_at, Some(now), "after a restart");
    }
}

#[tokio::test]
async fn a_terminal_is_listed_to_its_owner_and_hung_up_by_nobody_else_on_every_engine() {
    for world in World::engines().await {
        let (_, kept) = world.left().await;
        let admin = world.api.person("boss", RoleName::ADMIN).await;
        let bob = world.api.person("bob", RoleName::USER).await;

        let list = world.api.call(&world.token, "GET", &world.path(), None).await.body;
        assert_eq!(list["total"], 1, "{list}");
        let item = &list["items"][0];
        assert_eq!((&item["id"], &item["shell"]), (&kept.id.to_string().into(), &"sh".into()));
        assert_eq!(item["expires_at"], "2027-01-15T08:10:00.000Z", "{item}");
        let others = world.api.call(&admin, "GET", &world.path(), None).await;
        assert_eq!((others.code(), &others.body["total"]), (200, &0.into()));

        let one = format!("{}/{}", world.path(), kept.id);
        let refused = world.api.call(&bob, "DELETE", &one, None).await;
        assert_eq!((refused.code(), refused.problem()), (404, "no_such_instance"));
        let refused = world.api.call(&admin, "DELETE", &one, None).await;
        assert_eq!((refused.code(), refused.problem()), (404, "no_such_terminal"));
        assert_eq!(world.api.call(&world.token, "DELETE", &one, None).await.code(), 204);
        let again = world.api.call(&world.token, "DELETE", &one, None).await;
        assert_eq!(again.problem(), "no_such_terminal");
        assert_eq!(world.ends().await, ["hung_up"]);
    }
}

#[tokio::test]
async fn a_terminal_that_was_left_for_ten_minutes_is_forgotten_on_every_engine() {
    for world in World::engines().await {
        let (ticket, _) = world.left().await;

        world.api.clock.advance(KEPT - Duration::from_millis(1));
        keeper::review(&world.api.ctx, Of::Everybody).await.unwrap();
        assert!(world.found(&ticket).await.is_some());
        world.api.clock.advance(Duration::from_millis(1));
        assert!(!world.found(&ticket).await.unwrap().is_alive(world.api.ctx.clock.now()));
        let list = world.api.call(&world.token, "GET", &world.path(), None).await.body;
        assert_eq!(list["total"], 0, "{list}");
        keeper::review(&world.api.ctx, Of::Everybody).await.unwrap();

        assert_eq!(world.found(&ticket).await, None);
        assert_eq!(world.ends().await, ["expired"]);
    }
}

#[tokio::test]
async fn a_terminal_that_was_left_ends_with_the_right_to_it() {
    const ROLE: &str = "update users set role = 'auditor' where name = 'alice'";
    const DISABLED: &str = "update users set disabled = true where name = 'alice'";
    const STOPPED: &str = "update instances set desired = 'stopped'";
    const DELETED: &str = "update instances set desired = 'deleted'";
    for (change, reason) in [
        (ROLE, "forbidden"),
        (DISABLED, "unauthorised"),
        (STOPPED, "stopped"),
        (DELETED, "no_such_instance"),
    ] {
        let world = World::on(Api::sqlite().await).await;
        let (ticket, kept) = world.left().await;

        keeper::review(&world.api.ctx, Of::User(kept.user)).await.unwrap();
        assert!(world.found(&ticket).await.is_some(), "nothing has changed yet");
        world.api.ctx.db.run(change, args![]).await.unwrap();
        keeper::review(&world.api.ctx, Of::Instance(InstanceId::new())).await.unwrap();
        keeper::review(&world.api.ctx, Of::User(UserId::new())).await.unwrap();
        assert!(world.found(&ticket).await.is_some(), "others are not looked at");
        keeper::review(&world.api.ctx, Of::Instance(kept.instance)).await.unwrap();

        assert_eq!(world.found(&ticket).await, None, "{change}");
        assert_eq!(world.ends().await, [reason], "{change}");
    }
}

#[tokio::test]
async fn the_keeper_hears_of_a_revocation_and_leaves_when_it_is_told_to() {
    let world = World::on(Api::sqlite().await).await;
    let (ticket, kept) = world.left().await;
    let cancel = tokio_util::sync::CancellationToken::new();
    let run = tokio::spawn(keeper::run(world.api.ctx.clone(), cancel.clone()));
    let sql = "update users set disabled = true where name = 'alice'";
    world.api.ctx.db.run(sql, args![]).await.unwrap();

    // It may not listen yet when the first of these is sent.
    while world.found(&ticket).await.is_some() {
        world.api.ctx.events.send(Event::Revoked(kept.user));
        tokio::task::yield_now().await;
    }

    cancel.cancel();
    run.await.unwrap();
}

#[tokio::test]
async fn the_terminal_left_for_longest_makes_room_and_one_in_use_never_does_on_every_engine() {
    for world in World::engines().await {
        let ctx = &world.api.ctx;
        let mut all = Vec::new();
        for _ in 0..PER_ACCOUNT {
            all.push(world.left().await);
            world.api.clock.advance(Duration::from_secs(1));
        }
        let (oldest, second) = (&all[0], &all[1]);
        assert!(store::attach(&ctx.db, &oldest.1, &oldest.0, Uuid::now_v7()).await.unwrap());

        let new = Kept { id: TerminalId::new(), ticket_hash: vec![1], ..oldest.1.clone() };
        open::keep(ctx, &new).await.unwrap();
        assert!(world.found(&oldest.0).await.is_some(), "somebody is there");
        assert_eq!(world.found(&second.0).await, None);
        assert_eq!(world.ends().await, ["made_room"]);

        ctx.db.run("update terminals set detached_at = null", args![]).await.unwrap();
        let one_more = Kept { id: TerminalId::new(), ticket_hash: vec![2], ..new };
        let refused = open::keep(ctx, &one_more).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "too_many_terminals"));
    }
}
