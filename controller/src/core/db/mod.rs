//! The database: SQLite, PostgreSQL or MySQL/MariaDB behind one door.
//!
//! SQL is written once with `$1, $2 …`. A statement that ends in `for update` locks its rows on
//! PostgreSQL and MySQL; on SQLite the words are taken away, because a writing transaction begins
//! with `begin immediate` there and holds the only write lock.
//!
//! Every time is a `bigint` of milliseconds since 1970 in UTC, every id a UUID, every amount of
//! money a `bigint` of micro-units, and every JSON document text: one meaning on three engines.

mod migrate;
mod row;
mod source;
mod statement;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::str::FromStr;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{MySql, MySqlPool, PgPool, Postgres, Sqlite, SqlitePool, Transaction};

pub use row::Row;
pub use source::Source;
pub use statement::{Filter, Value};

pub(crate) use row::row;
pub(crate) use statement::args;

/// How long a caller waits for a free connection before it fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long SQLite waits for the write lock of another connection.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READ_COMMITTED: &str = "set session transaction isolation level read committed";

/// Why the database could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The URL names no engine that this build knows.
    #[error("database url must begin with sqlite:, postgres: or mysql:")]
    UnknownEngine,
    /// A row with the same unique value exists.
    #[error("a row with this value exists already")]
    Duplicate(#[source] sqlx::Error),
    /// A row that others refer to, or that refers to a missing row.
    #[error("the row is referred to by others, or refers to one that does not exist")]
    Referenced(#[source] sqlx::Error),
    /// A stored value cannot be read; the column and what is wrong with it.
    #[error("stored value in {column} cannot be read: {problem}")]
    Corrupt {
        /// Table and column.
        column: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Bringing the tables up to date failed.
    #[error("the tables could not be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// Anything else the engine said.
    #[error("the database failed")]
    Engine(#[source] sqlx::Error),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().map(sqlx::error::DatabaseError::kind) {
            Some(sqlx::error::ErrorKind::UniqueViolation) => Self::Duplicate(error),
            Some(sqlx::error::ErrorKind::ForeignKeyViolation) => Self::Referenced(error),
            _ => Self::Engine(error),
        }
    }
}

impl DbError {
    /// Whether trying the whole transaction again may help: the engine chose it as the victim of a
    /// deadlock or of a lost race (SQLSTATE 40001 and 40P01, MySQL 1205 and 1213).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        let Self::Engine(error) = self else { return false };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        matches!(code.as_deref(), Some("40001" | "40P01" | "1205" | "1213" | "5" | "517"))
    }
}

/// Which engine is in use, for the few statements that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// SQLite, the embedded default.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    MySql,
}

/// A pool of connections.
#[derive(Clone, Debug)]
pub enum Db {
    /// SQLite.
    Sqlite(SqlitePool),
    /// PostgreSQL.
    Postgres(PgPool),
    /// MySQL or MariaDB.
    MySql(MySqlPool),
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub enum Tx {
    /// SQLite.
    Sqlite(Transaction<'static, Sqlite>),
    /// PostgreSQL.
    Postgres(Transaction<'static, Postgres>),
    /// MySQL or MariaDB.
    MySql(Transaction<'static, MySql>),
}

/// Runs the same expression for whichever engine stands in `$db`.
macro_rules! on {
    ($kind:ident, $db:expr, $it:ident => $body:expr) => {
        match $db {
            $kind::Sqlite($it) => $body,
            $kind::Postgres($it) => $body,
            $kind::MySql($it) => $body,
        }
    };
    ($kind:ident, $db:expr, $it:ident, $engine:ident => $body:expr) => {
        match $db {
            $kind::Sqlite($it) => {
                use statement::sqlite as $engine;
                $body
            }
            $kind::Postgres($it) => {
                use statement::postgres as $engine;
                $body
            }
            $kind::MySql($it) => {
                use statement::mysql as $engine;
                $body
            }
        }
    };
}

impl Db {
    /// Opens `url` and brings its tables up to date.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the URL is not understood, the server does not answer, or a migration fails.
    pub async fn open(url: &str, max_connections: u32) -> Result<Self, DbError> {
        let db = Self::connect(url, max_connections).await?;
        migrate::run(&db).await?;
        Ok(db)
    }

    async fn connect(url: &str, max_connections: u32) -> Result<Self, DbError> {
        match url.split(':').next() {
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(url)?
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Normal)
                    .busy_timeout(SQLITE_BUSY_TIMEOUT)
                    .foreign_keys(true);
                let pool = SqlitePoolOptions::new()
                    .max_connections(max_connections)
                    .acquire_timeout(ACQUIRE_TIMEOUT);
                Ok(Self::Sqlite(pool.connect_with(options).await?))
            }
            Some("postgres" | "postgresql") => {
                let pool = PgPoolOptions::new()
                    .max_connections(max_connections)
                    .acquire_timeout(ACQUIRE_TIMEOUT);
                Ok(Self::Postgres(pool.connect_with(PgConnectOptions::from_str(url)?).await?))
            }
            Some("mysql" | "mariadb") => {
                // The default of MySQL, repeatable read, would hide rows that another transaction
                // committed between this transaction's first read and its locks.
                let pool = MySqlPoolOptions::new()
                    .max_connections(max_connections)
                    .acquire_timeout(ACQUIRE_TIMEOUT)
                    .after_connect(|connection, _| {
                        Box::pin(async move {
                            sqlx::query(READ_COMMITTED).execute(connection).await.map(|_| ())
                        })
                    });
                Ok(Self::MySql(pool.connect_with(MySqlConnectOptions::from_str(url)?).await?))
            }
            _ => Err(DbError::UnknownEngine),
        }
    }

    /// Returns which engine this is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self::Sqlite(_) => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
            Self::MySql(_) => Engine::MySql,
        }
    }

