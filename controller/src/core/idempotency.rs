//! `Idempotency-Key`: a create that is sent again gives the first resource again.
//!
//! A client that lost an answer may send the same request with the same key: nothing is made twice.
//! The key is claimed in the transaction that makes the resource, so neither stands alone, and two
//! requests at once wait for each other.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::db::{Db, DbError, Engine, Tx, args, row};
use super::error::{Problem, Result};
use super::http::{self, Body};
use super::seal::Seal;

/// The header's name.
pub const HEADER: &str = "idempotency-key";
/// How long a key is remembered.
pub const KEPT: Duration = Duration::from_hours(24);
/// Longest key, in characters.
const KEY_MAX: usize = 128;

/// A JSON body, with the key that came with it.
#[derive(Debug)]
pub struct Keyed<T> {
    /// The body.
    pub body: T,
    /// The key, if one came.
    pub key: Option<RequestKey>,
}

/// A client's key and the request that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    key: String,
    hash: Vec<u8>,
}

/// What a key says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It was not done before: make the resource with the id given to [`claim`].
    First,
    /// It was done before and made the resource with this id: answer with that.
    Again(Uuid),
}

impl<S, T> FromRequest<S> for Keyed<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
    Arc<Seal>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let header = parts.headers.get(HEADER).map(|value| value.to_str().unwrap_or_default());
        let key = header.map(check_key).transpose()?;
        let whole = Request::from_parts(parts.clone(), body);
        let bytes = Bytes::from_request(whole, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                http::too_large()
            } else {
                Problem::bad_request("bad_body", rejection.body_text())
            }
        })?;
        let key = key.map(|key| RequestKey {
            key,
            // A body may hold a password, which a plain hash would let others try out.
            hash: Arc::<Seal>::from_ref(state).mark(&request_text(
                parts.method.as_str(),
                parts.uri.path(),
                &bytes,
            )),
        });
        let request = Request::from_parts(parts, axum::body::Body::from(bytes));
        let Body(body) = Body::from_request(request, state).await?;
        Ok(Self { body, key })
    }
}

fn check_key(text: &str) -> Result<String> {
    let is_fine = (1..=KEY_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if is_fine {
        return Ok(text.to_owned());
    }
    let detail = format!("Idempotency-Key is 1 to {KEY_MAX} visible ASCII characters");
    Err(Problem::bad_request("bad_idempotency_key", detail))
}

/// The path is part of the request, so that a key used for an image cannot answer for a spec.
fn request_text(method: &str, path: &str, body: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([method.as_bytes(), b"\0", path.as_bytes(), b"\0", body].concat())
}

row! {
    struct KeyRow { body_hash: Vec<u8>, resource_id: Uuid }
}

/// Claims `key` for the resource `id` that is about to be made in `tx`; without a key every request
/// is the first.
///
/// # Errors
///
/// `idempotency_key_reused` (409) when the key was used for another request.
pub async fn claim(
    tx: &mut Tx,
    user: UserId,
    key: Option<&RequestKey>,
    id: Uuid,
    now: UnixMillis,
) -> Result<Claim> {
    let Some(RequestKey { key, hash }) = key else { return Ok(Claim::First) };
    const FORGET: &str = "delete from idempotency_keys \
         where user_id = $1 and request_key = $2 and created_at < $3";
    tx.run(FORGET, args![user, key, oldest_kept(now)]).await?;
    // A second request waits here for the first one's transaction to end.
    let insert = match tx.engine() {
        Engine::Sqlite | Engine::Postgres => {
            "insert into idempotency_keys (user_id, request_key, body_hash, resource_id, \
             created_at) values ($1, $2, $3, $4, $5) on conflict do nothing"
        }
        Engine::MySql => {
            "insert ignore into idempotency_keys (user_id, request_key, body_hash, resource_id, \
             created_at) values ($1, $2, $3, $4, $5)"
        }
    };
    tx.run(insert, args![user, key, hash.clone(), id, now]).await?;
    const FIND: &str = "select body_hash, resource_id from idempotency_keys \
         where user_id = $1 and request_key = $2";
    match tx.first::<KeyRow>(FIND, args![user, key]).await? {
        Some(row) if row.resource_id == id => Ok(Claim::First),
        Some(row) if row.body_hash == *hash => Ok(Claim::Again(row.resource_id)),
        _ => {
            let detail = "this Idempotency-Key was used for another request; take a new one";
            Err(Problem::conflict("idempotency_key_reused", detail))
        }
    }
}

/// The answer when the resource that a repeated request made is gone by now.
#[must_use]
pub fn made_and_gone() -> Problem {
    let detail = "this request was done before and what it made is deleted; take a new Idempotency-Key to make another";
    Problem::conflict("idempotency_key_used", detail)
}

/// Forgets keys that are older than [`KEPT`] and returns how many; a timer calls it.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn forget_old(db: &Db, now: UnixMillis) -> Result<u64, DbError> {
    db.run("delete from idempotency_keys where created_at < $1", args![oldest_kept(now)]).await
}

