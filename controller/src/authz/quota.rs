//! What an account may have at most: its own quota laid over that of its role.
//!
//! Reading stands here and not in the room `quotas`, which writes the rows: the transaction that
//! creates an instance needs it, rooms do not import rooms, and how much somebody may have is part of
//! what they may do.

use tianqi_common::id::UserId;
use tianqi_scheduler::quota::{Each, Limits, Setting, Settings};
use uuid::Uuid;

use crate::core::db::{Db, DbError, Source, Tx, args, row};

/// An account and what it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// Its role's name.
    pub role: String,
    /// The most that it may have.
    pub limits: Limits,
}

row! {
    /// A row of `quotas`, without the times.
    #[derive(Debug)]
    pub struct QuotaRow {
        pub(crate) user_id: Option<Uuid>,
        pub(crate) instances: Option<i64>,
        pub(crate) gpus: Option<i64>,
        pub(crate) gpu_memory_mib: Option<i64>,
        pub(crate) cpu_millicores: Option<i64>,
        pub(crate) memory_mib: Option<i64>,
        pub(crate) disk_gib: Option<i64>,
    }
}

row! {
    struct HolderRow { name: String, role: String }
}

/// What stands in a column for "no limit".
const UNLIMITED: i64 = -1;

/// Reads a column of `quotas`.
#[must_use]
pub fn setting(stored: Option<i64>) -> Option<Setting> {
    stored.map(|stored| u64::try_from(stored).map_or(Setting::Unlimited, Setting::AtMost))
}

/// Returns what is stored of a setting; a limit that no column holds is none.
#[must_use]
pub fn stored(setting: Option<Setting>) -> Option<i64> {
    setting.map(|setting| match setting {
        Setting::Unlimited => UNLIMITED,
        Setting::AtMost(limit) => i64::try_from(limit).unwrap_or(UNLIMITED),
    })
}

impl QuotaRow {
    /// Returns what the row says.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Each {
            instances: setting(self.instances),
            gpus: setting(self.gpus),
            gpu_memory_mib: setting(self.gpu_memory_mib),
            cpu_millicores: setting(self.cpu_millicores),
            memory_mib: setting(self.memory_mib),
            disk_gib: setting(self.disk_gib),
        }
    }
}

/// Returns the account and what it may have, and keeps everybody else from counting for it until the
/// transaction ends. It is the first statement of a transaction that takes something: a login or a
/// request of the same account waits here, and what comes after (nodes, then instances) is locked in
/// the same order everywhere.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn lock(tx: &mut Tx, account: UserId) -> Result<Option<Holder>, DbError> {
    let sql = "select name, role from users where id = $1 for update";
    let row: Option<HolderRow> = tx.first(sql, args![account]).await?;
    let Some(HolderRow { name, role }) = row else { return Ok(None) };
    let limits = limits(tx, account, &role).await?;
    Ok(Some(Holder { name, role, limits }))
}

/// Returns the account and what it may have.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn holder(db: &Db, account: UserId) -> Result<Option<Holder>, DbError> {
    let sql = "select name, role from users where id = $1";
    let row: Option<HolderRow> = db.first(sql, args![account]).await?;
    let Some(HolderRow { name, role }) = row else { return Ok(None) };
    let limits = limits(db, account, &role).await?;
    Ok(Some(Holder { name, role, limits }))
}

/// Returns what applies to an account of `role`.
async fn limits(mut from: impl Source, account: UserId, role: &str) -> Result<Limits, DbError> {
    const SQL: &str = "select user_id, instances, gpus, gpu_memory_mib, cpu_millicores, memory_mib, \
         disk_gib from quotas where user_id = $1 or role = $2";
    let rows: Vec<QuotaRow> = from.all(SQL, args![account, role]).await?;
    let of = |is_own: bool| rows.iter().find(|row| row.user_id.is_some() == is_own);
    let settings = |is_own| of(is_own).map(QuotaRow::settings).unwrap_or_default();
    Ok(settings(true).over(&settings(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_survives_being_stored_and_read() {
        for setting_ in
            [None, Some(Setting::Unlimited), Some(Setting::AtMost(0)), Some(Setting::AtMost(7))]
        {
            assert_eq!(setting(stored(setting_)), setting_);
        }
        assert_eq!(setting(stored(Some(Setting::AtMost(u64::MAX)))), Some(Setting::Unlimited));
    }
}
