//! What every request goes through: an id, limits of size, time and rate, and problems as JSON.

pub mod proxy;
pub mod rate;
pub mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tianqi_common::clock::SharedClock;
use uuid::Uuid;

use self::proxy::{TrustedProxies, counted_as};
use self::rate::Limiter;
use self::server::OverTls;
use super::error::{Problem, ProblemBody};
use super::seal::Seal;

/// Most bytes of a request body.
pub const BODY_LIMIT: usize = 1 << 20;
/// Most bytes of a path with its query.
const TARGET_LIMIT: usize = 8 << 10;
/// Most bytes of a request's headers, names and values. Most headers are 100, which hyper keeps.
const HEADERS_LIMIT: usize = 16 << 10;

/// Most bytes of a refused body that are read and thrown away. A connection that is closed while
/// its peer still sends is reset, and the peer would never read why it was refused.
const DISCARD_LIMIT: usize = 16 << 20;

/// Longest time that is spent on that.
const DISCARD_TIME: Duration = Duration::from_secs(10);

const REQUEST_ID: &str = "x-request-id";
/// The path that is never limited: who watches over the process must not be turned away.
const ALIVE: &str = "/healthz";

/// Headers of every answer; a page that needs more says so itself.
const SAFETY: [(HeaderName, &str); 8] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (
        HeaderName::from_static("permissions-policy"),
        "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), hid=(), \
         microphone=(), midi=(), payment=(), serial=(), usb=()",
    ),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Sent to who comes by TLS: for a year, this name is reached by TLS alone.
const ONLY_TLS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// What is known of a request before anybody is logged in.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// Made here, sent back in `x-request-id` and in problems, written to log and audit.
    pub id: String,
    /// The client, seen through trusted proxies alone.
    pub remote: IpAddr,
    /// Whether the client speaks TLS, with this port or with a trusted proxy, or is meant to,
    /// because people are told an `https` address.
    pub is_secure: bool,
}

/// What [`frame_request`] goes by.
#[derive(Clone)]
pub struct Frame {
    /// Whose word is believed.
    pub proxies: TrustedProxies,
    /// Whether people are told an `https` address.
    pub is_public_secure: bool,
    /// How long a request may take until its answer begins.
    pub time: Duration,
    /// How often an address may ask.
    pub addresses: Limiter<IpAddr>,
    /// What the time is.
    pub clock: SharedClock,
    /// Held while a request is under way, so that a rotation knows when none seals with the old key.
    pub seal: Arc<Seal>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").finish_non_exhaustive()
    }
}

impl Frame {
    fn info(&self, request: &Request) -> RequestInfo {
        let peer = request
            .extensions()
            .get::<ConnectInfo<SocketAddr>>()
            .map_or(IpAddr::from([127, 0, 0, 1]), |info| info.0.ip());
        let over_tls = request.extensions().get::<OverTls>().is_some_and(|it| it.0);
        let headers = request.headers();
        let is_secure =
            over_tls || self.is_public_secure || self.proxies.says_secure(peer, headers);
        let remote = self.proxies.client(peer, headers);
        RequestInfo { id: Uuid::now_v7().to_string(), remote, is_secure }
    }

    /// Refuses what is too often or too long before anything looks at it.
    fn admit(&self, request: &Request, info: &RequestInfo) -> Result<(), Problem> {
        if request.uri().path() == ALIVE {
            return Ok(());
        }
        let taken = self.addresses.take(counted_as(info.remote), self.clock.monotonic());
        taken.map_err(|wait| too_often("this address", wait))?;
        let target = request.uri().path_and_query().map_or(0, |it| it.as_str().len());
        if target > TARGET_LIMIT {
            let detail = format!("path and query are over {TARGET_LIMIT} bytes");
            return Err(with_status(StatusCode::URI_TOO_LONG, "uri_too_long", detail));
        }
        let headers = request.headers().iter();
        let size: usize = headers.map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > HEADERS_LIMIT {
            let detail = format!("the headers are over {HEADERS_LIMIT} bytes");
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(with_status(status, "headers_too_large", detail));
        }
        Ok(())
    }

    async fn answer(&self, request: Request, info: &RequestInfo, next: Next) -> Response {
        if let Err(problem) = self.admit(&request, info) {
            return problem.into_response();
        }
        if says_too_large(&request) {
            discard(request).await;
            return too_large().into_response();
        }
        let _held = self.seal.hold();
        match tokio::time::timeout(self.time, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let seconds = self.time.as_secs();
                let detail =
                    format!("the request did not arrive, or was not answered, in {seconds} s");
                with_status(StatusCode::REQUEST_TIMEOUT, "took_too_long", detail).into_response()
            }
        }
    }
}

