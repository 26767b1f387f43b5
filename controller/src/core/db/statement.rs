//! Statements: `$n` for every engine, values bound by kind.

use uuid::Uuid;

/// A value to bind. `None` is SQL's null, with its type kept, because PostgreSQL wants to know it.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// An id.
    Uuid(Option<Uuid>),
    /// Text.
    Text(Option<String>),
    /// A number, a time in milliseconds, or money in micro-units.
    Int(Option<i64>),
    /// True or false.
    Bool(Option<bool>),
    /// Raw bytes.
    Bytes(Option<Vec<u8>>),
}

macro_rules! value_from {
    ($($from:ty => $kind:ident($it:ident) $convert:expr;)*) => {
        $(
            impl From<$from> for Value {
                fn from($it: $from) -> Self {
                    Self::$kind(Some($convert))
                }
            }
            impl From<Option<$from>> for Value {
                fn from(value: Option<$from>) -> Self {
                    Self::$kind(value.map(|$it| $convert))
                }
            }
        )*
    };
}

value_from! {
    Uuid => Uuid(it) it;
    tianqi_common::id::InstanceId => Uuid(it) it.0;
    tianqi_common::id::NodeId => Uuid(it) it.0;
    tianqi_common::id::UserId => Uuid(it) it.0;
    tianqi_common::id::ImageId => Uuid(it) it.0;
    tianqi_common::id::SpecId => Uuid(it) it.0;
    tianqi_common::id::TerminalId => Uuid(it) it.0;
    tianqi_common::id::ForwardId => Uuid(it) it.0;
    String => Text(it) it;
    &str => Text(it) it.to_owned();
    &String => Text(it) it.clone();
    i64 => Int(it) it;
    i32 => Int(it) i64::from(it);
    u32 => Int(it) i64::from(it);
    u16 => Int(it) i64::from(it);
    // A number over i64::MAX cannot be stored; every checked quantity is far below it.
    u64 => Int(it) i64::try_from(it).unwrap_or(i64::MAX);
    tianqi_common::clock::UnixMillis => Int(it) it.0;
    bool => Bool(it) it;
    Vec<u8> => Bytes(it) it;
}

/// Collects the values of a statement in order.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::core::db::Value::from($value)),*] };
}
pub(crate) use args;

/// Builds the `where` of a list: each condition is left out when its value is not given.
///
/// Column names come from code, values are always bound.
#[derive(Default)]
pub struct Filter {
    conditions: Vec<String>,
    args: Vec<Value>,
}

