//! The master key is exchanged while everything runs.
//!
//! 1. The new key is written beside the old one; from here on it seals, and both open.
//! 2. Requests that may have sealed something with the old key end.
//! 3. Each sealed value is opened, sealed anew, and written if it is still the same.
//! 4. When no value of the old key is left, the new key takes the place of the old one.
//!
//! Each step may be done twice. A cut leaves both keys; the next start, or the next rotation, goes
//! on with the same new key.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Keys, MasterKey, Seal, SealError};
use crate::core::db::{Db, DbError, args, row};

/// Rows that are read at once.
const PAGE: i64 = 200;
/// Passes over all values until none of the old key is left; rows change meanwhile.
const PASSES: usize = 10;
/// How often it is looked whether requests have ended, and how long they may take.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_mins(10);

/// A column that holds sealed values. Whoever owns one names it, so that a rotation finds it.
#[derive(Clone, Copy, Debug)]
pub struct SealedColumn {
    /// Its table, whose rows have an `id`.
    pub table: &'static str,
    /// Its name; it begins with `sealed_`.
    pub column: &'static str,
    /// The name of a row that its values are bound to.
    pub bound_to: fn(Uuid) -> String,
}

/// Why a rotation has not ended. Nothing is lost: both keys are there.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Another one goes on.
    #[error("the master key is being exchanged already")]
    Twice,
    /// A key file cannot be written or read.
    #[error("the master key cannot be exchanged")]
    Seal(#[from] SealError),
    /// A value cannot be read or written.
    #[error("secrets cannot be read or written")]
    Db(#[from] DbError),
    /// Requests that began before do not end.
    #[error("requests that began before do not end; run it again")]
    InUse,
    /// A value that the old key sealed does not open.
    #[error("{0} does not open; set it anew or clear it, and run this again")]
    Broken(String),
    /// Values of the old key come again and again.
    #[error("secrets change faster than they are sealed anew; run it again")]
    Restless,
}

/// What a rotation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Values that were sealed anew.
    pub values: u64,
    /// Values that a third key sealed, such as those of an old copy; they stay as they were.
    pub foreign: Vec<String>,
}

row! {
    struct SealedRow { id: Uuid, sealed: Vec<u8> }
}

/// Exchanges the master key, or goes on with an exchange that was cut off.
///
/// # Errors
///
/// [`RotateError`]; it may be run again.
pub async fn rotate(
    db: &Db,
    seal: &Seal,
    columns: &[SealedColumn],
) -> Result<Rotated, RotateError> {
    let _turn = seal.turn.try_acquire().map_err(|_| RotateError::Twice)?;
    seal.begin()?;
    seal.old_is_idle().await?;
    let mut rotated = Rotated::default();
    for _ in 0..PASSES {
        let pass = reseal(db, seal, columns).await?;
        rotated = Rotated { values: rotated.values + pass.values, foreign: pass.foreign };
        if pass.values == 0 {
            seal.finish()?;
            return Ok(rotated);
        }
    }
    Err(RotateError::Restless)
}

/// Goes on with a rotation that was cut off, if one was.
///
/// # Errors
///
/// As [`rotate`].
pub async fn resume(db: &Db, seal: &Seal, columns: &[SealedColumn]) -> Result<(), RotateError> {
    if !seal.file.has_next() {
        return Ok(());
    }
    let Rotated { values, .. } = rotate(db, seal, columns).await?;
    tracing::info!("the exchange of the master key went on: {values} secrets sealed anew");
    Ok(())
}

/// Goes once over all values and seals anew those of the old key.
async fn reseal(db: &Db, seal: &Seal, columns: &[SealedColumn]) -> Result<Rotated, RotateError> {
    let mut rotated = Rotated::default();
    for column in columns {
        let SealedColumn { table, column: name, .. } = column;
        let sql = format!(
            "select id, {name} as sealed from {table} where {name} is not null and id > $1 \
             order by id limit {PAGE}"
        );
        // No id is smaller than this one, and none is equal to it.
        let mut last = Uuid::nil();
        loop {
            let rows: Vec<SealedRow> = db.all(&sql, args![last]).await?;
            let Some(end) = rows.last() else { break };
            last = end.id;
            for row in rows {
                match reseal_row(db, seal, column, &row).await? {
                    Outcome::Current => {}
                    Outcome::Resealed => rotated.values += 1,
                    Outcome::Foreign => rotated.foreign.push((column.bound_to)(row.id)),
                }
            }
        }
    }
    Ok(rotated)
}

enum Outcome {
    Current,
    Resealed,
    Foreign,
}