    /// Begins a transaction that writes; on SQLite it takes the write lock at once.
    ///
    /// # Errors
    ///
    /// [`DbError::Engine`] when no connection is free in time.
    pub async fn begin(&self) -> Result<Tx, DbError> {
        Ok(match self {
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with("begin immediate").await?),
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await?),
            Self::MySql(pool) => Tx::MySql(pool.begin().await?),
        })
    }

    /// Closes every connection.
    pub async fn close(&self) {
        on!(Self, self, pool => pool.close().await);
    }

    /// Returns every row that `sql` gives.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn all<R: Row>(&self, sql: &str, args: Vec<Value>) -> Result<Vec<R>, DbError> {
        on!(Self, self, pool, engine => engine::all(pool, sql, args).await)
    }

    /// Returns the first row that `sql` gives, if any.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn first<R: Row>(&self, sql: &str, args: Vec<Value>) -> Result<Option<R>, DbError> {
        on!(Self, self, pool, engine => engine::first(pool, sql, args).await)
    }

    /// Returns the one number that `sql` gives, such as a count; 0 when it gives nothing.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn number(&self, sql: &str, args: Vec<Value>) -> Result<i64, DbError> {
        Ok(self.first::<row::Number>(sql, args).await?.map_or(0, |row| row.number))
    }

    /// Runs one statement outside a transaction and returns how many rows it touched.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn run(&self, sql: &str, args: Vec<Value>) -> Result<u64, DbError> {
        on!(Self, self, pool, engine => engine::run(pool, sql, args).await)
    }
}

impl Tx {
    /// Returns which engine this is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self::Sqlite(_) => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
            Self::MySql(_) => Engine::MySql,
        }
    }

    /// Returns every row that `sql` gives.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn all<R: Row>(&mut self, sql: &str, args: Vec<Value>) -> Result<Vec<R>, DbError> {
        on!(Self, self, tx, engine => engine::all(&mut **tx, sql, args).await)
    }

    /// Returns the first row that `sql` gives, if any.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn first<R: Row>(
        &mut self,
        sql: &str,
        args: Vec<Value>,
    ) -> Result<Option<R>, DbError> {
        on!(Self, self, tx, engine => engine::first(&mut **tx, sql, args).await)
    }

    /// Returns the one number that `sql` gives, such as a count; 0 when it gives nothing.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn number(&mut self, sql: &str, args: Vec<Value>) -> Result<i64, DbError> {
        Ok(self.first::<row::Number>(sql, args).await?.map_or(0, |row| row.number))
    }

    /// Runs one statement and returns how many rows it touched.
    ///
    /// MySQL counts a row that an upsert changed as two, and one that an update left equal as none.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn run(&mut self, sql: &str, args: Vec<Value>) -> Result<u64, DbError> {
        on!(Self, self, tx, engine => engine::run(&mut **tx, sql, args).await)
    }

    /// Makes everything done in this transaction durable.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses; nothing was done then.
    pub async fn commit(self) -> Result<(), DbError> {
        on!(Self, self, tx => tx.commit().await)?;
        Ok(())
    }
}