fn oldest_kept(now: UnixMillis) -> i64 {
    now.0.saturating_sub(i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::db::testing;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn key(body: &str) -> RequestKey {
        RequestKey {
            key: "k".to_owned(),
            hash: request_text("POST", "/x", body.as_bytes()).to_vec(),
        }
    }

    async fn claimed(
        db: &Db,
        user: UserId,
        body: &str,
        id: Uuid,
        now: UnixMillis,
    ) -> Result<Claim> {
        let mut tx = db.begin().await?;
        let claim = claim(&mut tx, user, Some(&key(body)), id, now).await?;
        tx.commit().await?;
        Ok(claim)
    }

    #[tokio::test]
    async fn the_same_request_gives_the_first_resource_and_another_body_is_refused() {
        for db in testing::databases().await {
            let (user, first, second) = (UserId::new(), Uuid::now_v7(), Uuid::now_v7());

            assert_eq!(claimed(&db, user, "a", first, NOW).await.unwrap(), Claim::First);
            assert_eq!(claimed(&db, user, "a", second, NOW).await.unwrap(), Claim::Again(first));
            assert_eq!(claimed(&db, user, "b", second, NOW).await.unwrap_err().status, 409);
            let other = claimed(&db, UserId::new(), "b", second, NOW).await.unwrap();
            assert_eq!(other, Claim::First, "another account's key got in the way");
        }
    }

    #[tokio::test]
    async fn a_key_is_forgotten_after_a_day_and_when_the_creation_failed() {
        for db in testing::databases().await {
            let (user, first, second) = (UserId::new(), Uuid::now_v7(), Uuid::now_v7());
            let mut tx = db.begin().await.unwrap();
            claim(&mut tx, user, Some(&key("a")), first, NOW).await.unwrap();
            drop(tx);
            assert_eq!(claimed(&db, user, "b", second, NOW).await.unwrap(), Claim::First);

            let later = NOW.plus(KEPT + Duration::from_millis(1));
            assert_eq!(claimed(&db, user, "a", first, later).await.unwrap(), Claim::First);
            assert_eq!(forget_old(&db, later.plus(KEPT * 2)).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn of_many_equal_requests_at_once_one_is_the_first() {
        for db in testing::databases().await {
            let user = UserId::new();
            let all = (0..8).map(|_| claimed(&db, user, "a", Uuid::now_v7(), NOW));

            let claims = futures_util::future::join_all(all).await;

            let firsts = claims.iter().filter(|claim| matches!(claim, Ok(Claim::First))).count();
            assert_eq!(firsts, 1, "{claims:?}");
            assert!(claims.iter().all(Result::is_ok), "{claims:?}");
        }
    }

    #[test]
    fn keys_with_spaces_or_over_their_length_are_refused() {
        assert!(check_key("0197-ab_c").is_ok());
        for bad in ["", "a b", "训练", &"k".repeat(KEY_MAX + 1)] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }
}
