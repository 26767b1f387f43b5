//! Copies of the database, and putting one back.
//!
//! A restore is in two steps, because the tables of a running controller cannot be swapped: the
//! file is checked and laid beside the database, and the next start (at once) puts it in place,
//! keeps the old database, and raises the epoch, so that agents take the older generations of the
//! restored rows as newer. Instances that nodes hold and the restored rows do not know are reported
//! as orphans; nothing of them is deleted. The chain of the audit goes on from where the copy ends;
//! that it was longer is written down outside the database.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::config::Config;
use crate::core::db::{Db, args};
use crate::core::{audit, epoch};

/// What a restore leaves for the next start.
const PENDING: &str = "restore.pending";
/// What keeps the database that a restore replaced.
const BEFORE: &str = "before-restore";

/// Writes a consistent copy of the database to `file` while it is in use.
///
/// # Errors
///
/// When the file exists or cannot be written, or the engine is not SQLite.
pub async fn backup(db: &Db, file: &Path) -> Result<String> {
    let Db::Sqlite(_) = db else { bail!(OTHER_ENGINE) };
    if file.exists() {
        bail!("{} exists already; name another file", file.display());
    }
    let text = file.to_str().context("the file's name is not valid UTF-8")?;
    db.run("vacuum into $1", args![text]).await.context("the copy could not be written")?;
    File::open(file)?.sync_all()?;
    let size = fs::metadata(file)?.len();
    Ok(format!(
        "{} bytes written to {}; keep master.key with it: secrets in it open with that key alone",
        size,
        file.display()
    ))
}

const OTHER_ENGINE: &str = "the database is not SQLite: use its own tools (pg_dump and pg_restore, \
     mariadb-dump and mariadb); agents notice a restored database and nothing of theirs is deleted; \
     audit verify tells which rows a restored database lacks, and audit accept that it is meant so";

/// Checks `file` and lays it beside the database for the next start.
///
/// # Errors
///
/// When it is not a copy of a Tianqi database, or the engine is not SQLite.
pub async fn prepare_restore(config: &Config, db: &Db, file: &Path) -> Result<()> {
    let Db::Sqlite(_) = db else { bail!(OTHER_ENGINE) };
    check(file).await.with_context(|| format!("{} cannot be restored", file.display()))?;
    let copy = config.data_dir.join(format!("{PENDING}.copy"));
    fs::copy(file, &copy)?;
    File::open(&copy)?.sync_all()?;
    fs::rename(&copy, config.data_dir.join(PENDING))?;
    Ok(())
}

async fn check(file: &Path) -> Result<()> {
    if !file.is_file() {
        bail!("there is no such file");
    }
    let url = format!("sqlite:{}?mode=ro", file.display());
    let mut connection = SqliteConnection::connect(&url).await.context("it is not a database")?;
    let query = |sql: &'static str| sqlx::query_scalar::<_, String>(AssertSqlSafe(sql.to_owned()));
    let verdict = query("pragma integrity_check").fetch_one(&mut connection).await;
    let verdict = verdict.context("it is not a database")?;
    if verdict != "ok" {
        bail!("it is damaged: {verdict}");
    }
    let tables = "select name from sqlite_master where name in ('meta', 'instances', 'nodes')";
    let found = query(tables).fetch_all(&mut connection).await?;
    if found.len() != 3 {
        bail!("it is not a copy of a Tianqi database");
    }
    Ok(())
}

