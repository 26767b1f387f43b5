//! API tokens: what people make for their programs. A token does some of what its account may, until
//! it expires; at each use it is looked at again what that is.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use crate::core::db::{Db, DbError, Tx, args, row};
use crate::core::page::Paging;
use crate::core::secret::{Secret, token_hash};

/// What every API token begins with, so that people and scanners recognise one that leaked.
pub const PREFIX: &str = "tianqi_";

/// An API token without the token itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken {
    /// Which.
    pub id: Uuid,
    /// Whose.
    pub user: UserId,
    /// Its name, unique among its account's.
    pub name: String,
    /// What it may do at most.
    pub permissions: Vec<String>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// When it was used last, to the minute; nothing when it never was.
    pub last_used_at: Option<UnixMillis>,
    /// From where it was used last; empty when it never was.
    pub last_used_address: String,
}

row! {
    struct TokenRow {
        id: Uuid,
        user_id: Uuid,
        name: String,
        permissions: String,
        created_at: i64,
        expires_at: i64,
        last_used_at: Option<i64>,
        last_used_address: String,
    }
}

const COLUMNS: &str =
    "id, user_id, name, permissions, created_at, expires_at, last_used_at, last_used_address";

impl TryFrom<TokenRow> for ApiToken {
    type Error = DbError;

    fn try_from(row: TokenRow) -> Result<Self, DbError> {
        Ok(Self {
            id: row.id,
            user: UserId(row.user_id),
            name: row.name,
            permissions: permissions(&row.permissions)?,
            created_at: UnixMillis(row.created_at),
            expires_at: UnixMillis(row.expires_at),
            last_used_at: row.last_used_at.map(UnixMillis),
            last_used_address: row.last_used_address,
        })
    }
}

/// Reads the stored list of permissions.
///
/// # Errors
///
/// [`DbError::Corrupt`] when it is no list.
pub(super) fn permissions(stored: &str) -> Result<Vec<String>, DbError> {
    serde_json::from_str(stored).map_err(|error| DbError::Corrupt {
        column: "api_tokens.permissions",
        problem: error.to_string(),
    })
}

/// Makes a token: 32 random bytes behind [`PREFIX`].
#[must_use]
pub fn random() -> Secret {
    let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
    rand::rng().fill_bytes(bytes.as_mut());
    Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

/// Writes a new token; its hash is stored.
///
/// # Errors
///
/// [`DbError::Duplicate`] when the account has one of this name.
pub async fn insert(tx: &mut Tx, it: &ApiToken, token: &Secret) -> Result<(), DbError> {
    const SQL: &str = "insert into api_tokens (id, user_id, name, token_hash, permissions, \
         created_at, expires_at, last_used_at, last_used_address) \
         values ($1, $2, $3, $4, $5, $6, $7, null, '')";
    // A list of texts always serialises.
    let permissions = serde_json::to_string(&it.permissions).unwrap_or_default();
    let hash = token_hash(token.expose());
    let name = it.name.as_str();
    let values = args![it.id, it.user, name, hash, permissions, it.created_at, it.expires_at];
    tx.run(SQL, values).await.map(|_| ())
}

/// Returns how many tokens of `user` have not expired. The account's row is locked until the
/// transaction ends, so that two who count at once do not both add the last one.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn count(tx: &mut Tx, user: UserId, now: UnixMillis) -> Result<i64, DbError> {
    tx.first::<IdRow>("select id from users where id = $1 for update", args![user]).await?;
    let sql = "select count(*) from api_tokens where user_id = $1 and expires_at > $2";
    tx.number(sql, args![user, now]).await
}

row! {
    struct IdRow { #[allow(dead_code, reason = "read to lock the row")] id: Uuid }
}

/// Returns one page of an account's tokens, expired ones too until they are forgotten.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn page(db: &Db, user: UserId, paging: &Paging) -> Result<(Vec<ApiToken>, i64), DbError> {
    let count = "select count(*) from api_tokens where user_id = $1";
    let total = db.number(count, args![user]).await?;
    let sql = format!("select {COLUMNS} from api_tokens where user_id = $1{}", paging.sql());
    let rows: Vec<TokenRow> = db.all(&sql, args![user]).await?;
    let tokens: Result<_, _> = rows.into_iter().map(ApiToken::try_from).collect();
    Ok((tokens?, total))
}

/// Withdraws one token of `user` and returns its name; nothing when there is none.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn withdraw(tx: &mut Tx, user: UserId, id: Uuid) -> Result<Option<String>, DbError> {
    let sql = format!("select {COLUMNS} from api_tokens where id = $1 and user_id = $2");
    let row: Option<TokenRow> = tx.first(&sql, args![id, user]).await?;
    let Some(row) = row else { return Ok(None) };
    tx.run("delete from api_tokens where id = $1", args![id]).await?;
    Ok(Some(row.name))
}

/// Withdraws every token of `user` and returns how many.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn withdraw_all(tx: &mut Tx, user: UserId) -> Result<u64, DbError> {
    tx.run("delete from api_tokens where user_id = $1", args![user]).await
}

/// How long an expired token is still listed, so that its owner sees why a program stopped.
const LISTED_AFTER_END_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// Removes tokens that expired long ago and returns how many; a timer calls it.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn forget_expired(db: &Db, now: UnixMillis) -> Result<u64, DbError> {
    let before = now.0.saturating_sub(LISTED_AFTER_END_MS);
    db.run("delete from api_tokens where expires_at <= $1", args![before]).await
}
