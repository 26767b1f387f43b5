//! SQL of the table `users`, but for what logging in needs: that is `authz::account`.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;

use super::model::UserQuery;
use crate::authz::RoleName;
use crate::authz::account::{Account, AccountRow, COLUMNS};
use crate::core::db::{Db, DbError, Filter, Tx, args, row};
use crate::core::page::Paging;

row! {
    struct IdRow { id: uuid::Uuid }
}

/// Returns one page of accounts and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &UserQuery,
    paging: &Paging,
) -> Result<(Vec<Account>, i64), DbError> {
    let (condition, args) = Filter::new()
        .contains("name", query.name.as_deref())
        .contains("display_name", query.display_name.as_deref())
        .contains("email", query.email.as_deref())
        .contains("phone", query.phone.as_deref())
        .equals("role", query.role.as_deref())
        .equals("disabled", query.disabled)
        .build();
    let total = db.number(&format!("select count(*) from users{condition}"), args.clone()).await?;
    let sql = format!("select {COLUMNS} from users{condition}{}", paging.sql());
    let rows: Vec<AccountRow> = db.all(&sql, args).await?;
    Ok((rows.into_iter().map(AccountRow::account).collect(), total))
}

/// Locks every admin who can log in, in id order, and returns who they are. It comes first in each
/// transaction that may take one away, so that two of them cannot take the last two.
pub(super) async fn lock_admins(tx: &mut Tx) -> Result<Vec<UserId>, DbError> {
    const SQL: &str =
        "select id from users where role = $1 and disabled = $2 order by id for update";
    let rows: Vec<IdRow> = tx.all(SQL, args![RoleName::ADMIN.as_str(), false]).await?;
    Ok(rows.into_iter().map(|row| UserId(row.id)).collect())
}

/// Returns one account, locked until the transaction ends.
pub(super) async fn lock(tx: &mut Tx, id: UserId) -> Result<Option<Account>, DbError> {
    let sql = format!("select {COLUMNS} from users where id = $1 for update");
    Ok(tx.first::<AccountRow>(&sql, args![id]).await?.map(AccountRow::account))
}

/// Writes what may be changed of an account.
pub(super) async fn update(tx: &mut Tx, account: &Account, now: UnixMillis) -> Result<(), DbError> {
    const SQL: &str = "update users set display_name = $1, role = $2, disabled = $3, \
         updated_at = $4, email = $5, phone = $6, avatar_color = $7 where id = $8";
    let values = args![
        account.display_name.as_str(),
        account.role.as_str(),
        account.disabled,
        now,
        account.email.as_str(),
        account.phone.as_str(),
        account.avatar_color.as_str(),
        account.id,
    ];
    tx.run(SQL, values).await.map(|_| ())
}

/// Returns two accounts, both locked until the transaction ends, in the order of their ids, so that two
/// who lock the same two do not wait for each other.
pub(super) async fn lock_both(
    tx: &mut Tx,
    one: UserId,
    other: UserId,
) -> Result<(Option<Account>, Option<Account>), DbError> {
    if one < other {
        let first = lock(tx, one).await?;
        return Ok((first, lock(tx, other).await?));
    }
    let second = lock(tx, other).await?;
    Ok((lock(tx, one).await?, second))
}

/// Returns how many instances of `owner` are not deleted.
pub(super) async fn live_instances(tx: &mut Tx, owner: UserId) -> Result<i64, DbError> {
    let sql = "select count(*) from instances where owner_id = $1 and deleted_at is null";
    tx.number(sql, args![owner]).await
}

/// Returns how many forwards `owner` has.
pub(super) async fn forwards(tx: &mut Tx, owner: UserId) -> Result<i64, DbError> {
    tx.number("select count(*) from forwards where owner_id = $1", args![owner]).await
}

/// Deletes an account; its sessions and forwards go with it.
pub(super) async fn delete(tx: &mut Tx, id: UserId) -> Result<(), DbError> {
    tx.run("delete from users where id = $1", args![id]).await.map(|_| ())
}
