//! The reference model of the simulation: what people asked for, and what may be seen because of it.
//! Pure: what is seen comes in as an [`Observation`].

use std::collections::{BTreeMap, BTreeSet};

use crate::observation::{CardUse, Container, InstanceSeen, NodeUse, Observation};

/// What an instance asks of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// A tenth of a core, no card.
    Cpu,
    /// A part of a card.
    Slice,
    /// A whole card.
    Card,
}

impl Size {
    /// Every size.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Slice, Self::Card];
}

/// What should happen when an instance's process ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing.
    Never,
    /// It is started again.
    Always,
}

impl Policy {
    /// Returns the API's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

/// What a person wants of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It should run.
    Running,
    /// It should stand still.
    Stopped,
}

/// An instance that nobody deleted.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Its policy.
    pub policy: Policy,
    /// What is wanted of it.
    pub want: Want,
    /// How often its process was killed since it was last asked to run.
    pub kills: u32,
    /// Whether it is on its volume that its data is known by.
    pub is_marked: bool,
}

impl Asked {
    /// Whether it may rest ended although it was asked to run.
    fn may_have_ended(&self) -> bool {
        self.policy == Policy::Never && self.kills > 0
    }

    /// Says why the instance as seen is not where it should come to rest; nothing when it is.
    fn unrest(&self, seen: &InstanceSeen) -> Option<String> {
        let phase = seen.phase.as_str();
        let rests = match self.want {
            Want::Stopped => phase == "exited",
            Want::Running if phase == "exited" => self.may_have_ended(),
            Want::Running => phase == "running" || seen.waits_for_capacity(),
        };
        let name = &self.name;
        (!rests).then(|| format!("{name} should be {:?}, is {phase}: {}", self.want, seen.reason))
    }
}

/// Everything that people asked for since the beginning.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Instances that exist, by id.
    pub asked: BTreeMap<String, Asked>,
    /// Instances that were deleted.
    pub deleted: BTreeSet<String>,
}

/// What must never be seen, by kind, each with one line.
#[derive(Clone, Debug, Default)]
pub struct Broken {
    /// Instances, phases or data that should be there and are not.
    pub lost: BTreeSet<String>,
    /// Second containers.
    pub doubled: BTreeSet<String>,
    /// Remains of what was deleted, and what came back.
    pub left_behind: BTreeSet<String>,
    /// More granted or running than there is.
    pub overcommitted: BTreeSet<String>,
}

impl Broken {
    /// Whether nothing is broken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines().next().is_none()
    }

    /// Returns every line.
    pub fn lines(&self) -> impl Iterator<Item = &String> {
        let some = self.lost.iter().chain(&self.doubled);
        some.chain(&self.left_behind).chain(&self.overcommitted)
    }

    /// Returns the counts in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "lost {} doubled {} left behind {} overcommitted {}",
            self.lost.len(),
            self.doubled.len(),
            self.left_behind.len(),
            self.overcommitted.len()
        )
    }
}

impl Model {
    /// Notes an instance that was created.
    pub fn created(&mut self, id: String, name: String, policy: Policy) {
        let asked = Asked { name, policy, want: Want::Running, kills: 0, is_marked: false };
        self.asked.insert(id, asked);
    }

    /// Returns the id of an instance that exists.
    ///
    /// # Panics
    ///
    /// When none has this name.
    #[must_use]
    pub fn id_of(&self, name: &str) -> String {
        let found = self.asked.iter().find(|(_, asked)| asked.name == name);
        found.unwrap_or_else(|| panic!("no instance {name}")).0.clone()
    }

    /// Notes what is wanted of an instance from here on.
    pub fn wants(&mut self, id: &str, want: Want) {
        if let Some(asked) = self.asked.get_mut(id) {
            asked.want = want;
            asked.kills = 0;
        }
    }

    /// Notes that an instance was deleted.
    pub fn deletes(&mut self, id: &str) {
        if self.asked.remove(id).is_some() {
            self.deleted.insert(id.to_owned());
        }
    }

    /// Notes that an instance's process was killed.
    pub fn killed(&mut self, id: &str) {
        if let Some(asked) = self.asked.get_mut(id) {
            asked.kills += 1;
        }
    }

