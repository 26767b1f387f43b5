//! The API's description and a page that shows it without fetching anything from elsewhere.

use axum::Router;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::features::Ctx;

const PAGE: &str = include_str!("docs.html");
const SCRIPT: &str = include_str!("docs.js");
const STYLE: &str = include_str!("docs.css");
/// The page runs its own script, has its own style and asks its own server; nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn router(description: utoipa::openapi::OpenApi) -> Router<Ctx> {
    let json = description.to_json().unwrap_or_default();
    let json_type = [(CONTENT_TYPE, "application/json")];
    Router::new()
        .route("/api/v1/openapi.json", get(move || async move { (json_type, json) }))
        .route("/api/docs", get(page))
        .route("/api/docs.js", get(script))
        .route("/api/docs.css", get(style))
}

async fn page() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)], PAGE)
}

async fn script() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)
}

async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}