/// Puts a prepared restore in place, if there is one. Called before the database is opened.
///
/// # Errors
///
/// When files cannot be moved or the restored database cannot be opened.
pub async fn finish_restore(config: &Config, now: tianqi_common::clock::UnixMillis) -> Result<()> {
    let pending = config.data_dir.join(PENDING);
    if !pending.exists() {
        return Ok(());
    }
    let Some(current) = sqlite_file(&config.database_url()) else { bail!(OTHER_ENGINE) };
    audit::begin_restore(&config.data_dir)?;
    let kept = current.with_extension(format!("{BEFORE}-{}", now.0 / 1_000));
    for suffix in ["", "-wal", "-shm"] {
        let from = with_suffix(&current, suffix);
        if from.exists() {
            fs::rename(&from, with_suffix(&kept, suffix))?;
        }
    }
    fs::rename(&pending, &current)?;
    let db = Db::open(&config.database_url(), 1).await?;
    let raised = epoch::raise(&db, now).await?;
    db.close().await;
    tracing::warn!("the database was restored; epoch {raised}; the old one is {}", kept.display());
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

fn sqlite_file(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    Some(PathBuf::from(path.split('?').next()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tianqi_common::clock::{ManualClock, UnixMillis};

    use super::*;
    use crate::core::audit::{Doer, Entry, Outcome};
    use crate::core::seal::Seal;

    async fn config_with_database() -> (tempfile::TempDir, Config, Db) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        let db = Db::open(&config.database_url(), 2).await.unwrap();
        (folder, config, db)
    }

    async fn set(db: &Db, value: &str) {
        db.run("delete from meta where name = 'test'", args![]).await.unwrap();
        db.run("insert into meta (name, value) values ('test', $1)", args![value]).await.unwrap();
    }

    #[tokio::test]
    async fn a_restored_copy_brings_its_rows_back_under_a_higher_epoch() {
        let (folder, config, db) = config_with_database().await;
        let copy = folder.path().join("copy.db");
        set(&db, "old").await;
        backup(&db, &copy).await.unwrap();
        set(&db, "new").await;
        let before = epoch::current(&db).await.unwrap();

        prepare_restore(&config, &db, &copy).await.unwrap();
        db.close().await;
        finish_restore(&config, UnixMillis(1_000_000)).await.unwrap();

        let db = Db::open(&config.database_url(), 2).await.unwrap();
        let count = db.number("select count(*) from meta where value = 'old'", args![]).await;
        assert_eq!(count.unwrap(), 1);
        assert!(epoch::current(&db).await.unwrap() > before);
        assert!(!config.data_dir.join(PENDING).exists());
    }

    #[tokio::test]
    async fn the_chain_of_the_audit_goes_on_from_where_the_copy_ends() {
        let (folder, config, db) = config_with_database().await;
        let seal = Arc::new(Seal::open_or_create(&config.data_dir.join("master.key")).unwrap());
        let clock = Arc::new(ManualClock::at(UnixMillis(1_000_000)));
        let chain =
            |db: &Db| audit::Chain::new(db.clone(), seal.clone(), clock.clone(), &config.data_dir);
        let copy = folder.path().join("copy.db");
        written(&db, 3).await;
        chain(&db).seal(audit::Look::Full).await.unwrap();
        backup(&db, &copy).await.unwrap();
        written(&db, 4).await;
        chain(&db).seal(audit::Look::Full).await.unwrap();

        prepare_restore(&config, &db, &copy).await.unwrap();
        assert!(chain(&db).verify().await.unwrap().is_fine, "nothing is replaced yet");
        db.close().await;
        finish_restore(&config, UnixMillis(2_000_000)).await.unwrap();

        let db = Db::open(&config.database_url(), 2).await.unwrap();
        let early = chain(&db).verify().await.unwrap();
        assert!(early.is_fine, "{}", early.text);
        written(&db, 1).await;
        chain(&db).seal(audit::Look::Full).await.unwrap();
        let report = chain(&db).verify().await.unwrap();
        assert!(report.is_fine, "{}", report.text);
        assert!(report.text.contains("5 rows checked"), "{}", report.text);
        assert!(report.text.contains("rows 4 to 7 are in the database"), "{}", report.text);
    }

    async fn written(db: &Db, rows: i64) {
        for _ in 0..rows {
            let entry = Entry {
                doer: &Doer::system(),
                action: "test",
                target_kind: "",
                target_id: String::new(),
                outcome: Outcome::Done,
                detail: serde_json::json!({}),
            };
            audit::record_alone(db, UnixMillis(1_000_000), &entry).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_copy_is_refused_and_changes_nothing() {
        let (folder, config, db) = config_with_database().await;
        let junk = folder.path().join("junk.db");
        fs::write(&junk, b"not a database at all").unwrap();

        for file in [junk, folder.path().join("missing.db")] {
            assert!(prepare_restore(&config, &db, &file).await.is_err());
        }
        assert!(!config.data_dir.join(PENDING).exists());
    }

    #[tokio::test]
    async fn a_backup_never_writes_over_a_file() {
        let (folder, _config, db) = config_with_database().await;
        let file = folder.path().join("copy.db");
        fs::write(&file, b"precious").unwrap();

        assert!(backup(&db, &file).await.is_err());
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }
}
