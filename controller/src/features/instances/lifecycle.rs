//! Where an instance is in its life, and what may happen next. Pure: no clock, no IO.
//!
//! A [`State`] is what people want and what is so, together. Only the combinations of
//! [`State::is_consistent`] exist: what wants to run is queued, being made, running, just ended or
//! unknown; what wants to stand still is on its way there, there, failed or unknown; what must go
//! is going.
//!
//! A process that ends by itself is not given up at once: the agent may start it again, after a
//! reboot or an outage of its engine. Until [`Event::EndConfirmed`] it keeps what it holds.

use tianqi_common::wire::desired::RestartPolicy;
use tianqi_common::wire::observed::{ContainerState, STOPPED_BY_WATCHDOG};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize,
            serde::Deserialize, utoipa::ToSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the word stored in the database and shown in the API.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Reads that word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| it.as_str() == word)
            }
        }
    };
}

words! {
    /// Where an instance is in its life.
    Phase {
        /// In the queue: nothing fits now.
        Pending = "pending",
        /// On a node, being made, started or restarted.
        Creating = "creating",
        /// Its first process runs.
        Running = "running",
        /// On its way to standing still.
        Stopping = "stopping",
        /// It stands still, with node, disk and data.
        Exited = "exited",
        /// It could not be made or started, or its container is gone.
        Failed = "failed",
        /// On its way out, with container and data.
        Deleting = "deleting",
        /// Its node or its Docker engine does not answer.
        Unknown = "unknown",
    }
}

words! {
    /// What should be.
    Desired {
        /// It should run.
        Running = "running",
        /// It should stand still.
        Stopped = "stopped",
        /// It should go.
        Deleted = "deleted",
    }
}

/// What should be and what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What should be.
    pub desired: Desired,
    /// What is.
    pub phase: Phase,
}

/// Something that happens to an instance.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The scheduler found a place and granted it.
    Placed,
    /// Somebody asks for a start.
    StartRequested,
    /// Somebody asks for a stop.
    StopRequested,
    /// Somebody asks for a restart.
    RestartRequested,
    /// Somebody asks for its end.
    DeleteRequested,
    /// The agent reports.
    Observed(&'a Seen<'a>),
    /// The image could not be fetched.
    PullFailed,
    /// An end was reported, and some time later the agent has not started it again.
    EndConfirmed,
    /// The agent has tried in vain for too long.
    GaveUp,
    /// Nothing fits now, and the person asked to fail at once.
    NothingFits,
    /// The node has fallen silent.
    NodeLost,
    /// The node was removed from the platform.
    NodeRemoved,
    /// The agent has carried out the tombstone, and nothing is left.
    Removed,
}

/// What an agent reports of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Where the container is.
    pub container: &'a ContainerState,
    /// Whether the agent has acted on the instance's current generation.
    pub acted: bool,
    /// What the agent does when the process ends by itself.
    pub policy: RestartPolicy,
}

/// What an event leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing changes.
    Same,
    /// Another state.
    To(State),
    /// The instance is gone; so are its grants.
    Gone,
    /// The event does not apply in this state.
    Refused,
}

impl State {
    /// A state from its parts.
    #[must_use]
    pub const fn new(desired: Desired, phase: Phase) -> Self {
        Self { desired, phase }
    }

    /// Whether this combination can exist.
    #[must_use]
    pub fn is_consistent(self) -> bool {
        match self.desired {
            Desired::Running => matches!(
                self.phase,
                Phase::Pending | Phase::Creating | Phase::Running | Phase::Exited | Phase::Unknown
            ),
            Desired::Stopped => matches!(
                self.phase,
                Phase::Stopping | Phase::Exited | Phase::Failed | Phase::Unknown
            ),
            Desired::Deleted => self.phase == Phase::Deleting,
        }
    }

    /// Whether the instance keeps its CPU, memory and cards. Disk is kept until it is gone.
    #[must_use]
    pub fn keeps_capacity(self) -> bool {
        match self.phase {
            Phase::Creating
            | Phase::Running
            | Phase::Stopping
            | Phase::Deleting
            | Phase::Unknown => true,
            Phase::Exited => self.desired == Desired::Running,
            Phase::Pending | Phase::Failed => false,
        }
    }