impl Filter {
    /// Starts with no condition.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps rows whose `column` equals `value`.
    #[must_use]
    pub fn equals<V>(self, column: &'static str, value: Option<V>) -> Self
    where
        Value: From<V>,
    {
        self.compare(column, "=", value)
    }

    /// Keeps rows whose `column` stands in the relation `operator` (such as `>=`) to `value`.
    #[must_use]
    pub fn compare<V>(
        mut self,
        column: &'static str,
        operator: &'static str,
        value: Option<V>,
    ) -> Self
    where
        Value: From<V>,
    {
        if let Some(value) = value {
            self.args.push(Value::from(value));
            self.conditions.push(format!("{column} {operator} ${}", self.args.len()));
        }
        self
    }

    /// Keeps rows whose `column` contains `text`, whatever its case.
    #[must_use]
    pub fn contains(mut self, column: &'static str, text: Option<&str>) -> Self {
        if let Some(like) = self.like(column, text) {
            self.conditions.push(like);
        }
        self
    }

    /// Keeps rows for which the subselect `rows`, up to its last `and`, finds one whose `column`
    /// contains `text`, whatever its case.
    #[must_use]
    pub fn any_contains(
        mut self,
        rows: &'static str,
        column: &'static str,
        text: Option<&str>,
    ) -> Self {
        if let Some(like) = self.like(column, text) {
            self.conditions.push(format!("exists ({rows} {like})"));
        }
        self
    }

    fn like(&mut self, column: &str, text: Option<&str>) -> Option<String> {
        let text = text.filter(|text| !text.is_empty())?;
        let mut escaped = String::with_capacity(text.len() + 2);
        for c in text.to_lowercase().chars() {
            if matches!(c, '%' | '_' | '!') {
                escaped.push('!');
            }
            escaped.push(c);
        }
        self.args.push(Value::from(format!("%{escaped}%")));
        Some(format!("lower({column}) like ${} escape '!'", self.args.len()))
    }

    /// Keeps rows for which a condition without values holds, such as `deleted_at is null`.
    #[must_use]
    pub fn and(mut self, condition: &'static str) -> Self {
        self.conditions.push(condition.to_owned());
        self
    }

    /// Returns ` where …` (or nothing) and the values to bind.
    #[must_use]
    pub fn build(self) -> (String, Vec<Value>) {
        if self.conditions.is_empty() {
            return (String::new(), self.args);
        }
        (format!(" where {}", self.conditions.join(" and ")), self.args)
    }
}

macro_rules! bind {
    ($query:expr, $args:expr) => {{
        let mut query = $query;
        for value in $args {
            query = match value {
                Value::Uuid(it) => query.bind(it),
                Value::Text(it) => query.bind(it),
                Value::Int(it) => query.bind(it),
                Value::Bool(it) => query.bind(it),
                Value::Bytes(it) => query.bind(it),
            };
        }
        query
    }};
}
use bind;

/// The three verbs of a statement for one engine.
macro_rules! engine {
    ($name:ident, $database:ty, $prepare:expr) => {
        pub(super) mod $name {
            use sqlx::{AssertSqlSafe, Executor, query, query_as};

            use super::Value;
            use crate::core::db::{DbError, Row};

            pub async fn all<'c, R: Row, E: Executor<'c, Database = $database>>(
                on: E,
                sql: &str,
                args: Vec<Value>,
            ) -> Result<Vec<R>, DbError> {
                let (sql, args) = $prepare(sql, args);
                let query = query_as::<$database, R>(AssertSqlSafe(sql));
                Ok(super::bind!(query, args).fetch_all(on).await?)
            }

            pub async fn first<'c, R: Row, E: Executor<'c, Database = $database>>(
                on: E,
                sql: &str,
                args: Vec<Value>,
            ) -> Result<Option<R>, DbError> {
                let (sql, args) = $prepare(sql, args);
                let query = query_as::<$database, R>(AssertSqlSafe(sql));
                Ok(super::bind!(query, args).fetch_optional(on).await?)
            }

            pub async fn run<'c, E: Executor<'c, Database = $database>>(
                on: E,
                sql: &str,
                args: Vec<Value>,
            ) -> Result<u64, DbError> {
                let (sql, args) = $prepare(sql, args);
                let query = query::<$database>(AssertSqlSafe(sql));
                Ok(super::bind!(query, args).execute(on).await?.rows_affected())
            }
        }
    };
}

engine!(sqlite, sqlx::Sqlite, super::without_row_locks);
engine!(postgres, sqlx::Postgres, super::as_written);
engine!(mysql, sqlx::MySql, super::question_marks);

fn as_written(sql: &str, args: Vec<Value>) -> (String, Vec<Value>) {
    (sql.to_owned(), args)
}

fn without_row_locks(sql: &str, args: Vec<Value>) -> (String, Vec<Value>) {
    (sql.strip_suffix("for update").unwrap_or(sql).to_owned(), args)
}

/// Replaces each `$n` by `?` and repeats the values in the order in which they stand in the text.
fn question_marks(sql: &str, args: Vec<Value>) -> (String, Vec<Value>) {
    let mut text = String::with_capacity(sql.len());
    let mut ordered = Vec::with_capacity(args.len());
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = after.split_at(digits);
        match number.parse::<usize>().ok().and_then(|n| args.get(n.checked_sub(1)?)) {
            Some(value) => {
                text.push('?');
                ordered.push(value.clone());
            }
            None => {
                text.push('$');
                text.push_str(number);
            }
        }
        rest = tail;
    }
    text.push_str(rest);
    (text, ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_marks_repeat_a_value_that_is_used_twice_and_keep_the_texts_order() {
        let (sql, values) = question_marks("a = $2 or b = $1 or c = $2", args!["one", "two"]);

        assert_eq!(sql, "a = ? or b = ? or c = ?");
        assert!(values == args!["two", "one", "two"]);
    }

    #[test]
    fn filter_leaves_out_what_is_not_given_and_escapes_wildcards() {
        let (sql, values) = Filter::new()
            .equals("owner_id", None::<i64>)
            .contains("name", Some("50%_A"))
            .and("deleted_at is null")
            .build();

        assert_eq!(sql, " where lower(name) like $1 escape '!' and deleted_at is null");
        assert!(values == args!["%50!%!_a%"]);
    }
}
