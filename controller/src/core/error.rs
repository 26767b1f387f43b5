//! The one map from errors to HTTP: RFC 9457 problem JSON with a stable code.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::db::DbError;

/// What a client is told when something cannot be done.
///
/// `code` is stable and for programs; `detail` is one sentence for people that says what to do.
#[derive(Clone, Debug)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable snake_case word.
    pub code: &'static str,
    /// One sentence.
    pub detail: String,
    /// Numbers and names behind the sentence.
    pub data: Option<serde_json::Value>,
}

/// The result of a handler or an action.
pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// The body of every error answer (RFC 9457, `application/problem+json`).
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemBody {
    /// Always `about:blank`; the code tells problems apart.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The status in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable snake_case word.
    pub code: String,
    /// One sentence that says what to do.
    pub detail: String,
    /// The id under which the server logged this request.
    pub request_id: String,
    /// Numbers and names behind the sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $status:ident;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(code: &'static str, detail: impl Into<String>) -> Self {
                Self { status: StatusCode::$status, code, detail: detail.into(), data: None }
            }
        )*
    };
}

impl Problem {
    constructors! {
        /// The request is not understood (400).
        bad_request => BAD_REQUEST;
        /// Nobody is logged in (401).
        unauthorised => UNAUTHORIZED;
        /// Somebody is, and may not (403).
        forbidden => FORBIDDEN;
        /// There is no such thing, or the caller may not know of it (404).
        not_found => NOT_FOUND;
        /// The state of things forbids it (409).
        conflict => CONFLICT;
        /// The request is understood and wrong (422).
        invalid => UNPROCESSABLE_ENTITY;
        /// Too often (429).
        too_many => TOO_MANY_REQUESTS;
        /// A node or another part does not answer now (503).
        unavailable => SERVICE_UNAVAILABLE;
    }

    /// Something failed that the caller cannot mend (500). The cause is logged, not told.
    #[must_use]
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %Chain(cause), "request failed");
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal",
            detail: "the controller failed; its log has the cause under this request id".to_owned(),
            data: None,
        }
    }

    /// Adds the numbers and names behind the sentence.
    #[must_use]
    pub fn with(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }
}

/// Prints an error with all its sources, outermost first.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Duplicate(_) => {
                Self::conflict("duplicate", "this name is taken; choose another")
            }
            DbError::Referenced(_) => {
                Self::conflict("in_use", "others refer to it, or it refers to one that is gone")
            }
            DbError::UnknownEngine
            | DbError::Corrupt { .. }
            | DbError::Migrate(_)
            | DbError::Engine(_) => Self::internal(&error),
        }
    }
}

impl IntoResponse for Problem {
    /// Leaves the body to the middleware in `core/http.rs`, which knows the request id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
