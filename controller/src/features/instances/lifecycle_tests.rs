//! The state machine: a table of what must be, and what must hold for any history.

use proptest::prelude::*;
use tianqi_common::wire::desired::RestartPolicy;
use tianqi_common::wire::observed::{ContainerState, STOPPED_BY_WATCHDOG};

use super::lifecycle::Desired::{Deleted, Running as Run, Stopped};
use super::lifecycle::Phase::{
    Creating, Deleting, Exited, Failed, Pending, Running, Stopping, Unknown,
};
use super::lifecycle::{Desired, Event, Next, Phase, Seen, State, next};

fn states() -> Vec<State> {
    let all = Desired::ALL.iter().flat_map(|desired| {
        Phase::ALL.iter().map(move |phase| State { desired: *desired, phase: *phase })
    });
    all.filter(|state| state.is_consistent()).collect()
}

fn exited(code: i64, message: &str) -> ContainerState {
    ContainerState::Exited { code, out_of_memory: false, message: message.into() }
}

fn failed(retrying: bool) -> ContainerState {
    ContainerState::Failed { message: "no such file".into(), retrying }
}

fn after(
    desired: Desired,
    phase: Phase,
    container: &ContainerState,
    acted: bool,
) -> (Desired, Phase) {
    with_policy(desired, phase, container, acted, RestartPolicy::Never)
}

fn with_policy(
    desired: Desired,
    phase: Phase,
    container: &ContainerState,
    acted: bool,
    policy: RestartPolicy,
) -> (Desired, Phase) {
    let state = State { desired, phase };
    let seen = Seen { container, acted, policy };
    match next(state, Event::Observed(&seen)) {
        Next::Same => (desired, phase),
        Next::To(state) => (state.desired, state.phase),
        other @ (Next::Gone | Next::Refused) => panic!("{other:?}"),
    }
}

#[test]
fn requests_lead_where_the_table_says() {
    let to = |desired, phase| Next::To(State { desired, phase });
    let table = [
        (Run, Pending, Event::Placed, to(Run, Creating)),
        (Stopped, Exited, Event::Placed, Next::Refused),
        (Stopped, Exited, Event::StartRequested, to(Run, Pending)),
        (Stopped, Failed, Event::StartRequested, to(Run, Pending)),
        (Run, Running, Event::StartRequested, Next::Refused),
        (Stopped, Unknown, Event::StartRequested, Next::Refused),
        (Run, Pending, Event::StopRequested, to(Stopped, Exited)),
        (Run, Creating, Event::StopRequested, to(Stopped, Stopping)),
        (Run, Running, Event::StopRequested, to(Stopped, Stopping)),
        (Run, Unknown, Event::StopRequested, to(Stopped, Unknown)),
        (Stopped, Stopping, Event::StopRequested, Next::Refused),
        (Stopped, Exited, Event::StopRequested, Next::Refused),
        (Run, Running, Event::RestartRequested, to(Run, Creating)),
        (Stopped, Exited, Event::RestartRequested, to(Run, Pending)),
        (Run, Pending, Event::RestartRequested, Next::Refused),
        (Run, Running, Event::DeleteRequested, to(Deleted, Deleting)),
        (Deleted, Deleting, Event::DeleteRequested, Next::Same),
        (Deleted, Deleting, Event::Removed, Next::Gone),
        (Run, Running, Event::Removed, Next::Same),
        (Run, Running, Event::NodeLost, to(Run, Unknown)),
        (Run, Pending, Event::NodeLost, Next::Same),
        (Stopped, Exited, Event::NodeLost, Next::Same),
        (Deleted, Deleting, Event::NodeLost, Next::Same),
        (Run, Running, Event::NodeRemoved, to(Stopped, Failed)),
        (Deleted, Deleting, Event::NodeRemoved, Next::Gone),
        (Run, Creating, Event::PullFailed, to(Stopped, Failed)),
        (Run, Running, Event::PullFailed, Next::Same),
        (Run, Pending, Event::NothingFits, to(Stopped, Failed)),
        (Run, Exited, Event::EndConfirmed, to(Stopped, Exited)),
        (Run, Running, Event::EndConfirmed, Next::Same),
        (Stopped, Exited, Event::EndConfirmed, Next::Same),
        (Run, Creating, Event::GaveUp, to(Stopped, Failed)),
        (Run, Running, Event::GaveUp, Next::Same),
        (Run, Exited, Event::StartRequested, to(Run, Creating)),
        (Run, Exited, Event::StopRequested, to(Stopped, Stopping)),
        (Run, Exited, Event::NodeLost, to(Run, Unknown)),
    ];

    for (desired, phase, event, expected) in table {
        let found = next(State { desired, phase }, event);
        assert_eq!(found, expected, "{desired:?} {phase:?} {event:?}");
    }
}

#[test]
fn what_should_run_follows_the_container_once_the_agent_has_acted() {
    let table = [
        (ContainerState::ImageMissing, (Run, Creating)),
        (ContainerState::Creating, (Run, Creating)),
        (ContainerState::Running, (Run, Running)),
        (exited(0, ""), (Run, Exited)),
        (failed(true), (Run, Creating)),
        (failed(false), (Stopped, Failed)),
        (ContainerState::Absent, (Run, Creating)),
        (ContainerState::Unknown, (Run, Unknown)),
    ];

    for (container, expected) in table {
        for phase in [Creating, Running, Unknown] {
            assert_eq!(after(Run, phase, &container, true), expected, "{phase:?} {container:?}");
        }
    }
}

