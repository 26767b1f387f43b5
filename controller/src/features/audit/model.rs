//! What requests and answers about the audit hold.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::store::AuditRow;
use crate::core::timestamp::Timestamp;

/// Which events are wanted. Text matches anywhere, whatever its case, where it says so.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Part of the name of who did it.
    pub actor: Option<String>,
    /// The account that did it, also when it is gone by now.
    pub actor_id: Option<Uuid>,
    /// How they came in: `cookie`, `token`, `api_token`, `ssh`, `local`, `agent` or `system`.
    pub via: Option<String>,
    /// Part of what was done, such as `instances:`.
    pub action: Option<String>,
    /// Kind of the thing it was done to, such as `instance`.
    pub target_kind: Option<String>,
    /// Id or name of that thing.
    pub target_id: Option<String>,
    /// `done`, `refused` or `failed`.
    pub outcome: Option<String>,
    /// The request's id, as an answer's `x-request-id` says it.
    pub request_id: Option<String>,
    /// From this time on.
    #[param(value_type = Option<String>)]
    pub since: Option<Timestamp>,
    /// Before this time.
    #[param(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// Older than the event with this id.
    pub before: Option<Uuid>,
    /// Page, from 1; an export is one page.
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
}

/// One thing that was done, refused or failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditEvent {
    /// Its id; later events have greater ones.
    pub id: Uuid,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Which account, when it was one.
    pub actor_id: Option<Uuid>,
    /// Who.
    pub actor_name: String,
    /// `user`, `node`, `system`, `local` or `anonymous`.
    pub actor_kind: String,
    /// How they came in: `cookie`, `token`, `api_token`, `ssh`, `local`, `agent` or `system`.
    pub via: String,
    /// What.
    pub action: String,
    /// Kind of the thing it was done to.
    pub target_kind: String,
    /// Id or name of that thing.
    pub target_id: String,
    /// `done`, `refused` or `failed`.
    pub outcome: String,
    /// What else matters; never a secret. `changes` holds the fields that a change changed, each
    /// with `before` and `after`.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
    /// Where the request came from.
    pub remote_address: String,
    /// The request's id.
    pub request_id: String,
}

impl From<AuditRow> for AuditEvent {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            at: Timestamp::from_stored(row.at),
            actor_id: row.actor_id,
            actor_name: row.actor_name,
            actor_kind: row.actor_kind,
            via: row.via,
            action: row.action,
            target_kind: row.target_kind,
            target_id: row.target_id,
            outcome: row.outcome,
            detail: serde_json::from_str(&row.detail).unwrap_or_default(),
            remote_address: row.remote_address,
            request_id: row.request_id,
        }
    }
}
