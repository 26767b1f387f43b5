//! A fresh database on each of the three engines, for tests.

#![allow(clippy::expect_used, clippy::panic, reason = "tests end here when a server is missing")]

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, Executor};

use super::Db;

/// Where the PostgreSQL server of the tests is; `make test` starts it.
pub const POSTGRES_URL: &str = "TIANQI_TEST_POSTGRES_URL";
/// Where the MySQL or MariaDB server of the tests is; `make test` starts it.
pub const MYSQL_URL: &str = "TIANQI_TEST_MYSQL_URL";

const CONNECTIONS: u32 = 8;

/// Returns a fresh, migrated database on SQLite, PostgreSQL and MySQL.
///
/// # Panics
///
/// When a server is missing: a store that was not tried on an engine has not passed.
pub async fn databases() -> Vec<Db> {
    vec![sqlite().await, postgres().await, mysql().await]
}

/// Returns a fresh, migrated SQLite database in a temporary folder.
///
/// # Panics
///
/// When it cannot be made.
pub async fn sqlite() -> Db {
    let folder = tempfile::tempdir().expect("temporary folder").keep();
    let url = format!("sqlite:{}", folder.join("test.db").display());
    Db::open(&url, CONNECTIONS).await.expect("sqlite database")
}

async fn postgres() -> Db {
    let (server, name) = (server(POSTGRES_URL), unique_name());
    let mut connection = sqlx::PgConnection::connect(&server).await.expect("postgres server");
    let create = AssertSqlSafe(format!("create database {name}"));
    connection.execute(create).await.expect("create database");
    Db::open(&with_database(&server, &name), CONNECTIONS).await.expect("postgres database")
}

async fn mysql() -> Db {
    let (server, name) = (server(MYSQL_URL), unique_name());
    let mut connection = sqlx::MySqlConnection::connect(&server).await.expect("mysql server");
    let create = AssertSqlSafe(format!("create database {name} character set utf8mb4"));
    connection.execute(create).await.expect("create database");
    Db::open(&with_database(&server, &name), CONNECTIONS).await.expect("mysql database")
}

#[allow(clippy::disallowed_methods, reason = "the test services tell their address this way")]
fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run the tests by `make test`, or `eval $(tests/services.sh start)` first")
    })
}

fn with_database(server: &str, name: &str) -> String {
    let (head, _) = server.rsplit_once('/').expect("url with a database name");
    format!("{head}/{name}")
}

fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("tianqi_{}_{next}_{:08x}", std::process::id(), rand::random::<u32>())
}
