//! Random transitions of the simulation, drawn by seed. Pure: the same seed and the same answers
//! give the same transitions.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::model::{Model, Policy, Size, Want};

/// Most instances at a time.
const MOST: usize = 10;
/// Longer than an agent may be silent before its node counts as lost.
const LONG_SILENCE: Duration = Duration::from_secs(22);

/// One thing that happens. Instances go by their names, which are the same in every run of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Somebody asks for an instance.
    Create(Size, Policy),
    /// Somebody asks an instance to start.
    Start(String),
    /// Somebody asks an instance to stop.
    Stop(String),
    /// Somebody asks an instance to restart.
    Restart(String),
    /// Somebody deletes an instance.
    Delete(String),
    /// Somebody deletes several at once.
    DeleteMany(Vec<String>),
    /// A container is removed behind our back.
    RemoveContainer(String),
    /// The process of a container is killed behind our back.
    KillContainer(String),
    /// The controller is killed this long after requests were sent, and started again.
    KillController {
        /// Creates on the way.
        creates: Vec<(Size, Policy)>,
        /// A delete on the way.
        delete: Option<String>,
        /// Between their sending and the kill.
        after: Duration,
    },
    /// The agent is killed and started again.
    KillAgent,
    /// The engine is killed; it is down until the fault ends.
    KillEngine,
    /// The network between agent and controller is cut until the fault ends.
    Cut,
    /// The network is cut so long that the node counts as lost.
    CutLong(Duration),
    /// The agent stands still until the fault ends.
    Freeze,
    /// The agent's disk is full until the fault ends.
    FillDisk,
    /// The fault ends.
    Mend,
}

/// A fault that lasts over several transitions. There is one at a time, so that every transition
/// can still be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The engine is down.
    EngineDown,
    /// The network is cut.
    Cut,
    /// The agent stands still.
    Frozen,
    /// The agent's disk is full.
    DiskFull,
}

/// Draws transitions.
#[derive(Debug)]
pub struct Dice {
    rng: StdRng,
}

impl Dice {
    /// Starts at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed) }
    }

    /// Returns how long nothing happens before the next transition.
    pub fn pause(&mut self) -> Duration {
        // Most follow at once, so that they meet what is half done.
        let longest = if self.rng.random_bool(0.2) { 1_500 } else { 250 };
        Duration::from_millis(self.rng.random_range(0..longest))
    }

    /// Returns what happens next.
    pub fn draw(&mut self, model: &Model, fault: Option<Fault>) -> Transition {
        match fault {
            Some(_) if self.rng.random_bool(0.3) => Transition::Mend,
            Some(_) if self.rng.random_bool(0.1) => self.draw_controller_kill(model),
            Some(_) if self.rng.random_bool(0.1) => Transition::KillAgent,
            Some(fault) => self.draw_ask(model, fault != Fault::EngineDown),
            None if self.rng.random_bool(0.3) => self.draw_fault(model),
            None => self.draw_ask(model, true),
        }
    }

    fn draw_fault(&mut self, model: &Model) -> Transition {
        match self.rng.random_range(0..16) {
            0..4 => self.draw_controller_kill(model),
            4..8 => Transition::KillAgent,
            8..10 => Transition::KillEngine,
            10..12 => Transition::Cut,
            12 => Transition::CutLong(LONG_SILENCE),
            13 => Transition::Freeze,
            _ => Transition::FillDisk,
        }
    }

    fn draw_controller_kill(&mut self, model: &Model) -> Transition {
        let creates = (0..self.rng.random_range(0..3)).map(|_| self.draw_kind()).collect();
        let is_deleting = !model.asked.is_empty() && self.rng.random_bool(0.5);
        let delete = is_deleting.then(|| self.pick(model));
        let after = Duration::from_millis(self.rng.random_range(0..60));
        Transition::KillController { creates, delete, after }
    }

    fn draw_ask(&mut self, model: &Model, engine_answers: bool) -> Transition {
        let count = model.asked.len();
        if count < 2 || (count < MOST && self.rng.random_bool(0.45)) {
            let (size, policy) = self.draw_kind();
            return Transition::Create(size, policy);
        }
        let name = self.pick(model);
        let is_wanted = model.asked.values().any(|it| it.name == name && it.want == Want::Running);
        match self.rng.random_range(0..20) {
            0..6 => Transition::Delete(name),
            6 => {
                let mut names = vec![name, self.pick(model), self.pick(model)];
                names.sort();
                names.dedup();
                Transition::DeleteMany(names)
            }
            7..10 => Transition::Restart(name),
            10..12 if engine_answers => Transition::RemoveContainer(name),
            12..14 if engine_answers => Transition::KillContainer(name),
            _ if is_wanted => Transition::Stop(name),
            _ => Transition::Start(name),
        }
    }

    fn draw_kind(&mut self) -> (Size, Policy) {
        let size = Size::ALL[self.rng.random_range(0..Size::ALL.len())];
        let policy = if self.rng.random_bool(0.5) { Policy::Always } else { Policy::Never };
        (size, policy)
    }

    fn pick(&mut self, model: &Model) -> String {
        let mut names: Vec<&String> = model.asked.values().map(|asked| &asked.name).collect();
        names.sort();
        names[self.rng.random_range(0..names.len())].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64) -> Vec<Transition> {
        let (mut dice, mut model) = (Dice::new(seed), Model::default());
        for n in 0..5 {
            model.created(format!("id-{n}"), format!("name-{n}"), Policy::Never);
        }
        (0..200).map(|_| dice.draw(&model, None)).collect()
    }

    #[test]
    fn one_seed_draws_one_course_and_another_seed_another() {
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn a_fault_ends_some_time_and_no_second_one_begins_before() {
        let (mut dice, model) = (Dice::new(1), Model::default());
        let course: Vec<_> = (0..100).map(|_| dice.draw(&model, Some(Fault::EngineDown))).collect();

        assert!(course.contains(&Transition::Mend));
        let is_bearable = |it: &Transition| {
            matches!(
                it,
                Transition::Mend
                    | Transition::Create(..)
                    | Transition::KillController { .. }
                    | Transition::KillAgent
            )
        };
        assert!(course.iter().all(is_bearable), "{course:?}");
    }
}