    /// Whether the node is told to run it. A queued instance has no grants, so it is not.
    #[must_use]
    pub fn runs_on_node(self) -> bool {
        self.desired == Desired::Running && self.phase != Phase::Pending
    }

    /// Returns the verbs that a person may use now, as the API calls them.
    #[must_use]
    pub fn possible(self) -> Vec<&'static str> {
        let verbs = [
            ("start", Event::StartRequested),
            ("stop", Event::StopRequested),
            ("restart", Event::RestartRequested),
            ("delete", Event::DeleteRequested),
        ];
        let applies = |event| matches!(next(self, event), Next::To(_));
        verbs.into_iter().filter(|(_, event)| applies(*event)).map(|(verb, _)| verb).collect()
    }
}

/// Returns what `event` leads to.
#[must_use]
pub fn next(state: State, event: Event<'_>) -> Next {
    match event {
        Event::Placed => match state.phase {
            Phase::Pending => to(Desired::Running, Phase::Creating),
            Phase::Creating
            | Phase::Running
            | Phase::Stopping
            | Phase::Exited
            | Phase::Failed
            | Phase::Deleting
            | Phase::Unknown => Next::Refused,
        },
        Event::StartRequested => start(state),
        Event::StopRequested => stop(state),
        Event::RestartRequested => match state.phase {
            Phase::Creating | Phase::Running => to(Desired::Running, Phase::Creating),
            Phase::Exited | Phase::Failed => start(state),
            Phase::Pending | Phase::Stopping | Phase::Deleting | Phase::Unknown => Next::Refused,
        },
        Event::DeleteRequested => match state.desired {
            Desired::Deleted => Next::Same,
            Desired::Running | Desired::Stopped => to(Desired::Deleted, Phase::Deleting),
        },
        Event::Observed(seen) => changed(state, observed(state, seen)),
        Event::PullFailed => match state.phase {
            Phase::Creating => to(Desired::Stopped, Phase::Failed),
            Phase::Pending
            | Phase::Running
            | Phase::Stopping
            | Phase::Exited
            | Phase::Failed
            | Phase::Deleting
            | Phase::Unknown => Next::Same,
        },
        Event::EndConfirmed => match (state.desired, state.phase) {
            (Desired::Running, Phase::Exited) => to(Desired::Stopped, Phase::Exited),
            (Desired::Running | Desired::Stopped | Desired::Deleted, _) => Next::Same,
        },
        Event::GaveUp => match state.phase {
            Phase::Creating => to(Desired::Stopped, Phase::Failed),
            Phase::Pending
            | Phase::Running
            | Phase::Stopping
            | Phase::Exited
            | Phase::Failed
            | Phase::Deleting
            | Phase::Unknown => Next::Same,
        },
        Event::NothingFits => match state.phase {
            Phase::Pending => to(Desired::Stopped, Phase::Failed),
            Phase::Creating
            | Phase::Running
            | Phase::Stopping
            | Phase::Exited
            | Phase::Failed
            | Phase::Deleting
            | Phase::Unknown => Next::Same,
        },
        Event::NodeLost => match state.phase {
            Phase::Creating | Phase::Running | Phase::Stopping => to(state.desired, Phase::Unknown),
            Phase::Exited if state.desired == Desired::Running => to(state.desired, Phase::Unknown),
            // What stands still or waits for a place does not change by the silence of a node.
            Phase::Pending | Phase::Exited | Phase::Failed | Phase::Deleting | Phase::Unknown => {
                Next::Same
            }
        },
        Event::NodeRemoved => match state.desired {
            Desired::Deleted => Next::Gone,
            Desired::Running | Desired::Stopped => {
                changed(state, State::new(Desired::Stopped, Phase::Failed))
            }
        },
        Event::Removed => match state.desired {
            Desired::Deleted => Next::Gone,
            Desired::Running | Desired::Stopped => Next::Same,
        },
    }
}

fn to(desired: Desired, phase: Phase) -> Next {
    Next::To(State::new(desired, phase))
}

