//! Reading what was done, by whom. Writing it is `core/audit`.
//!
//! Rows are only ever added. A list is newest first; `before` goes on from the last row of a page,
//! so that rows which arrive in between neither repeat nor hide others. `csv.rs` writes the same rows
//! for spreadsheets.

mod csv;
mod export;
mod model;
mod routes;
mod store;
#[cfg(test)]
mod tests;

pub use routes::router;
