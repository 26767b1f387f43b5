//! What people see of a kept terminal.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::store::{self, Kept};
use crate::core::timestamp::Timestamp;

/// A terminal that is kept for the account that opened it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct TerminalView {
    /// Which.
    id: Uuid,
    /// The shell that was asked for, `bash` or `sh`.
    shell: String,
    /// When it was opened.
    created_at: Timestamp,
    /// Since when nobody is in it; null while somebody is.
    detached_at: Option<Timestamp>,
    /// When it ends if nobody comes back; null while somebody is in it.
    expires_at: Option<Timestamp>,
}

impl From<Kept> for TerminalView {
    fn from(kept: Kept) -> Self {
        Self {
            id: kept.id.0,
            shell: store::word(kept.shell).to_owned(),
            created_at: kept.created_at.into(),
            detached_at: kept.detached_at.map(Timestamp::from),
            expires_at: kept.expires_at().map(Timestamp::from),
        }
    }
}