    /// Checks what must hold at every moment.
    pub fn check_always(&self, seen: &Observation, broken: &mut Broken) {
        for id in self.asked.keys().filter(|id| !seen.instances.contains_key(*id)) {
            broken.lost.insert(format!("instance {id} is not in the list"));
        }
        for (id, instance) in &seen.instances {
            let is_back = self.deleted.contains(id) && instance.desired != "deleted";
            if is_back || !(self.deleted.contains(id) || self.asked.contains_key(id)) {
                let line = format!("instance {id} is there ({}) but was not asked", instance.phase);
                broken.left_behind.insert(line);
            }
        }
        broken.doubled.extend(doubles(&seen.containers));
        broken.overcommitted.extend(seen.nodes.iter().filter_map(NodeUse::excess));
        broken.overcommitted.extend(seen.cards.iter().filter_map(CardUse::excess));
        for id in &seen.unbacked {
            broken.overcommitted.insert(format!("instance {id} runs without a grant"));
        }
        if seen.stray_grants > 0 {
            let line = format!("{} grants of instances that are gone", seen.stray_grants);
            broken.left_behind.insert(line);
        }
    }

    /// Says what has not come to rest yet; nothing when everything has.
    #[must_use]
    pub fn unrest(&self, seen: &Observation) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, asked) in &self.asked {
            match seen.instances.get(id) {
                Some(instance) => {
                    lines.extend(asked.unrest(instance));
                    let runs = seen.containers.iter().any(|it| it.instance == *id && it.is_running);
                    if (instance.phase == "running") != runs {
                        lines.push(format!("{} is {}, runs: {runs}", asked.name, instance.phase));
                    }
                }
                None => lines.push(format!("{} is not in the list", asked.name)),
            }
        }
        for id in &seen.remains {
            if !self.asked.contains_key(id.instance()) {
                lines.push(format!("left behind: {id}"));
            }
        }
        for id in seen.instances.keys().filter(|id| self.deleted.contains(*id)) {
            lines.push(format!("{id} is not deleted yet"));
        }
        lines
    }
}

fn doubles(containers: &[Container]) -> Vec<String> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for container in containers {
        *counts.entry(&container.instance).or_default() += 1;
    }
    let doubled = counts.into_iter().filter(|(_, count)| *count > 1);
    doubled.map(|(id, count)| format!("instance {id} has {count} containers")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::Remain;

    fn model() -> Model {
        let mut model = Model::default();
        model.created("a".to_owned(), "a".to_owned(), Policy::Never);
        model.created("b".to_owned(), "b".to_owned(), Policy::Always);
        model.deletes("b");
        model
    }

    fn seen(phase: &str, desired: &str) -> InstanceSeen {
        InstanceSeen {
            name: String::new(),
            phase: phase.to_owned(),
            desired: desired.to_owned(),
            reason_code: String::new(),
            reason: String::new(),
        }
    }

    fn container(instance: &str) -> Container {
        Container { id: "c".to_owned(), instance: instance.to_owned(), is_running: true }
    }

    fn quiet() -> Observation {
        Observation {
            instances: BTreeMap::from([("a".to_owned(), seen("running", "running"))]),
            containers: vec![container("a")],
            ..Observation::default()
        }
    }

    #[test]
    fn what_was_asked_is_at_rest_and_unbroken() {
        let mut broken = Broken::default();
        model().check_always(&quiet(), &mut broken);

        assert!(broken.is_empty(), "{broken:?}");
        assert!(model().unrest(&quiet()).is_empty());
    }

    #[test]
    fn every_kind_of_breach_is_counted() {
        let mut broken = Broken::default();
        let mut bad = quiet();
        bad.instances = BTreeMap::from([("b".to_owned(), seen("running", "running"))]);
        bad.containers.push(container("a"));
        bad.unbacked.push("a".to_owned());
        bad.stray_grants = 1;

        model().check_always(&bad, &mut broken);

        let wanted = "lost 1 doubled 1 left behind 2 overcommitted 1";
        assert_eq!(broken.summary(), wanted);
    }

    #[test]
    fn remains_and_wrong_phases_are_unrest() {
        let mut late = quiet();
        late.instances.insert("a".to_owned(), seen("creating", "running"));
        late.instances.insert("b".to_owned(), seen("deleting", "deleted"));
        late.remains.push(Remain::Volume("b".to_owned()));

        assert_eq!(model().unrest(&late).len(), 4);
    }

    #[test]
    fn a_killed_process_may_rest_only_when_its_policy_says_so() {
        let mut model = model();
        let mut ended = quiet();
        ended.instances.insert("a".to_owned(), seen("exited", "stopped"));
        ended.containers.clear();
        assert!(!model.unrest(&ended).is_empty());

        model.killed("a");

        assert!(model.unrest(&ended).is_empty());
    }
}
