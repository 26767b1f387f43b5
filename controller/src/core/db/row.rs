//! Rows as structs, for three engines at once, without sqlx's derive.

use sqlx::FromRow;
use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

/// A struct that can be read from a row of any engine; made by [`row!`].
pub trait Row:
    for<'r> FromRow<'r, SqliteRow>
    + for<'r> FromRow<'r, PgRow>
    + for<'r> FromRow<'r, MySqlRow>
    + Send
    + Unpin
{
}

impl<T> Row for T where
    T: for<'r> FromRow<'r, SqliteRow>
        + for<'r> FromRow<'r, PgRow>
        + for<'r> FromRow<'r, MySqlRow>
        + Send
        + Unpin
{
}

/// Writes a struct and reads it by column name: `row! { struct NodeRow { id: Uuid, name: String } }`.
///
/// Columns are `Uuid`, `String`, `i64`, `bool` or `Vec<u8>`, or an `Option` of one.
macro_rules! row {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type),* }

        $crate::core::db::row!(@read $name sqlx::sqlite::SqliteRow; $($field)*);
        $crate::core::db::row!(@read $name sqlx::postgres::PgRow; $($field)*);
        $crate::core::db::row!(@read $name sqlx::mysql::MySqlRow; $($field)*);
    };
    (@read $name:ident $row:ty; $($field:ident)*) => {
        impl<'r> sqlx::FromRow<'r, $row> for $name {
            fn from_row(row: &'r $row) -> sqlx::Result<Self> {
                use sqlx::Row as _;
                Ok(Self { $($field: row.try_get(stringify!($field))?),* })
            }
        }
    };
}
pub(crate) use row;

/// The first column of a row as a number.
pub(super) struct Number {
    pub(super) number: i64,
}

macro_rules! number_from {
    ($($row:ty),*) => {
        $(
            impl<'r> FromRow<'r, $row> for Number {
                fn from_row(row: &'r $row) -> sqlx::Result<Self> {
                    use sqlx::Row as _;
                    Ok(Self { number: row.try_get(0)? })
                }
            }
        )*
    };
}
number_from!(SqliteRow, PgRow, MySqlRow);
