//! `/healthz`: the process answers. `/readyz`: it can do its work, or what is missing.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::core::db::args;
use crate::features::Ctx;

/// How long the database may take before the controller calls itself not ready.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn healthz() -> &'static str {
    "ok"
}

pub(super) async fn readyz(State(ctx): State<Ctx>) -> (StatusCode, Json<Value>) {
    let asked = tokio::time::timeout(PATIENCE, ctx.db.number("select 1", args![])).await;
    let missing: Vec<&str> = match asked {
        Ok(Ok(_)) => vec![],
        Ok(Err(_)) | Err(_) => vec!["the database does not answer"],
    };
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": missing.is_empty(), "missing": missing })))
}
