use proptest::prelude::*;
use tianqi_common::unit::{DiskGib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{InstanceSpec, Revision};

use super::*;
use crate::reconcile::ledger::Begun;

const BOOT: &str = "boot-1";

fn spec(restart: RestartPolicy) -> InstanceSpec {
    InstanceSpec {
        container_name: "a".to_owned(),
        image: "busybox".to_owned(),
        cpu: Millicores(1),
        memory: MemoryMib(1),
        system_disk: DiskGib(0),
        data_disk: DiskGib(0),
        shm: MemoryMib(0),
        pids_limit: 1,
        gpus: vec![],
        slice: None,
        env: vec![],
        restart,
    }
}

fn wanted(run: Wanted, generation: u64, restart: RestartPolicy) -> InstanceDesired {
    InstanceDesired { id: InstanceId::new(), generation, run, spec: spec(restart) }
}

fn container(instance: InstanceId, id: &str, run: Run) -> Container {
    Container {
        id: id.to_owned(),
        name: id.to_owned(),
        instance,
        generation: 0,
        gpus: vec![],
        limits: vec![],
        created_at: UnixMillis(1),
        started_at: Some(UnixMillis(10_000)),
        finished_at: (!run.is_running()).then_some(UnixMillis(20_000)),
        run,
        volumes: vec![],
        pid: None,
    }
}

fn exited(code: i64) -> Run {
    Run::Exited { code, out_of_memory: false, error: String::new() }
}

/// A world that can be planned for.
#[derive(Clone, Debug, Default)]
struct World {
    desired: NodeDesired,
    records: BTreeMap<InstanceId, Record>,
    containers: Vec<Container>,
    removed: BTreeMap<InstanceId, Removed>,
    outage: Option<(UnixMillis, UnixMillis)>,
    no_creates: bool,
    now: UnixMillis,
    made: u32,
}

impl World {
    fn of(instance: &InstanceDesired, record: Option<Record>, containers: Vec<Container>) -> Self {
        let desired = NodeDesired {
            revision: Revision::default(),
            instances: vec![instance.clone()],
            tombstones: vec![],
        };
        let records = record.map(|record| (instance.id, record)).into_iter().collect();
        Self { desired, records, containers, now: UnixMillis(1_000_000), ..Self::default() }
    }

    fn plan(&self) -> Plan {
        plan(&Situation {
            desired: &self.desired,
            records: &self.records,
            containers: &self.containers,
            removed: &self.removed,
            busy: &BTreeSet::new(),
            no_creates: self.no_creates,
            outage: self.outage,
            boot: BOOT,
            now: self.now,
        })
    }

    /// Carries a plan out as Docker would.
    fn apply(&mut self, plan: &Plan) {
        for (id, generation) in &plan.reached {
            self.records.entry(*id).or_default().acted = *generation;
        }
        for (id, ended) in &plan.ended {
            self.records.entry(*id).or_default().ended = Some(*ended);
        }
        for action in &plan.actions {
            let id = action.instance();
            let generation =
                self.desired.instances.iter().find(|i| i.id == id).map(|i| i.generation);
            match action {
                ContainerAction::Create(_) => {
                    self.made += 1;
                    let mut fresh = container(id, &format!("new-{}", self.made), Run::Created);
                    fresh.created_at = self.now;
                    self.containers.push(fresh);
                }
                ContainerAction::Start(_, found) | ContainerAction::Restart(_, found) => {
                    let now = self.now;
                    let found = self.containers.iter_mut().find(|c| &c.id == found).unwrap();
                    found.run = Run::Running;
                    found.started_at = Some(now);
                    let record = self.records.entry(id).or_default();
                    record.begun = Some(Begun { generation: generation.unwrap(), at: now });
                    record.boot = BOOT.to_owned();
                }
                ContainerAction::Stop(_, found) => {
                    let found = self.containers.iter_mut().find(|c| &c.id == found).unwrap();
                    found.run = exited(143);
                    found.finished_at = Some(self.now);
                }
                ContainerAction::RemoveDouble(_, found) => {
                    self.containers.retain(|c| &c.id != found);
                }
                ContainerAction::Purge(_) => {
                    self.containers.retain(|c| c.instance != id);
                    self.removed.insert(id, Removed { id, leftovers: vec![] });
                }
            }
        }
    }
}

fn acted(generation: u64) -> Option<Record> {
    Some(Record { acted: generation, boot: BOOT.to_owned(), ..Record::default() })
}

#[test]
fn missing_container_is_made_and_a_stopped_one_is_not() {
    let run = wanted(Wanted::Running, 1, RestartPolicy::Never);
    assert_eq!(World::of(&run, None, vec![]).plan().actions, [ContainerAction::Create(run.id)]);
    // Removed behind our back.
    assert_eq!(World::of(&run, acted(1), vec![]).plan().actions, [ContainerAction::Create(run.id)]);

    let stop = wanted(Wanted::Stopped, 1, RestartPolicy::Never);
    let plan = World::of(&stop, None, vec![]).plan();
    assert_eq!((plan.actions.len(), plan.reached), (0, vec![(stop.id, 1)]));

    let mut full_disk = World::of(&run, None, vec![]);
    full_disk.no_creates = true;
    assert!(full_disk.plan().actions.is_empty());
}

#[test]
fn generation_restarts_a_running_container_once() {
    let instance = wanted(Wanted::Running, 2, RestartPolicy::Never);
    let running = container(instance.id, "c", Run::Running);
    let stop = ContainerAction::Stop(instance.id, "c".to_owned());
    assert_eq!(World::of(&instance, acted(1), vec![running.clone()]).plan().actions, [stop]);

    // The agent died between the start and writing it down.
    let begun = Some(Begun { generation: 2, at: UnixMillis(9_000) });
    let record = Record { acted: 1, begun, ..Record::default() };
    let plan = World::of(&instance, Some(record), vec![running.clone()]).plan();
    assert_eq!((plan.actions.len(), plan.reached), (0, vec![(instance.id, 2)]));

    // A lost ledger adopts what runs.
    let plan = World::of(&instance, None, vec![running]).plan();
    assert_eq!((plan.actions.len(), plan.reached), (0, vec![(instance.id, 2)]));
}

#[test]
fn process_that_ended_by_itself_stays_ended_unless_its_policy_says_otherwise() {
    use RestartPolicy::{Always, Never, OnFailure};
    for (policy, code, restarts) in
        [(Never, 1, false), (OnFailure, 0, false), (OnFailure, 3, true), (Always, 0, true)]
    {
        let instance = wanted(Wanted::Running, 1, policy);
        let gone = container(instance.id, "c", exited(code));
        let plan = World::of(&instance, acted(1), vec![gone.clone()]).plan();
        let expected = ContainerAction::Restart(instance.id, "c".to_owned());
        assert_eq!(plan.actions.contains(&expected), restarts, "{policy:?} {code}");
        assert_eq!(plan.ended.len(), usize::from(!restarts), "{policy:?} {code}");

        let again = World::of(&instance, acted(0), vec![gone]).plan();
        let start = ContainerAction::Start(instance.id, "c".to_owned());
        assert_eq!(again.actions, [start], "a new generation starts it whatever the policy");
    }
}

#[test]
fn ended_instance_whose_container_is_pruned_is_not_run_again() {
    let instance = wanted(Wanted::Running, 1, RestartPolicy::Never);
    let record =
        Record { ended: Some(Ended { code: 0, out_of_memory: false }), ..acted(1).unwrap() };
    assert_eq!(World::of(&instance, Some(record), vec![]).plan().actions, []);

    // A container removed by force ends a moment before; that end is not believed yet.
    let mut just = World::of(&instance, acted(1), vec![container(instance.id, "c", exited(137))]);
    just.now = UnixMillis(20_500);
    assert_eq!((just.plan().ended, just.plan().wake_at), (vec![], Some(UnixMillis(25_000))));
}

#[test]
fn instances_that_ended_with_the_machine_or_the_engine_start_again() {
    let instance = wanted(Wanted::Running, 1, RestartPolicy::Never);
    let gone = container(instance.id, "c", exited(137));
    let start = [ContainerAction::Start(instance.id, "c".to_owned())];
    let mut record = acted(1).unwrap();
    record.boot = "boot-0".to_owned();
    assert_eq!(
        World::of(&instance, Some(record.clone()), vec![gone.clone()]).plan().actions,
        start
    );

    let mut outage = World::of(&instance, acted(1), vec![gone.clone()]);
    outage.outage = Some((UnixMillis(21_000), UnixMillis(90_000)));
    assert_eq!(outage.plan().actions, start);
    outage.outage = Some((UnixMillis(1_000), UnixMillis(9_000)));
    assert_eq!(outage.plan().actions, [], "it was started after the outage");
    outage.outage = Some((UnixMillis(200_000), UnixMillis(300_000)));
    assert_eq!(outage.plan().actions, []);

    record.ended = Some(Ended { code: 137, out_of_memory: false });
    assert_eq!(World::of(&instance, Some(record), vec![gone]).plan().actions, []);
}

#[test]
fn restarts_pause_longer_each_time_and_begin_anew_after_a_good_run() {
    let seconds: Vec<u64> = [1, 2, 3, 4, 9, 10, 64, u32::MAX].map(|n| pause(n).as_secs()).to_vec();
    assert_eq!(seconds, [1, 2, 4, 8, 256, 300, 300, 300]);

    let instance = wanted(Wanted::Running, 1, RestartPolicy::Always);
    let record = Record { streak: 5, ..acted(1).unwrap() };
    let mut gone = container(instance.id, "c", exited(1));
    let mut world = World::of(&instance, Some(record.clone()), vec![gone.clone()]);
    world.now = UnixMillis(20_000 + 31_999);
    assert_eq!((world.plan().actions, world.plan().wake_at), (vec![], Some(UnixMillis(52_000))));
    world.now = UnixMillis(52_000);
    assert_eq!(world.plan().actions.len(), 1);

    gone.finished_at = Some(UnixMillis(10_000 + 600_000));
    assert_eq!(streak(&record, &gone), 0);
}

#[test]
fn failed_attempts_wait_for_their_time() {
    let instance = wanted(Wanted::Running, 1, RestartPolicy::Never);
    let record = Record { retry_at: Some(UnixMillis(1_000_500)), ..Record::default() };
    let plan = World::of(&instance, Some(record), vec![]).plan();
    assert_eq!((plan.actions, plan.wake_at), (vec![], Some(UnixMillis(1_000_500))));
}

#[test]
fn second_container_of_an_instance_goes_and_the_running_one_stays() {
    let instance = wanted(Wanted::Running, 1, RestartPolicy::Never);
    let mut newer = container(instance.id, "newer", Run::Created);
    newer.created_at = UnixMillis(99);
    let running = container(instance.id, "running", Run::Running);
    let plan = World::of(&instance, acted(1), vec![newer.clone(), running]).plan();
    assert_eq!(plan.actions, [ContainerAction::RemoveDouble(instance.id, "newer".to_owned())]);

    let older = container(instance.id, "older", Run::Created);
    let plan = World::of(&instance, acted(1), vec![newer, older]).plan();
    assert_eq!(plan.actions, [ContainerAction::RemoveDouble(instance.id, "older".to_owned())]);
}

#[test]
fn tombstones_are_carried_out_until_nothing_is_left() {
    let id = InstanceId::new();
    let mut world = World::default();
    world.desired.tombstones = vec![id];
    assert_eq!(world.plan().actions, [ContainerAction::Purge(id)], "volumes may be left alone");
    world.removed.insert(id, Removed { id, leftovers: vec!["volume x".to_owned()] });
    assert_eq!(world.plan().actions, [ContainerAction::Purge(id)]);
    world.removed.insert(id, Removed { id, leftovers: vec![] });
    assert_eq!(world.plan().actions, []);
    world.containers.push(container(id, "late", Run::Created));
    assert_eq!(world.plan().actions, [ContainerAction::Purge(id)]);
}

fn any_run() -> impl Strategy<Value = Run> {
    prop_oneof![Just(Run::Created), Just(Run::Running), (0..3_i64).prop_map(exited)]
}

prop_compose! {
    fn any_instance()(
        should_run in any::<bool>(),
        generation in 1..4_u64,
        policy in prop_oneof![
            Just(RestartPolicy::Never), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Always)
        ],
        known in proptest::option::of(0..4_u64),
        runs in proptest::collection::vec(any_run(), 0..4),
        fate in 0..4_u8,
    ) -> (InstanceDesired, Option<Record>, Vec<Run>, u8) {
        let run = if should_run { Wanted::Running } else { Wanted::Stopped };
        (wanted(run, generation, policy), known.and_then(acted), runs, fate)
    }
}

