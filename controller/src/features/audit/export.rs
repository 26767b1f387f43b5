//! The audit as one stream of lines, page by page, so that memory does not grow with its length.

use std::io;

use axum::body::{Body, Bytes};
use futures_util::stream;
use uuid::Uuid;

use super::csv;
use super::model::AuditQuery;
use super::store;
use crate::core::db::Db;
use crate::core::error::Chain;

/// Rows that are in memory at once.
const PAGE: usize = 500;

/// Where the stream is.
enum At {
    /// Before the names of the columns.
    Head,
    /// Before the events older than this one.
    Before(Option<Uuid>),
    /// Behind the last event.
    End,
}

/// Streams what `query` wants, newest first. When the database fails on the way, the connection is
/// cut, so that nobody takes half for the whole.
pub(super) fn body(db: Db, query: AuditQuery) -> Body {
    let before = query.before;
    let pieces = stream::unfold((db, query, At::Head), move |(db, mut query, at)| async move {
        match at {
            At::Head => Some((
                Ok(Bytes::from_static(csv::HEAD.as_bytes())),
                (db, query, At::Before(before)),
            )),
            At::Before(before) => {
                query.before = before;
                let (piece, at) = piece(&db, &query).await?;
                Some((piece, (db, query, at)))
            }
            At::End => None,
        }
    });
    Body::from_stream(pieces)
}

/// Returns the next lines; nothing when there are no more.
async fn piece(db: &Db, query: &AuditQuery) -> Option<(io::Result<Bytes>, At)> {
    match store::newest(db, query, PAGE).await {
        Ok(rows) => {
            let oldest = rows.last()?.id;
            let lines: String = rows.iter().map(csv::line).collect();
            Some((Ok(lines.into()), At::Before(Some(oldest))))
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "an export of the audit broke off");
            Some((Err(io::Error::other("the export broke off")), At::End))
        }
    }
}
