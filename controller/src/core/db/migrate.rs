//! Brings the tables up to date: forward only, one folder for each engine, kept in step by a test.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::{Db, DbError, Engine};

/// One step, written for each engine.
struct Step {
    version: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
    mysql: &'static str,
}

macro_rules! step {
    ($version:literal, $file:literal) => {
        Step {
            version: $version,
            name: $file,
            sqlite: include_str!(concat!("../../../migrations/sqlite/", $file, ".sql")),
            postgres: include_str!(concat!("../../../migrations/postgres/", $file, ".sql")),
            mysql: include_str!(concat!("../../../migrations/mysql/", $file, ".sql")),
        }
    };
}

const STEPS: &[Step] = &[
    step!(1, "0001_core"),
    step!(2, "0002_node_joins"),
    step!(3, "0003_live_instances"),
    step!(4, "0004_roles"),
    step!(5, "0005_accounts"),
    step!(6, "0006_audit"),
    step!(7, "0007_quotas"),
    step!(8, "0008_ssh_keys"),
    step!(9, "0009_forwards"),
    step!(10, "0010_terminals"),
];

/// Applies every step that the database does not have yet.
///
/// # Errors
///
/// [`DbError::Migrate`] when a step fails, or when the database is newer than this program.
pub(super) async fn run(db: &Db) -> Result<(), DbError> {
    let engine = db.engine();
    let steps = STEPS.iter().map(|step| {
        let sql = match engine {
            Engine::Sqlite => step.sqlite,
            Engine::Postgres => step.postgres,
            Engine::MySql => step.mysql,
        };
        let kind = MigrationType::Simple;
        Migration::new(step.version, Cow::Borrowed(step.name), kind, sql.into_sql_str(), false)
    });
    let migrator = Migrator::with_migrations(steps.collect());
    match db {
        Db::Sqlite(pool) => migrator.run(pool).await,
        Db::Postgres(pool) => migrator.run(pool).await,
        Db::MySql(pool) => migrator.run(pool).await,
    }
    .map_err(DbError::Migrate)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Table and column names of a migration, read as text: `create table t (` and its lines.
    fn columns(sql: &str) -> BTreeMap<String, BTreeSet<String>> {
        let mut tables = BTreeMap::new();
        let mut table = None;
        for line in sql.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("create table ") {
                table = rest.split_whitespace().next().map(str::to_owned);
            } else if line.starts_with(')') {
                table = None;
            } else if let (Some(table), Some(word)) = (&table, line.split_whitespace().next()) {
                let constraint = ["primary", "unique", "foreign", "check", "constraint", "--"];
                if !constraint.contains(&word) {
                    tables
                        .entry(table.clone())
                        .or_insert_with(BTreeSet::new)
                        .insert(word.to_owned());
                }
            }
        }
        tables
    }

    #[test]
    fn the_three_folders_make_the_same_tables_and_columns() {
        assert!(!columns(STEPS[0].sqlite).is_empty(), "the first step makes tables");
        for step in STEPS {
            let sqlite = columns(step.sqlite);
            assert_eq!(sqlite, columns(step.postgres), "{} on postgres", step.name);
            assert_eq!(sqlite, columns(step.mysql), "{} on mysql", step.name);
        }
    }

    #[tokio::test]
    async fn running_the_steps_twice_changes_nothing() {
        for db in crate::core::db::testing::databases().await {
            run(&db).await.unwrap();
        }
    }
}