proptest! {
    /// From any mixture of containers and memories the node comes to rest, right and without
    /// touching what nobody buried.
    #[test]
    fn plan_converges_and_removes_nothing_but_tombstones_and_doubles(
        all in proptest::collection::vec(any_instance(), 0..6)
    ) {
        let mut world = World { now: UnixMillis(1_000_000), ..World::default() };
        let mut strangers = Vec::new();
        for (instance, record, runs, fate) in &all {
            for (n, run) in runs.iter().enumerate() {
                let mut made = container(instance.id, &format!("{}-{n}", instance.id), run.clone());
                made.created_at = UnixMillis(n as i64);
                world.containers.push(made);
            }
            world.records.extend(record.clone().map(|record| (instance.id, record)));
            match fate {
                0 => world.desired.tombstones.push(instance.id),
                1 => strangers.push(instance.id),
                _ => world.desired.instances.push(instance.clone()),
            }
        }
        let stranger_containers = |world: &World| -> Vec<Container> {
            world.containers.iter().filter(|c| strangers.contains(&c.instance)).cloned().collect()
        };
        let untouched = stranger_containers(&world);

        let mut rounds = 0;
        loop {
            let plan = world.plan();
            for action in &plan.actions {
                prop_assert!(!strangers.contains(&action.instance()));
            }
            if plan.actions.is_empty() && plan.reached.is_empty() && plan.ended.is_empty() {
                break;
            }
            let mut owners: Vec<InstanceId> = plan.actions.iter().map(|a| a.instance()).collect();
            owners.dedup();
            prop_assert_eq!(owners.len(), plan.actions.len(), "one step per instance at a time");
            world.apply(&plan);
            world.now = world.now.plus(Duration::from_secs(1));
            rounds += 1;
            prop_assert!(rounds < 20, "does not come to rest: {plan:?}");
        }

        prop_assert_eq!(stranger_containers(&world), untouched);
        for id in &world.desired.tombstones {
            prop_assert!(world.containers.iter().all(|c| c.instance != *id));
        }
        for instance in &world.desired.instances {
            let own: Vec<_> =
                world.containers.iter().filter(|c| c.instance == instance.id).collect();
            prop_assert!(own.len() <= 1);
            let runs = own.iter().any(|c| c.run.is_running());
            let has_ended = world.records.get(&instance.id).is_some_and(|r| r.ended.is_some());
            prop_assert_eq!(runs, instance.run == Wanted::Running && !has_ended);
            prop_assert!(world.records[&instance.id].acted >= instance.generation);
        }
    }
}