async fn reseal_row(
    db: &Db,
    seal: &Seal,
    SealedColumn { table, column, bound_to }: &SealedColumn,
    row: &SealedRow,
) -> Result<Outcome, RotateError> {
    if seal.is_current(&row.sealed) {
        return Ok(Outcome::Current);
    }
    let name = bound_to(row.id);
    let plain = match seal.open(&name, &row.sealed) {
        Ok(plain) => plain,
        Err(SealError::OtherKey) => return Ok(Outcome::Foreign),
        Err(_) => return Err(RotateError::Broken(name)),
    };
    let sealed = seal.seal(&name, &plain)?;
    // A value that somebody changed meanwhile is theirs; the next pass looks at it.
    let sql = format!("update {table} set {column} = $1 where id = $2 and {column} = $3");
    db.run(&sql, args![sealed, row.id, row.sealed.clone()]).await?;
    Ok(Outcome::Resealed)
}

impl Seal {
    /// Makes the new key and seals with it from here on.
    fn begin(&self) -> Result<(), SealError> {
        let next = MasterKey::new(self.file.begin()?.master());
        self.keys.send_if_modified(|keys| {
            if keys.current.id == next.id {
                return false;
            }
            let (before, mark) = (Some(keys.current.clone()), keys.mark.clone());
            *keys = Arc::new(Keys { current: Arc::new(next), before, mark });
            true
        });
        Ok(())
    }

