use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tianqi_common::clock::{Clock as _, ManualClock, UnixMillis};
use uuid::Uuid;

use super::chain::{Chain, ChainError, Look};
use super::{Doer, Entry, Outcome, Report, Via, begin_restore, record_alone};
use crate::core::db::{Db, Engine, args, testing};
use crate::core::epoch;
use crate::core::seal::Seal;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOUR: Duration = Duration::from_hours(1);

struct World {
    db: Db,
    chain: Chain,
    clock: Arc<ManualClock>,
    folder: TempDir,
}

impl World {
    fn on(db: Db) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(NOW));
        let seal = Arc::new(Seal::open_or_create(&folder.path().join("master.key")).unwrap());
        let chain = Chain::new(db.clone(), seal, clock.clone(), folder.path());
        Self { db, chain, clock, folder }
    }

    async fn everywhere() -> Vec<Self> {
        testing::databases().await.into_iter().map(Self::on).collect()
    }

    /// Writes rows a second apart and links them.
    async fn sealed(&self, rows: i64) {
        for n in 0..rows {
            self.clock.advance(Duration::from_secs(1));
            self.write(self.clock.now(), n).await;
        }
        self.chain.seal(Look::Full).await.unwrap();
    }

    async fn write(&self, at: UnixMillis, n: i64) {
        let entry = Entry {
            doer: &Doer::anonymous("127.0.0.1", Via::Agent),
            action: "nodes:join",
            target_kind: "node",
            target_id: format!("node-{n} 名"),
            outcome: Outcome::Refused,
            detail: json!({ "n": n }),
        };
        record_alone(&self.db, at, &entry).await.unwrap();
    }

    async fn verify(&self) -> Report {
        self.chain.verify().await.unwrap()
    }

    async fn run(&self, sql: &str) {
        self.db.run(sql, args![]).await.unwrap();
    }

    /// Takes away what keeps rows from being changed, as somebody with the database in hand can.
    async fn unfix(&self) {
        match self.db.engine() {
            Engine::Sqlite => self.run("drop trigger audit_events_fixed").await,
            Engine::Postgres => self.run("drop trigger audit_events_fixed on audit_events").await,
            Engine::MySql => {}
        }
    }

    async fn event(&self, seq: i64) -> Uuid {
        crate::core::db::row! { struct IdRow { event_id: Uuid } }
        let sql = "select event_id from audit_seals where seq = $1";
        self.db.first::<IdRow>(sql, args![seq]).await.unwrap().unwrap().event_id
    }

    async fn remove(&self, from: i64, to: i64) {
        let rows = "delete from audit_events \
             where id in (select event_id from audit_seals where seq between $1 and $2)";
        self.db.run(rows, args![from, to]).await.unwrap();
        let links = "delete from audit_seals where seq between $1 and $2";
        self.db.run(links, args![from, to]).await.unwrap();
    }

    fn new_days(&self, days: u32) {
        self.clock.advance(HOUR * 24 * days);
    }
}

#[track_caller]
fn wrong(report: &Report, faults: &[&str]) {
    let found: Vec<_> = report.text.lines().filter(|line| line.starts_with("WRONG")).collect();
    assert_eq!(found.len(), faults.len(), "{}", report.text);
    for fault in faults {
        assert!(found.iter().any(|line| line.contains(fault)), "{fault}: {}", report.text);
    }
    assert_eq!(report.is_fine, faults.is_empty(), "{}", report.text);
}

