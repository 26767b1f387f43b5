//! Accounts and their credentials: the SQL of the table `users` that logging in needs.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::RoleName;
use crate::core::db::{Db, DbError, Tx, args, row};

/// An account as everybody who may read accounts sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Which.
    pub id: UserId,
    /// The name to log in with.
    pub name: String,
    /// The name people read; may be empty.
    pub display_name: String,
    /// An address for mail; may be empty.
    pub email: String,
    /// A telephone number; may be empty.
    pub phone: String,
    /// The colour that stands for a picture, such as `#1890ff`; may be empty.
    pub avatar_color: String,
    /// What it may do.
    pub role: RoleName,
    /// A disabled account cannot log in.
    pub disabled: bool,
    /// Whether somebody else set the password.
    pub must_change_password: bool,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it was changed last.
    pub updated_at: UnixMillis,
}

impl Account {
    /// A new account that says nothing of its owner yet.
    #[must_use]
    pub fn new(name: String, role: RoleName, now: UnixMillis) -> Self {
        Self {
            id: UserId::new(),
            name,
            display_name: String::new(),
            email: String::new(),
            phone: String::new(),
            avatar_color: String::new(),
            role,
            disabled: false,
            must_change_password: false,
            created_at: now,
            updated_at: now,
        }
    }
}

row! {
    /// A row of `users`.
    pub struct AccountRow {
        id: Uuid,
        name: String,
        display_name: String,
        email: String,
        phone: String,
        avatar_color: String,
        password_hash: String,
        role: String,
        disabled: bool,
        must_change_password: bool,
        created_at: i64,
        updated_at: i64,
    }
}

/// The columns of [`AccountRow`].
pub const COLUMNS: &str = "id, name, display_name, email, phone, avatar_color, password_hash, role, \
     disabled, must_change_password, created_at, updated_at";

impl AccountRow {
    /// Returns the account without its password's hash.
    #[must_use]
    pub fn account(self) -> Account {
        Account {
            id: UserId(self.id),
            name: self.name,
            display_name: self.display_name,
            email: self.email,
            phone: self.phone,
            avatar_color: self.avatar_color,
            role: RoleName::new(self.role),
            disabled: self.disabled,
            must_change_password: self.must_change_password,
            created_at: UnixMillis(self.created_at),
            updated_at: UnixMillis(self.updated_at),
        }
    }
}

/// Returns the account `id`, if there is one.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn account(db: &Db, id: UserId) -> Result<Option<Account>, DbError> {
    let sql = format!("select {COLUMNS} from users where id = $1");
    Ok(db.first::<AccountRow>(&sql, args![id]).await?.map(AccountRow::account))
}

/// Returns the account called `name` and its password's hash, if there is one.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn with_hash(db: &Db, name: &str) -> Result<Option<(Account, String)>, DbError> {
    let sql = format!("select {COLUMNS} from users where name = $1");
    let Some(row) = db.first::<AccountRow>(&sql, args![name]).await? else { return Ok(None) };
    let hash = row.password_hash.clone();
    Ok(Some((row.account(), hash)))
}

row! {
    struct StateRow { disabled: bool, updated_at: i64 }
}

/// Whether an account is as it was read, and enabled. It is locked until the transaction ends, so that
/// a password that is being reset, or an account that is being disabled, lets nobody in afterwards.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn is_unchanged(tx: &mut Tx, account: &Account) -> Result<bool, DbError> {
    let sql = "select disabled, updated_at from users where id = $1 for update";
    let row: Option<StateRow> = tx.first(sql, args![account.id]).await?;
    Ok(row.is_some_and(|row| !row.disabled && row.updated_at == account.updated_at.0))
}

/// Returns how many accounts there are.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn count(db: &Db) -> Result<i64, DbError> {
    db.number("select count(*) from users", args![]).await
}

/// Adds an account.
///
/// # Errors
///
/// [`DbError::Duplicate`] when the name is taken.
pub async fn insert(tx: &mut Tx, account: &Account, password_hash: &str) -> Result<(), DbError> {
    const SQL: &str = "insert into users (id, name, display_name, password_hash, role, disabled, \
         must_change_password, created_at, updated_at, email, phone, avatar_color) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let values = args![
        account.id,
        account.name.as_str(),
        account.display_name.as_str(),
        password_hash,
        account.role.as_str(),
        account.disabled,
        account.must_change_password,
        account.created_at,
        account.updated_at,
        account.email.as_str(),
        account.phone.as_str(),
        account.avatar_color.as_str(),
    ];
    tx.run(SQL, values).await.map(|_| ())
}

/// Sets a password's hash and says whether its owner must choose another.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn set_password(
    tx: &mut Tx,
    id: UserId,
    password_hash: &str,
    must_change: bool,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update users set password_hash = $1, must_change_password = $2, \
         updated_at = $3 where id = $4";
    tx.run(SQL, args![password_hash, must_change, now, id]).await.map(|_| ())
}

/// Stores the same password's hash with other parameters, unless the password was changed meanwhile.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn renew_hash(db: &Db, id: UserId, old: &str, new: &str) -> Result<(), DbError> {
    const SQL: &str = "update users set password_hash = $1 where id = $2 and password_hash = $3";
    db.run(SQL, args![new, id, old]).await.map(|_| ())
}