    /// Returns when nobody works with the old key any more.
    async fn old_is_idle(&self) -> Result<(), RotateError> {
        let is_in_use = || {
            let keys = self.keys.borrow();
            keys.before.as_ref().is_some_and(|old| Arc::strong_count(old) > 1)
        };
        let ended = async {
            while is_in_use() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.map_err(|_| RotateError::InUse)
    }

    /// Forgets the old key, on disk and then in memory.
    fn finish(&self) -> Result<(), SealError> {
        self.file.finish()?;
        self.keys.send_modify(|keys| {
            let (current, mark) = (keys.current.clone(), keys.mark.clone());
            *keys = Arc::new(Keys { current, before: None, mark });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::core::db::testing;

    const COLUMN: SealedColumn =
        SealedColumn { table: "ca_certificates", column: "sealed_key", bound_to };
    const COLUMNS: &[SealedColumn] = &[COLUMN];
    const SECRETS: [&str; 3] = ["one", "two", "three"];

    fn bound_to(id: Uuid) -> String {
        format!("ca_certificates/{id}")
    }

    fn open(folder: &Path) -> Seal {
        Seal::open_or_create(&folder.join("master.key")).unwrap()
    }

    async fn insert(db: &Db, seal: &Seal, secret: &str) {
        let id = Uuid::now_v7();
        let sealed = seal.seal(&bound_to(id), secret.as_bytes()).unwrap();
        let sql = "insert into ca_certificates (id, kind, certificate_pem, sealed_key, not_before, \
             not_after, created_at) values ($1, 'test', '', $2, 0, 0, 0)";
        db.run(sql, args![id, sealed]).await.unwrap();
    }

    async fn rows(db: &Db) -> Vec<SealedRow> {
        let sql = "select id, sealed_key as sealed from ca_certificates order by id";
        db.all(sql, args![]).await.unwrap()
    }

    async fn secrets(db: &Db, seal: &Seal) -> Vec<String> {
        let opened = rows(db).await.into_iter().map(|row| {
            let plain = seal.open(&bound_to(row.id), &row.sealed).unwrap();
            String::from_utf8(plain.to_vec()).unwrap()
        });
        opened.collect()
    }

    async fn world(db: &Db) -> (tempfile::TempDir, Seal) {
        let folder = tempfile::tempdir().unwrap();
        let seal = open(folder.path());
        for secret in SECRETS {
            insert(db, &seal, secret).await;
        }
        (folder, seal)
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn everything_opens_with_the_new_key_and_nothing_with_the_old_one() {
        for db in testing::databases().await {
            let (folder, seal) = world(&db).await;
            let old = std::fs::read(folder.path().join("master.key")).unwrap();
            let (before, mark) = (rows(&db).await, seal.mark(b"text"));

            let rotated = rotate(&db, &seal, COLUMNS).await.unwrap();

            assert_eq!(rotated, Rotated { values: 3, foreign: vec![] });
            assert_eq!(files(folder.path()), ["master.key"]);
            assert_ne!(std::fs::read(folder.path().join("master.key")).unwrap()[..32], old[..]);
            for seal in [seal, open(folder.path())] {
                assert_eq!(secrets(&db, &seal).await, SECRETS);
                assert_eq!(seal.mark(b"text"), mark, "what was marked is recognised");
                let stale = seal.open(&bound_to(before[0].id), &before[0].sealed);
                assert!(matches!(stale, Err(SealError::OtherKey)), "{stale:?}");
            }
            let again = open(folder.path());
            assert_eq!(rotate(&db, &again, COLUMNS).await.unwrap().values, 3);
            assert_eq!(secrets(&db, &open(folder.path())).await, SECRETS);
            assert_eq!(open(folder.path()).mark(b"text"), mark);
        }
    }

    #[tokio::test]
    async fn a_cut_after_any_step_loses_nothing_and_the_next_start_goes_on() {
        for db in testing::databases().await {
            // Cut after the new key, after each row, and before the old key is removed.
            for rows_done in 0..=SECRETS.len() {
                db.run("delete from ca_certificates", args![]).await.unwrap();
                let (folder, seal) = world(&db).await;
                seal.begin().unwrap();
                for row in rows(&db).await.iter().take(rows_done) {
                    reseal_row(&db, &seal, &COLUMN, row).await.unwrap();
                }
                insert(&db, &seal, "while it went on").await;
                drop(seal);

                let seal = open(folder.path());
                assert_eq!(files(folder.path()), ["master.key", "master.key.new"]);
                let all = ["one", "two", "three", "while it went on"];
                assert_eq!(secrets(&db, &seal).await, all, "cut after {rows_done} rows");
                resume(&db, &seal, COLUMNS).await.unwrap();

                assert_eq!(files(folder.path()), ["master.key"]);
                assert_eq!(secrets(&db, &open(folder.path())).await, all);
            }
        }
    }

    #[tokio::test]
    async fn more_values_than_are_read_at_once_are_all_sealed_anew() {
        for db in testing::databases().await {
            let (_folder, seal) = world(&db).await;
            let count = PAGE * 2 + 7;
            for n in 3..count {
                insert(&db, &seal, &n.to_string()).await;
            }

            let rotated = rotate(&db, &seal, COLUMNS).await.unwrap();

            assert_eq!(i64::try_from(rotated.values).unwrap(), count);
        }
    }

    #[tokio::test]
    async fn a_half_written_new_key_was_never_in_use() {
        let db = testing::sqlite().await;
        let (folder, seal) = world(&db).await;
        std::fs::write(folder.path().join("master.key.new.part"), b"half").unwrap();

        assert_eq!(secrets(&db, &open(folder.path())).await, SECRETS);
        rotate(&db, &seal, COLUMNS).await.unwrap();

        assert_eq!(files(folder.path()), ["master.key"]);
        assert_eq!(secrets(&db, &open(folder.path())).await, SECRETS);
    }

    #[tokio::test]
    async fn a_request_that_sealed_with_the_old_key_is_waited_for() {
        let db = testing::sqlite().await;
        let (folder, seal) = world(&db).await;
        let held = seal.hold();
        let id = Uuid::now_v7();
        let late = seal.seal(&bound_to(id), b"late").unwrap();

        let store = async {
            while !folder.path().join("master.key.new").exists() {
                tokio::task::yield_now().await;
            }
            let sql = "insert into ca_certificates (id, kind, certificate_pem, sealed_key, \
                 not_before, not_after, created_at) values ($1, 'test', '', $2, 0, 0, 0)";
            db.run(sql, args![id, late]).await.unwrap();
            let twice = rotate(&db, &seal, COLUMNS).await;
            assert!(matches!(twice, Err(RotateError::Twice)), "{twice:?}");
            drop(held);
        };
        let (rotated, ()) = tokio::join!(rotate(&db, &seal, COLUMNS), store);

        assert_eq!(rotated.unwrap().values, 4);
        let expected = ["one", "two", "three", "late"];
        assert_eq!(secrets(&db, &open(folder.path())).await, expected);
    }

    #[tokio::test]
    async fn a_value_that_the_old_key_does_not_open_keeps_the_old_key() {
        let db = testing::sqlite().await;
        let (folder, seal) = world(&db).await;
        let row = &rows(&db).await[1];
        let mut broken = row.sealed.clone();
        *broken.last_mut().unwrap() ^= 1;
        let sql = "update ca_certificates set sealed_key = $1 where id = $2";
        db.run(sql, args![broken, row.id]).await.unwrap();

        let failed = rotate(&db, &seal, COLUMNS).await.unwrap_err();

        assert!(failed.to_string().contains(&bound_to(row.id)), "{failed}");
        assert_eq!(files(folder.path()), ["master.key", "master.key.new"]);
        db.run("delete from ca_certificates where id = $1", args![row.id]).await.unwrap();
        rotate(&db, &seal, COLUMNS).await.unwrap();
        assert_eq!(secrets(&db, &open(folder.path())).await, ["one", "three"]);
    }

    #[tokio::test]
    async fn a_value_of_a_third_key_is_left_and_told() {
        let db = testing::sqlite().await;
        let (_folder, seal) = world(&db).await;
        let elsewhere = tempfile::tempdir().unwrap();
        insert(&db, &open(elsewhere.path()), "foreign").await;
        let id = rows(&db).await[3].id;

        let rotated = rotate(&db, &seal, COLUMNS).await.unwrap();

        assert_eq!(rotated, Rotated { values: 3, foreign: vec![bound_to(id)] });
    }
}
