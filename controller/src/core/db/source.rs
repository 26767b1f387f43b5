//! Somewhere to read from.

use super::{Db, DbError, Engine, Row, Tx, Value};

/// Somewhere rows can be read from: the pool, or a transaction that holds locks.
pub trait Source: Send {
    /// Which engine it is.
    fn engine(&self) -> Engine;

    /// Returns every row that `sql` gives.
    fn all<R: Row>(
        &mut self,
        sql: &str,
        args: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<R>, DbError>> + Send;
}

impl Source for &Db {
    fn engine(&self) -> Engine {
        Db::engine(self)
    }

    async fn all<R: Row>(&mut self, sql: &str, args: Vec<Value>) -> Result<Vec<R>, DbError> {
        Db::all(self, sql, args).await
    }
}

impl Source for &mut Tx {
    fn engine(&self) -> Engine {
        Tx::engine(self)
    }

    async fn all<R: Row>(&mut self, sql: &str, args: Vec<Value>) -> Result<Vec<R>, DbError> {
        Tx::all(self, sql, args).await
    }
}
