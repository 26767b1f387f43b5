//! How many instances somebody has, of which size.

use tianqi_common::id::{InstanceId, UserId};
use uuid::Uuid;

use super::corrupt;
use crate::core::db::{DbError, Source, args, row};
use crate::features::instances::lifecycle::Desired;
use crate::features::instances::model::SpecSnapshot;

row! {
    struct AlikeRow { desired: String, spec: String, count: i64 }
}

/// Instances of one owner that are of one size and should be alike.
#[derive(Clone, Debug)]
pub struct Alike {
    /// What they should be.
    pub desired: Desired,
    /// Their size.
    pub spec: SpecSnapshot,
    /// How many there are.
    pub count: u64,
}

/// Returns the instances of `owner` that exist, without `except`, those alike together: there are few
/// sizes, however many instances there are. Of those that are gone, no name is live, so that the index
/// of the names passes them over.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn alike(
    mut from: impl Source,
    owner: UserId,
    except: Option<InstanceId>,
) -> Result<Vec<Alike>, DbError> {
    const SQL: &str = "select desired, spec, count(*) as count from instances \
         where owner_id = $1 and live_name is not null and id <> $2 group by desired, spec";
    let nobody = InstanceId(Uuid::nil());
    let rows: Vec<AlikeRow> = from.all(SQL, args![owner, except.unwrap_or(nobody)]).await?;
    rows.into_iter().map(Alike::try_from).collect()
}

impl TryFrom<AlikeRow> for Alike {
    type Error = DbError;

    fn try_from(row: AlikeRow) -> Result<Self, DbError> {
        let desired = Desired::from_word(&row.desired);
        Ok(Self {
            desired: desired.ok_or_else(|| corrupt("instances.desired", "unknown word"))?,
            spec: serde_json::from_str(&row.spec)
                .map_err(|error| corrupt("instances.spec", error))?,
            count: u64::try_from(row.count).unwrap_or(0),
        })
    }
}