#[test]
fn an_old_report_never_ends_what_was_just_started() {
    for container in [ContainerState::Absent, ContainerState::Running, exited(1, ""), failed(false)]
    {
        assert_eq!(after(Run, Creating, &container, false), (Run, Creating));
    }
}

#[test]
fn what_should_stand_still_releases_only_after_the_agent_has_acted() {
    assert_eq!(after(Stopped, Stopping, &exited(0, ""), false), (Stopped, Stopping));
    assert_eq!(after(Stopped, Stopping, &exited(0, ""), true), (Stopped, Exited));
    assert_eq!(after(Stopped, Stopping, &ContainerState::Absent, true), (Stopped, Exited));
    assert_eq!(after(Stopped, Exited, &ContainerState::Running, true), (Stopped, Stopping));
    assert_eq!(after(Stopped, Failed, &ContainerState::Absent, true), (Stopped, Failed));
    assert_eq!(after(Stopped, Unknown, &exited(0, ""), true), (Stopped, Exited));
}

#[test]
fn a_restart_by_policy_keeps_the_instance_wanted_and_the_watchdogs_stop_holds() {
    let always = RestartPolicy::Always;
    let on_failure = RestartPolicy::OnFailure;

    assert_eq!(with_policy(Run, Running, &exited(0, ""), true, always), (Run, Creating));
    assert_eq!(with_policy(Run, Running, &exited(0, ""), true, on_failure), (Run, Exited));
    assert_eq!(with_policy(Run, Running, &exited(1, ""), true, on_failure), (Run, Creating));
    let watchdog = exited(137, STOPPED_BY_WATCHDOG);
    assert_eq!(with_policy(Run, Running, &watchdog, true, always), (Run, Exited));
}

#[test]
fn every_state_says_what_is_possible_and_deleting_says_nothing() {
    for state in states() {
        let possible = state.possible();
        assert_eq!(possible.contains(&"delete"), state.desired != Deleted, "{state:?}");
        let is_still = matches!(state.phase, Exited | Failed);
        assert_eq!(possible.contains(&"start"), is_still, "{state:?}");
    }
}

/// An event without borrowed parts, for histories.
#[derive(Clone, Debug)]
enum Happening {
    Plain(u8),
    Seen(ContainerState, bool, RestartPolicy),
}

fn happening() -> impl Strategy<Value = Happening> {
    let container = prop_oneof![
        Just(ContainerState::Absent),
        Just(ContainerState::ImageMissing),
        Just(ContainerState::Creating),
        Just(ContainerState::Running),
        Just(ContainerState::Stopping),
        Just(ContainerState::Unknown),
        (0_i64..3).prop_map(|code| exited(code, "")),
        any::<bool>().prop_map(failed),
    ];
    let policy = prop_oneof![
        Just(RestartPolicy::Never),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::Always)
    ];
    prop_oneof![
        (0_u8..12).prop_map(Happening::Plain),
        (container, any::<bool>(), policy)
            .prop_map(|(container, acted, policy)| Happening::Seen(container, acted, policy)),
    ]
}

fn apply(state: State, happening: &Happening) -> Next {
    match happening {
        Happening::Seen(container, acted, policy) => {
            next(state, Event::Observed(&Seen { container, acted: *acted, policy: *policy }))
        }
        Happening::Plain(n) => {
            let events = [
                Event::Placed,
                Event::StartRequested,
                Event::StopRequested,
                Event::RestartRequested,
                Event::DeleteRequested,
                Event::PullFailed,
                Event::NothingFits,
                Event::NodeLost,
                Event::NodeRemoved,
                Event::Removed,
                Event::EndConfirmed,
                Event::GaveUp,
            ];
            next(state, events[usize::from(*n)])
        }
    }
}

proptest! {
    #[test]
    fn any_history_keeps_the_states_consistent(history in prop::collection::vec(happening(), 0..60)) {
        let mut state = State { desired: Run, phase: Pending };
        for happening in &history {
            match apply(state, happening) {
                Next::To(to) => {
                    prop_assert!(to.is_consistent(), "{state:?} {happening:?} -> {to:?}");
                    // Nothing leaves deletion but being gone.
                    prop_assert!(state.desired != Deleted, "{happening:?} woke what is being deleted");
                    // Silence frees nothing.
                    if to.phase == Unknown {
                        prop_assert!(state.keeps_capacity() && to.keeps_capacity());
                    }
                    // Capacity is gained by a placement alone, or by a container that should stand still and does not.
                    if !state.keeps_capacity() && to.runs_on_node() {
                        prop_assert!(matches!(happening, Happening::Plain(0)), "{state:?} {happening:?}");
                    }
                    state = to;
                }
                Next::Gone => {
                    prop_assert_eq!(state.desired, Deleted);
                    return Ok(());
                }
                Next::Same | Next::Refused => {}
            }
        }
    }

    #[test]
    fn a_step_that_was_taken_is_not_taken_twice(history in prop::collection::vec(happening(), 1..20)) {
        // Reports repeat: the second of two equal ones must change nothing.
        let mut state = State { desired: Run, phase: Pending };
        for happening in &history {
            if let Next::To(to) = apply(state, happening) {
                state = to;
            }
            if let Happening::Seen(..) = happening {
                prop_assert_eq!(apply(state, happening), Next::Same);
            }
        }
    }
}
