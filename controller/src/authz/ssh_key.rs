//! SSH public keys: what people may log in with at the jumpbox instead of a password.

use russh::keys::{Algorithm, HashAlg, PublicKey};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use crate::core::db::{Db, DbError, Tx, args, row};
use crate::core::error::{Problem, Result};
use crate::core::page::Paging;

/// Longest line that is read, in bytes; an RSA key of 8192 bits takes 1.4 KiB.
const LINE_MAX: usize = 8 << 10;
/// Bits of an RSA key: fewer are weak, more cost whoever checks a signature too much.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2_048..=8_192;

/// A public key that an account may log in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    /// Which.
    pub id: Uuid,
    /// Whose.
    pub user: UserId,
    /// What its owner calls it.
    pub name: String,
    /// `SHA256:` and the hash as OpenSSH shows it; unique among the account's keys.
    pub fingerprint: String,
    /// Such as `ssh-ed25519`.
    pub algorithm: String,
    /// The key as one line, without a comment.
    pub public_key: String,
    /// When it was added.
    pub created_at: UnixMillis,
    /// When it was used last; nothing when it never was.
    pub last_used_at: Option<UnixMillis>,
    /// From where it was used last; empty when it never was.
    pub last_used_address: String,
}

/// A public key as somebody gave it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedKey {
    /// `SHA256:` and the hash as OpenSSH shows it.
    pub fingerprint: String,
    /// Such as `ssh-ed25519`.
    pub algorithm: String,
    /// The key as one line, without a comment.
    pub public_key: String,
    /// What stands behind the key on its line; may be empty.
    pub comment: String,
}

/// Reads one line of a `.pub` file or of `authorized_keys`.
///
/// # Errors
///
/// `bad_ssh_key` (422) saying what is wrong with it and what to give instead.
pub fn parse(text: &str) -> Result<ParsedKey> {
    let line = text.trim();
    let refuse =
        |detail: &str| Err(Problem::invalid("bad_ssh_key", format!("public_key: {detail}")));
    if line.contains("PRIVATE KEY") {
        return refuse("this is a private key, which nobody but you may have; give the .pub file");
    }
    if line.len() > LINE_MAX || line.contains(['\n', '\r', '\0']) {
        return refuse("give one line, as it stands in the .pub file");
    }
    let Ok(key) = PublicKey::from_openssh(line) else {
        return refuse("this is no SSH public key; give the line of the .pub file");
    };
    if let Some(problem) = problem_of(&key) {
        return refuse(&problem);
    }
    let comment = key.comment().to_string();
    let bare = PublicKey::new(key.key_data().clone(), "");
    let public_key = bare.to_openssh().map_err(|error| Problem::internal(&error))?;
    Ok(ParsedKey {
        fingerprint: fingerprint(&key),
        algorithm: key.algorithm().to_string(),
        public_key: public_key.trim().to_owned(),
        comment,
    })
}

fn problem_of(key: &PublicKey) -> Option<String> {
    let kind = key.algorithm();
    if let Some(rsa) = key.key_data().rsa() {
        let bits = rsa.key_size();
        let is_fine = RSA_BITS.contains(&bits);
        return (!is_fine).then(|| format!("an RSA key has 2048 to 8192 bits, not {bits}"));
    }
    let is_taken = matches!(
        kind,
        Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256
    );
    (!is_taken).then(|| format!("keys of the kind {kind} are not taken; make one of ed25519"))
}

/// Returns the fingerprint of a key as OpenSSH shows it.
fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

row! {
    struct KeyRow {
        id: Uuid,
        user_id: Uuid,
        name: String,
        fingerprint: String,
        algorithm: String,
        public_key: String,
        created_at: i64,
        last_used_at: Option<i64>,
        last_used_address: String,
    }
}

const COLUMNS: &str = "k.id, k.user_id, k.name, k.fingerprint, k.algorithm, k.public_key, \
     k.created_at, k.last_used_at, k.last_used_address";

impl From<KeyRow> for SshKey {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            user: UserId(row.user_id),
            name: row.name,
            fingerprint: row.fingerprint,
            algorithm: row.algorithm,
            public_key: row.public_key,
            created_at: UnixMillis(row.created_at),
            last_used_at: row.last_used_at.map(UnixMillis),
            last_used_address: row.last_used_address,
        }
    }
}

/// Returns the key of the account called `name` that has this fingerprint.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn of_account(
    db: &Db,
    name: &str,
    fingerprint: &str,
) -> Result<Option<SshKey>, DbError> {
    let sql = format!(
        "select {COLUMNS} from ssh_keys k join users u on u.id = k.user_id \
         where u.name = $1 and k.fingerprint = $2"
    );
    Ok(db.first::<KeyRow>(&sql, args![name, fingerprint]).await?.map(SshKey::from))
}

/// Notes a use.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn note_use(
    db: &Db,
    id: Uuid,
    now: UnixMillis,
    address: &str,
) -> Result<(), DbError> {
    const SQL: &str = "update ssh_keys set last_used_at = $1, last_used_address = $2 where id = $3";
    db.run(SQL, args![now, address, id]).await.map(|_| ())
}

/// Writes a new key.
///
/// # Errors
///
/// [`DbError::Duplicate`] when the account has it already.
pub async fn insert(tx: &mut Tx, it: &SshKey) -> Result<(), DbError> {
    const SQL: &str = "insert into ssh_keys (id, user_id, name, fingerprint, algorithm, \
         public_key, created_at, last_used_at, last_used_address) \
         values ($1, $2, $3, $4, $5, $6, $7, null, '')";
    let (name, fingerprint) = (it.name.as_str(), it.fingerprint.as_str());
    let (algorithm, public_key) = (it.algorithm.as_str(), it.public_key.as_str());
    let values = args![it.id, it.user, name, fingerprint, algorithm, public_key, it.created_at];
    tx.run(SQL, values).await.map(|_| ())
}

row! {
    struct IdRow { #[allow(dead_code, reason = "read to lock the row")] id: Uuid }
}

/// Returns how many keys `user` has. The account's row is locked until the transaction ends, so
/// that two who count at once do not both add the last one.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn count(tx: &mut Tx, user: UserId) -> Result<i64, DbError> {
    tx.first::<IdRow>("select id from users where id = $1 for update", args![user]).await?;
    tx.number("select count(*) from ssh_keys where user_id = $1", args![user]).await
}

/// Returns one page of an account's keys and how many there are on all pages.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn page(db: &Db, user: UserId, paging: &Paging) -> Result<(Vec<SshKey>, i64), DbError> {
    let count = "select count(*) from ssh_keys where user_id = $1";
    let total = db.number(count, args![user]).await?;
    let sql = format!("select {COLUMNS} from ssh_keys k where user_id = $1{}", paging.sql());
    let rows: Vec<KeyRow> = db.all(&sql, args![user]).await?;
    Ok((rows.into_iter().map(SshKey::from).collect(), total))
}

/// Removes one key of `user`, with the sessions that were begun by it, and returns it; nothing when
/// there is none.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn remove(tx: &mut Tx, user: UserId, id: Uuid) -> Result<Option<SshKey>, DbError> {
    let sql = format!("select {COLUMNS} from ssh_keys k where k.id = $1 and k.user_id = $2");
    let row: Option<KeyRow> = tx.first(&sql, args![id, user]).await?;
    let Some(row) = row else { return Ok(None) };
    tx.run("delete from ssh_keys where id = $1", args![id]).await?;
    Ok(Some(row.into()))
}

#[cfg(test)]
#[path = "ssh_key_tests.rs"]
mod tests;