#[tokio::test]
async fn a_chain_that_nobody_touched_is_whole_and_says_how_much_was_checked() {
    for world in World::everywhere().await {
        wrong(&world.verify().await, &[]);
        world.sealed(5).await;
        world.write(world.clock.now(), 6).await;

        let report = world.verify().await;

        wrong(&report, &[]);
        assert!(report.text.contains("5 rows checked"), "{}", report.text);
        assert!(report.text.contains("1 newest rows are not sealed yet"), "{}", report.text);
        let file = world.folder.path().join("audit-head.json");
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_changed_field_names_its_row_and_no_other() {
    let changes = [
        "detail = '{}'",
        "outcome = 'done'",
        "actor_name = 'somebody'",
        "via = 'ssh'",
        "at = at + 1",
        "target_id = 'node-9'",
        "remote_address = ''",
    ];
    for world in World::everywhere().await {
        world.sealed(5).await;
        world.unfix().await;
        let id = world.event(3).await;
        for change in changes {
            let before = "create table kept as select * from audit_events";
            world.run(before).await;
            let sql = format!("update audit_events set {change} where id = $1");
            world.db.run(&sql, args![id]).await.unwrap();

            wrong(&world.verify().await, &["row 3 is not what was written"]);

            world.run("delete from audit_events").await;
            world.run("insert into audit_events select * from kept").await;
            world.run("drop table kept").await;
            wrong(&world.verify().await, &[]);
        }
        world
            .db
            .run("update audit_seals set mac = $1 where seq = 2", args![vec![0_u8; 32]])
            .await
            .unwrap();
        wrong(&world.verify().await, &["row 2 is not what was written"]);
    }
}

#[tokio::test]
async fn no_statement_changes_a_row_where_the_engine_can_refuse_it() {
    for world in World::everywhere().await {
        world.sealed(1).await;

        let changed = world.db.run("update audit_events set outcome = 'done'", args![]).await;

        assert_eq!(changed.is_err(), world.db.engine() != Engine::MySql);
    }
}

#[tokio::test]
async fn a_row_that_is_gone_from_the_middle_is_named_with_and_without_its_link() {
    for world in World::everywhere().await {
        world.sealed(9).await;
        let id = world.event(3).await;
        world.db.run("delete from audit_events where id = $1", args![id]).await.unwrap();
        wrong(&world.verify().await, &["row 3 is missing (id "]);

        world.remove(5, 6).await;

        wrong(&world.verify().await, &["row 3 is missing", "rows 5 to 6 are missing"]);
    }
}

#[tokio::test]
async fn rows_cut_from_the_end_are_noticed_also_after_the_chain_went_on() {
    for world in World::everywhere().await {
        world.sealed(5).await;
        world.remove(4, 5).await;
        wrong(&world.verify().await, &["rows 4 to 5 are missing from the end"]);

        world.sealed(3).await;

        wrong(&world.verify().await, &["rows 4 to 5 are missing from the end"]);
        let accepted = world.chain.accept(&Doer::local()).await.unwrap();
        assert_eq!(accepted.len(), 1, "{accepted:?}");
        let report = world.verify().await;
        wrong(&report, &[]);
        assert!(report.text.contains("note: "), "{}", report.text);
        let told = "select count(*) from audit_events where action = 'local:audit_accept'";
        assert_eq!(world.db.number(told, args![]).await.unwrap(), 1);
        assert!(world.chain.accept(&Doer::local()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_end_can_be_accepted_before_the_chain_goes_on() {
    let world = World::on(testing::sqlite().await);
    world.sealed(3).await;
    world.remove(3, 3).await;

    let accepted = world.chain.accept(&Doer::local()).await.unwrap();

    assert_eq!(accepted, ["row 3 is missing from the end of the chain"]);
    wrong(&world.verify().await, &[]);
}

#[tokio::test]
async fn a_cut_is_noticed_although_the_database_claims_another_epoch_or_holds_nothing() {
    for world in World::everywhere().await {
        world.sealed(5).await;
        world.remove(4, 5).await;
        epoch::raise(&world.db, NOW).await.unwrap();
        wrong(&world.verify().await, &["another database was put in its place"]);

        world.remove(1, 3).await;
        wrong(&world.verify().await, &["another database was put in its place"]);
    }
    let world = World::on(testing::sqlite().await);
    world.sealed(5).await;
    world.remove(1, 5).await;
    wrong(&world.verify().await, &["rows 1 to 5 are missing from the end"]);
}

#[tokio::test]
async fn rows_cut_from_the_front_are_missing_unless_a_checkpoint_of_ours_says_so() {
    for world in World::everywhere().await {
        world.sealed(5).await;
        world.remove(1, 2).await;
        wrong(&world.verify().await, &["rows 1 to 2 are missing"]);

        let forged = "insert into audit_checkpoints (seq, mac, made_at, signature) \
             values (2, $1, 1, $1)";
        world.db.run(forged, args![vec![7_u8; 32]]).await.unwrap();

        let faults = ["checkpoint at row 2 is not the controller's own", "row 3 is not what was"];
        wrong(&world.verify().await, &faults);
    }
}

#[tokio::test]
async fn a_row_that_was_slipped_in_is_found_with_and_without_a_link() {
    for world in World::everywhere().await {
        world.sealed(3).await;
        world.clock.advance(HOUR * 5);
        world.sealed(2).await;
        world.write(UnixMillis(NOW.0 + 1_500), 77).await;
        assert_eq!(world.chain.seal(Look::Full).await.unwrap(), 0, "the past is closed");
        wrong(&world.verify().await, &["a row was slipped in (id "]);

        let forged = "insert into audit_seals (seq, event_id, sealed_at, mac) select 6, id, 1, $1 \
             from audit_events e where not exists \
             (select 1 from audit_seals s where s.event_id = e.id)";
        world.db.run(forged, args![vec![7_u8; 32]]).await.unwrap();
        wrong(&world.verify().await, &["row 6 is not what was written"]);
    }
}

#[tokio::test]
async fn a_row_that_was_committed_late_gets_one_link_like_any_other() {
    for world in World::everywhere().await {
        world.sealed(3).await;
        world.clock.advance(HOUR);
        world.sealed(1).await;
        let late = UnixMillis(world.clock.now().0 - 30 * 60_000);
        world.write(late, 50).await;

        assert_eq!(world.chain.seal(Look::Recent).await.unwrap(), 0);
        assert_eq!(world.chain.seal(Look::Full).await.unwrap(), 1);
        assert_eq!(world.chain.seal(Look::Full).await.unwrap(), 0);

        wrong(&world.verify().await, &[]);
    }
}

#[tokio::test]
async fn rows_written_while_the_sealer_works_get_one_link_each() {
    for world in World::everywhere().await {
        let world = Arc::new(world);
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let world = world.clone();
                tokio::spawn(async move {
                    for n in 0..50 {
                        world.write(world.clock.now(), writer * 1_000 + n).await;
                    }
                })
            })
            .collect();
        while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
            world.chain.seal(Look::Full).await.unwrap();
        }
        for writer in writers {
            writer.await.unwrap();
        }
        world.chain.seal(Look::Full).await.unwrap();

        let links = world.db.number("select count(*) from audit_seals", args![]).await.unwrap();
        assert_eq!(links, 200);
        let report = world.verify().await;
        wrong(&report, &[]);
        assert!(report.text.contains("200 rows checked"), "{}", report.text);
    }
}

#[tokio::test]
async fn retention_removes_from_the_front_and_leaves_a_checkpoint_that_verifies() {
    for world in World::everywhere().await {
        world.sealed(4).await;
        world.new_days(100);
        world.sealed(3).await;

        assert_eq!(world.chain.forget_old(0).await.unwrap(), 0, "0 keeps for ever");
        assert_eq!(world.chain.forget_old(180).await.unwrap(), 0);
        assert_eq!(world.chain.forget_old(90).await.unwrap(), 4);

        let report = world.verify().await;
        wrong(&report, &[]);
        assert!(report.text.contains("3 rows checked"), "{}", report.text);
        assert!(report.text.contains("removed the rows up to 4"), "{}", report.text);
        let left = world.db.number("select count(*) from audit_events", args![]).await.unwrap();
        assert_eq!(left, 3);
        world.new_days(100);
        assert_eq!(world.chain.forget_old(90).await.unwrap(), 2, "the newest link stays");
        world.sealed(2).await;
        wrong(&world.verify().await, &[]);
        world.remove(7, 7).await;
        wrong(&world.verify().await, &["row 7 is missing"]);
    }
}

#[tokio::test]
async fn a_checkpoint_that_was_moved_or_taken_away_is_found() {
    for world in World::everywhere().await {
        world.sealed(4).await;
        world.new_days(100);
        world.sealed(3).await;
        world.chain.forget_old(90).await.unwrap();

        world.run("update audit_checkpoints set seq = 5").await;
        world.remove(5, 5).await;
        let faults = ["checkpoint at row 5 is not the controller's own", "row 6 is not what was"];
        wrong(&world.verify().await, &faults);

        world.run("delete from audit_checkpoints").await;
        wrong(&world.verify().await, &["rows 1 to 5 are missing"]);
    }
}

#[tokio::test]
async fn a_checkpoint_that_was_replaced_by_an_older_one_of_ours_is_found() {
    for world in World::everywhere().await {
        world.sealed(4).await;
        world.new_days(100);
        world.sealed(3).await;
        world.chain.forget_old(90).await.unwrap();
        world.run("create table kept as select * from audit_checkpoints").await;
        world.new_days(100);
        world.sealed(1).await;
        world.chain.forget_old(90).await.unwrap();
        wrong(&world.verify().await, &[]);

        world.run("delete from audit_checkpoints").await;
        world.run("insert into audit_checkpoints select * from kept").await;

        wrong(&world.verify().await, &["rows 5 to 7 are missing"]);
    }
}

#[tokio::test]
async fn retention_notes_what_was_wrong_before_it_removes_it() {
    for world in World::everywhere().await {
        world.sealed(4).await;
        world.new_days(100);
        world.sealed(2).await;
        let id = world.event(2).await;
        world.db.run("delete from audit_events where id = $1", args![id]).await.unwrap();

        assert_eq!(world.chain.forget_old(90).await.unwrap(), 4);

        wrong(&world.verify().await, &["row 2 is missing"]);
    }
}

#[tokio::test]
async fn a_head_that_is_gone_or_unreadable_is_a_fault() {
    let world = World::on(testing::sqlite().await);
    world.sealed(3).await;
    let file = world.folder.path().join("audit-head.json");
    std::fs::remove_file(&file).unwrap();
    wrong(&world.verify().await, &["was gone when the chain had 3 rows"]);
    world.sealed(1).await;
    wrong(&world.verify().await, &["was gone when the chain had 3 rows"]);

    std::fs::write(&file, b"{").unwrap();

    wrong(&world.verify().await, &["could not be understood"]);
}

#[tokio::test]
async fn a_process_that_is_killed_between_links_and_head_leaves_no_fault() {
    let world = World::on(testing::sqlite().await);
    let file = world.folder.path().join("audit-head.json");
    let blocked = world.folder.path().join("audit-head.new");
    world.write(world.clock.now(), 0).await;
    std::fs::create_dir(&blocked).unwrap();
    assert!(matches!(world.chain.seal(Look::Full).await, Err(ChainError::Head(_))));
    let links = world.db.number("select count(*) from audit_seals", args![]).await.unwrap();
    assert_eq!(links, 0, "a link was written before the head was there");
    std::fs::remove_dir(&blocked).unwrap();

    for _ in 0..2 {
        world.sealed(2).await;
        let before = std::fs::read(&file).unwrap();
        world.sealed(2).await;
        std::fs::write(&file, before).unwrap();

        wrong(&world.verify().await, &[]);
        world.sealed(1).await;
        wrong(&world.verify().await, &[]);
    }
}

#[tokio::test]
async fn a_chain_without_its_key_is_not_begun_anew() {
    for world in World::everywhere().await {
        world.sealed(3).await;
        world.run("delete from audit_keys").await;
        world.write(world.clock.now(), 9).await;

        assert!(matches!(world.chain.seal(Look::Full).await, Err(ChainError::KeyGone)));
        assert!(matches!(world.chain.verify().await, Err(ChainError::KeyGone)));
    }
}

#[tokio::test]
async fn a_restore_shortens_the_chain_and_says_so() {
    let world = World::on(testing::sqlite().await);
    world.sealed(5).await;
    begin_restore(world.folder.path()).unwrap();
    world.remove(4, 5).await;
    epoch::raise(&world.db, NOW).await.unwrap();
    wrong(&world.verify().await, &[]);

    world.sealed(1).await;

    let report = world.verify().await;
    wrong(&report, &[]);
    assert!(report.text.contains("rows 4 to 5 are in the database"), "{}", report.text);
    let told = "select count(*) from audit_events where action = 'local:restored'";
    assert_eq!(world.db.number(told, args![]).await.unwrap(), 1);
    world.remove(4, 4).await;
    assert!(!world.verify().await.is_fine, "a restore pardons nothing that comes after it");
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "what it costs is measured by the real clock")]
async fn sealing_a_thousand_rows_costs_little() {
    for world in World::everywhere().await {
        for n in 0..1_000 {
            world.write(world.clock.now(), n).await;
        }
        let began = Instant::now();

        assert_eq!(world.chain.seal(Look::Full).await.unwrap(), 1_000);

        let (sealed, began) = (began.elapsed(), Instant::now());
        wrong(&world.verify().await, &[]);
        let verified = began.elapsed();
        println!(
            "{:?}: 1 000 rows sealed in {} ms, verified in {} ms",
            world.db.engine(),
            sealed.as_millis(),
            verified.as_millis()
        );
        assert!(sealed < Duration::from_secs(10), "{sealed:?}");
    }
}