/// Gives the request its [`RequestInfo`] and turns a [`Problem`] into its JSON.
pub async fn frame_request(
    State(frame): State<Frame>,
    mut request: Request,
    next: Next,
) -> Response {
    let info = frame.info(&request);
    let (id, is_secure) = (info.id.clone(), info.is_secure);
    request.extensions_mut().insert(info.clone());
    name_host(&mut request);

    let mut response = frame.answer(request, &info, next).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = render(&problem, &id);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    for (name, value) in SAFETY {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if is_secure {
        headers.entry(header::STRICT_TRANSPORT_SECURITY).or_insert(ONLY_TLS);
    }
    response
}

/// Writes the host of an HTTP/2 request where HTTP/1.1 has it.
fn name_host(request: &mut Request) {
    if request.headers().contains_key(header::HOST) {
        return;
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    if let Some(host) = authority.and_then(|authority| HeaderValue::from_str(&authority).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// The answer to somebody who asks more often than they may.
#[must_use]
pub fn too_often(who: &str, wait: Duration) -> Problem {
    let seconds = u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
    let detail = format!("{who} asks too often; try again in {seconds} s");
    Problem::too_many("too_many_requests", detail)
        .with(serde_json::json!({ "retry_after_seconds": seconds }))
}

fn with_status(status: StatusCode, code: &'static str, detail: String) -> Problem {
    Problem { status, code, detail, data: None }
}

fn says_too_large(request: &Request) -> bool {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok());
    length.and_then(|it| it.parse::<u64>().ok()).is_some_and(|it| it > BODY_LIMIT as u64)
}

/// Reads a refused body to its end, within limits.
async fn discard(request: Request) {
    let mut pieces = request.into_body().into_data_stream();
    let read = async {
        let mut size = 0_usize;
        while let Some(Ok(piece)) = pieces.next().await {
            size = size.saturating_add(piece.len());
            if size > DISCARD_LIMIT {
                break;
            }
        }
    };
    // A slow sender is cut off; it learns nothing, and holds nothing.
    let _ = tokio::time::timeout(DISCARD_TIME, read).await;
}

fn render(problem: &Problem, request_id: &str) -> Response {
    let body = ProblemBody {
        kind: "about:blank",
        title: problem.status.canonical_reason().unwrap_or_default().to_owned(),
        status: problem.status.as_u16(),
        code: problem.code.to_owned(),
        detail: problem.detail.clone(),
        request_id: request_id.to_owned(),
        data: problem.data.clone(),
    };
    let mut response = (problem.status, Json(body)).into_response();
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/problem+json");
    headers.insert(header::CONTENT_TYPE, kind);
    let wait = problem.data.as_ref().and_then(|data| data.get("retry_after_seconds"));
    if let Some(seconds) = wait.and_then(serde_json::Value::as_u64) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Answers a path that does not exist.
pub async fn no_such_path() -> Problem {
    Problem::not_found("no_such_path", "there is nothing here; the API is under /api/v1")
}

/// Answers a path that exists with a method that does not.
pub async fn no_such_method() -> Problem {
    Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: "no_such_method",
        detail: "this path does not take this method; /api/v1/openapi.json says which it takes"
            .to_owned(),
        data: None,
    }
}

/// The answer to a body over [`BODY_LIMIT`].
pub(super) fn too_large() -> Problem {
    Problem {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        code: "too_large",
        detail: format!("the body is over {BODY_LIMIT} bytes"),
        data: None,
    }
}

/// A JSON body, with every way of being wrong turned into a [`Problem`].
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::bad_request(
                "not_json",
                "send the body as JSON, with content-type: application/json",
            )),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(too_large())
            }
            Err(JsonRejection::JsonDataError(error)) => {
                Err(Problem::invalid("bad_field", error.body_text()))
            }
            Err(rejection) => Err(Problem::bad_request("bad_json", rejection.body_text())),
        }
    }
}

/// Query parameters, with every way of being wrong turned into a [`Problem`].
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> axum::extract::FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &S,
    ) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::bad_request("bad_query", rejection.body_text())),
        }
    }
}

/// The last parameter of the path, an id. A grant takes the one called `id`.
#[derive(Clone, Copy, Debug)]
pub struct PathId(pub Uuid);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &S,
    ) -> Result<Self, Problem> {
        let params = axum::extract::RawPathParams::from_request_parts(parts, state).await;
        let id = params.ok().and_then(|params| params.iter().last()?.1.parse().ok());
        id.map(Self)
            .ok_or_else(|| Problem::bad_request("bad_id", "the last id in the path is not a UUID"))
    }
}
