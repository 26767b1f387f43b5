//! What every request goes through: an id, a size limit, and problems as JSON.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::error::{Problem, ProblemBody};

/// Most bytes of a request body.
pub const BODY_LIMIT: usize = 1 << 20;

/// Most bytes of a refused body that are read and thrown away. A connection that is closed while
/// its peer still sends is reset, and the peer would never read why it was refused.
const DISCARD_LIMIT: usize = 16 << 20;

/// Longest time that is spent on that.
const DISCARD_TIME: Duration = Duration::from_secs(10);

const REQUEST_ID: &str = "x-request-id";

/// Headers of every answer; a page that needs more says so itself.
const SAFETY: [(HeaderName, &str); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::CACHE_CONTROL, "no-store"),
];

/// What is known of a request before anybody is logged in.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// Made here, sent back in `x-request-id` and in problems, written to log and audit.
    pub id: String,
    /// The client, seen through trusted proxies alone.
    pub remote: IpAddr,
}

/// Addresses whose `x-forwarded-for` is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Vec<IpAddr>);

impl TrustedProxies {
    /// Returns the nearest address that is not a trusted proxy.
    fn client(&self, peer: IpAddr, forwarded: Option<&str>) -> IpAddr {
        if !self.0.contains(&peer) {
            return peer;
        }
        let hops =
            forwarded.unwrap_or_default().rsplit(',').map_while(|hop| hop.trim().parse().ok());
        let mut last = peer;
        for hop in hops {
            last = hop;
            if !self.0.contains(&hop) {
                break;
            }
        }
        last
    }
}

/// Gives the request its [`RequestInfo`] and turns a [`Problem`] into its JSON.
pub async fn frame_request(
    State(proxies): State<TrustedProxies>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = Uuid::now_v7().to_string();
    let peer = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::from([127, 0, 0, 1]), |info| info.0.ip());
    let forwarded = request.headers().get("x-forwarded-for").and_then(|v| v.to_str().ok());
    let remote = proxies.client(peer.to_canonical(), forwarded);
    request.extensions_mut().insert(RequestInfo { id: id.clone(), remote });

    let mut response = if says_too_large(&request) {
        discard(request).await;
        too_large().into_response()
    } else {
        next.run(request).await
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = render(&problem, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    for (name, value) in SAFETY {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
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
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (problem.status, kind, Json(body)).into_response()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_proxies_alone() {
        let (proxy, client, forged): (IpAddr, IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "1.2.3.4".parse().unwrap(), "9.9.9.9".parse().unwrap());
        let trusted = TrustedProxies(vec![proxy]);

        assert_eq!(trusted.client(client, Some("9.9.9.9")), client);
        assert_eq!(trusted.client(proxy, Some("9.9.9.9, 1.2.3.4")), client);
        assert_eq!(trusted.client(proxy, Some("9.9.9.9")), forged);
        assert_eq!(trusted.client(proxy, None), proxy);
    }
}