fn changed(from: State, to: State) -> Next {
    if from == to { Next::Same } else { Next::To(to) }
}

fn start(state: State) -> Next {
    match state.phase {
        // It still holds its place.
        Phase::Exited if state.desired == Desired::Running => to(Desired::Running, Phase::Creating),
        Phase::Exited | Phase::Failed => to(Desired::Running, Phase::Pending),
        Phase::Pending
        | Phase::Creating
        | Phase::Running
        | Phase::Stopping
        | Phase::Deleting
        | Phase::Unknown => Next::Refused,
    }
}

fn stop(state: State) -> Next {
    match (state.desired, state.phase) {
        (Desired::Running, Phase::Pending) => to(Desired::Stopped, Phase::Exited),
        (Desired::Running, Phase::Creating | Phase::Running | Phase::Exited) => {
            to(Desired::Stopped, Phase::Stopping)
        }
        // The node hears of it when it answers again.
        (Desired::Running, Phase::Unknown) => to(Desired::Stopped, Phase::Unknown),
        (Desired::Running | Desired::Stopped | Desired::Deleted, _) => Next::Refused,
    }
}

fn observed(state: State, seen: &Seen<'_>) -> State {
    match state.desired {
        Desired::Deleted => state,
        // What the node sees of a queued instance is its old, stopped container.
        Desired::Running if state.phase == Phase::Pending => state,
        Desired::Running => observed_wanted(seen),
        Desired::Stopped => State::new(Desired::Stopped, observed_unwanted(state.phase, seen)),
    }
}

/// What a report makes of an instance that should run.
fn observed_wanted(seen: &Seen<'_>) -> State {
    let running = |phase| State::new(Desired::Running, phase);
    let ended = |phase| State::new(Desired::Stopped, phase);
    match seen.container {
        ContainerState::Unknown => running(Phase::Unknown),
        ContainerState::ImageMissing | ContainerState::Creating => running(Phase::Creating),
        ContainerState::Failed { retrying: true, .. } => running(Phase::Creating),
        // Until the agent has acted on the generation, everything else is the past: it is about to
        // start or restart the container.
        _ if !seen.acted => running(Phase::Creating),
        // A container that was removed behind our back is made again by the agent.
        ContainerState::Absent => running(Phase::Creating),
        ContainerState::Failed { retrying: false, .. } => ended(Phase::Failed),
        ContainerState::Running | ContainerState::Stopping => running(Phase::Running),
        ContainerState::Exited { .. } if restarts(seen) => running(Phase::Creating),
        ContainerState::Exited { .. } => running(Phase::Exited),
    }
}

/// What a report makes of an instance that should stand still.
fn observed_unwanted(phase: Phase, seen: &Seen<'_>) -> Phase {
    let is_still = matches!(phase, Phase::Exited | Phase::Failed);
    match seen.container {
        ContainerState::Unknown if is_still => phase,
        ContainerState::Unknown => Phase::Unknown,
        ContainerState::Running | ContainerState::Creating | ContainerState::Stopping => {
            Phase::Stopping
        }
        ContainerState::Absent
        | ContainerState::ImageMissing
        | ContainerState::Exited { .. }
        | ContainerState::Failed { .. }
            if is_still =>
        {
            phase
        }
        // The agent's ledger may still say that it should run, so nothing is released yet.
        _ if !seen.acted => Phase::Stopping,
        ContainerState::Failed { retrying: true, .. } => Phase::Stopping,
        ContainerState::Failed { retrying: false, .. } => Phase::Failed,
        ContainerState::Absent | ContainerState::ImageMissing | ContainerState::Exited { .. } => {
            Phase::Exited
        }
    }
}

/// Whether the agent starts the container again by itself.
///
/// An end by the watchdog holds until a person says otherwise, whatever the policy.
fn restarts(seen: &Seen<'_>) -> bool {
    let ContainerState::Exited { code, out_of_memory, message } = seen.container else {
        return false;
    };
    !message.starts_with(STOPPED_BY_WATCHDOG)
        && match seen.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => *code != 0 || *out_of_memory,
            RestartPolicy::Always => true,
        }
}
