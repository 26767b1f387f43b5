//! A leaver's instances become somebody else's.

use std::collections::BTreeSet;

use serde_json::json;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, UserId};
use tianqi_common::name::INSTANCE_NAME_MAX;

use super::store;
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::db::{DbError, Tx};

/// An account that has or gets instances.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Which.
    pub id: UserId,
    /// Its name, for history and audit.
    pub name: &'a str,
}

/// Moves every live instance of `from` to `to`, also those that are being deleted, and returns which.
/// A name that `to` has already gets a number behind it. The caller has locked both accounts, checked
/// that `doer` may, and sends the events once the transaction is committed.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn hand_over(
    tx: &mut Tx,
    doer: &Doer,
    from: Owner<'_>,
    to: Owner<'_>,
    now: UnixMillis,
) -> Result<Vec<InstanceId>, DbError> {
    let mut taken: BTreeSet<String> =
        store::live_of(tx, to.id).await?.into_iter().map(|it| it.1).collect();
    let mut moved = Vec::new();
    for (id, old) in store::live_of(tx, from.id).await? {
        let name = free_name(&old, &taken);
        store::give(tx, id, to.id, &name, now).await?;
        let renamed = if name == old { String::new() } else { format!("; it was named {old}") };
        let message =
            format!("{} handed it over from {} to {}{renamed}", doer.name, from.name, to.name);
        store::note(tx, id, now, "handed_over", &message).await?;
        let entry = Entry {
            doer,
            action: "instances:hand_over",
            target_kind: "instance",
            target_id: id.to_string(),
            outcome: Outcome::Done,
            detail: json!({
                "from": from.id, "from_name": from.name, "to": to.id, "to_name": to.name,
                "name": name, "old_name": old,
            }),
        };
        audit::record(tx, now, &entry).await?;
        taken.insert(name);
        moved.push(id);
    }
    Ok(moved)
}

/// Returns `name`, or with `-2`, `-3` … behind it when it is taken; a long name is cut for it.
fn free_name(name: &str, taken: &BTreeSet<String>) -> String {
    if !taken.contains(name) {
        return name.to_owned();
    }
    let numbered = |number: u32| {
        let suffix = format!("-{number}");
        let kept: String = name.chars().take(INSTANCE_NAME_MAX - suffix.len()).collect();
        format!("{kept}{suffix}")
    };
    // There are more numbers than instances, so one is free.
    (2..u32::MAX).map(numbered).find(|name| !taken.contains(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_the_first_free_number_and_stays_short_enough() {
        let taken = ["a", "b", "b-2"].map(str::to_owned).into();

        assert_eq!(free_name("c", &taken), "c");
        assert_eq!(free_name("a", &taken), "a-2");
        assert_eq!(free_name("b", &taken), "b-3");
        let long = "x".repeat(INSTANCE_NAME_MAX);
        let cut = free_name(&long, &BTreeSet::from([long.clone()]));
        assert_eq!((cut.len(), cut.ends_with("x-2")), (INSTANCE_NAME_MAX, true));
    }
}
