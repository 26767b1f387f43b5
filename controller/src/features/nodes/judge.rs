//! Who is offline. Pure: time is an argument, measured by a clock that never goes back.
//!
//! Silence is not death. A node is judged when its agent was not heard for [`SILENCE`], unless the
//! controller has just started, or more than half of the nodes fell silent with it: then the fault
//! is more likely the controller's own, and nobody is judged for [`PATIENCE`].

use std::time::Duration;

use tianqi_common::id::NodeId;
use tianqi_common::wire::{IDLE_TIMEOUT_S, KEEP_ALIVE_S};

/// A node that was not heard for so long is offline.
pub const SILENCE: Duration = Duration::from_secs(IDLE_TIMEOUT_S);
/// The connections of one cut end up to one keep-alive apart; a verdict waits until all have.
pub const SETTLE: Duration = Duration::from_secs(KEEP_ALIVE_S);
/// How long agents have to come back after the controller's start. They try at most 30 s apart.
pub const GRACE: Duration = Duration::from_secs(60);
/// How long the controller blames itself; after it, silence is silence.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Fewer silent nodes than this are never taken for the controller's own fault.
pub const MASS_LEAST: usize = 3;

/// A node that counts as online until it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which node.
    pub node: NodeId,
    /// Since when it is silent; nothing while its agent is connected.
    pub lost: Option<Lost>,
}

/// When an agent was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// When it was last heard.
    pub heard: Duration,
    /// When its connection ended.
    pub ended: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Nodes that are offline from now on.
    pub offline: Vec<NodeId>,
    /// Nodes that would be, had not too many fallen silent at once.
    pub withheld: usize,
}

/// Judges the nodes that count as online. `started` is when the controller did.
#[must_use]
pub fn judge(standings: &[Standing], now: Duration, started: Duration) -> Judgement {
    if now.saturating_sub(started) < GRACE {
        return Judgement::default();
    }
    let lost = || standings.iter().filter_map(|it| it.lost.map(|lost| (it.node, lost)));
    let is_ripe = |lost: &Lost| {
        now.saturating_sub(lost.heard) >= SILENCE && now.saturating_sub(lost.ended) >= SETTLE
    };
    let silent = lost().count();
    let is_mass = silent >= MASS_LEAST && silent.saturating_mul(2) > standings.len();
    let mut judgement = Judgement::default();
    for (node, lost) in lost().filter(|(_, lost)| is_ripe(lost)) {
        if is_mass && now.saturating_sub(lost.ended) < PATIENCE {
            judgement.withheld += 1;
        } else {
            judgement.offline.push(node);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STARTED: Duration = Duration::from_secs(1_000);

    fn at(seconds: u64) -> Duration {
        STARTED + Duration::from_secs(seconds)
    }

    fn standing(lost: Option<(u64, u64)>) -> Standing {
        let lost = lost.map(|(heard, ended)| Lost { heard: at(heard), ended: at(ended) });
        Standing { node: NodeId::new(), lost }
    }

    /// How many of `silent` nodes lost at 100 s, beside `connected` ones, are offline and withheld.
    fn counts(silent: usize, connected: usize, now: u64) -> (usize, usize) {
        let mut all = vec![standing(Some((100, 100))); silent];
        all.extend(vec![standing(None); connected]);
        let judgement = judge(&all, at(now), STARTED);
        (judgement.offline.len(), judgement.withheld)
    }

    #[test]
    fn the_table_of_silence() {
        // silent, connected, seconds, (offline, withheld)
        let table = [
            (1, 0, 114, (0, 0)),
            (1, 0, 115, (1, 0)),
            (2, 0, 115, (2, 0)),
            (1, 9, 115, (1, 0)),
            (3, 3, 115, (3, 0)),
            (3, 2, 115, (0, 3)),
            (10, 0, 115, (0, 10)),
            (10, 0, 399, (0, 10)),
            (10, 0, 400, (10, 0)),
            (0, 5, 9_999, (0, 0)),
        ];
        for (silent, connected, now, expected) in table {
            assert_eq!(counts(silent, connected, now), expected, "{silent} {connected} {now}");
        }
    }

    #[test]
    fn nobody_is_judged_just_after_a_start() {
        let all = [standing(Some((0, 0))), standing(None), standing(None)];

        assert_eq!(judge(&all, at(59), STARTED), Judgement::default());
        assert_eq!(judge(&all, at(60), STARTED).offline, vec![all[0].node]);
    }

    #[test]
    fn a_connection_that_timed_out_was_silent_already_and_waits_for_its_neighbours_alone() {
        let all = [standing(Some((100, 115)))];

        assert!(judge(&all, at(119), STARTED).offline.is_empty());
        assert_eq!(judge(&all, at(120), STARTED).offline, vec![all[0].node]);
    }

    #[test]
    fn the_first_of_many_to_time_out_is_not_judged_before_the_others_have() {
        let all: Vec<_> = (0..10).map(|n| standing(Some((100 + n / 2, 115 + n / 2)))).collect();

        assert_eq!(judge(&all, at(120), STARTED), Judgement { offline: vec![], withheld: 2 });
    }

    proptest! {
        #[test]
        fn a_connected_node_is_never_judged_and_no_node_before_its_time(
            lost in prop::collection::vec(prop::option::of((0_u64..500, 0_u64..500)), 0..40),
            now in 0_u64..1_000,
        ) {
            let all: Vec<_> = lost.iter().map(|lost| standing(*lost)).collect();
            let judgement = judge(&all, at(now), STARTED);
            let silent = all.iter().filter(|it| it.lost.is_some()).count();

            for node in &judgement.offline {
                let lost = all.iter().find(|it| it.node == *node).unwrap().lost.unwrap();
                prop_assert!(now >= GRACE.as_secs());
                prop_assert!(at(now) >= lost.heard + SILENCE && at(now) >= lost.ended + SETTLE);
                let is_mass = silent >= MASS_LEAST && silent * 2 > all.len();
                prop_assert!(!is_mass || at(now) >= lost.ended + PATIENCE);
            }
        }

        #[test]
        fn everyone_silent_is_judged_in_the_end(
            lost in prop::collection::vec((0_u64..500, 0_u64..500), 0..40),
        ) {
            let all: Vec<_> = lost.iter().map(|lost| standing(Some(*lost))).collect();

            prop_assert_eq!(judge(&all, at(1_000), STARTED).offline.len(), all.len());
        }
    }
}
