//! What the parts tell each other: observed state to the link, the machine to the link, and what to
//! measure to the sampler.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::wire::inventory::NodeInventory;
use tianqi_common::wire::observed::{ContainerState, NodeObserved};
use tokio::sync::watch;

use crate::docker::{Docker, DockerHandle};
use crate::gpu::GpuProbe;
use crate::gpu::hami::HamiInjector;
use crate::inventory::{self, Parts};
use crate::telemetry::Target;

/// Between two looks at the machine when nothing says that it changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Looks after which the inventory is sent although only free space differs.
const FREE_SPACE_ROUNDS: u32 = 10;

/// Hands observed state on. The loop's first look comes before the first report: until then nothing
/// is known, which is not the same as nothing being there.
pub(super) async fn observed(
    mut from: watch::Receiver<NodeObserved>,
    to: watch::Sender<Option<NodeObserved>>,
) {
    while from.changed().await.is_ok() {
        let newest = from.borrow_and_update().clone();
        to.send_replace(Some(newest));
    }
}

/// Looks at the machine whenever something says that it changed, and now and then.
pub(super) async fn inventory(
    docker: DockerHandle,
    probe: Arc<dyn GpuProbe>,
    hami: Arc<HamiInjector>,
    mut observed: watch::Receiver<NodeObserved>,
    to: watch::Sender<Option<NodeInventory>>,
    docker_root: watch::Sender<PathBuf>,
) {
    let (mut engines, mut gpus) = (docker.watch(), probe.watch());
    let mut status = observed.borrow().docker.status;
    for round in 0_u32.. {
        let cards = gpus.borrow_and_update().clone();
        let engine = docker.current();
        let found = look(&*engine, cards, hami.clone(), &docker_root).await;
        if let Some(found) = found {
            let with_space = round.is_multiple_of(FREE_SPACE_ROUNDS);
            to.send_if_modified(|known| {
                let is_new = known.as_ref().is_none_or(|known| differs(known, &found, with_space));
                if is_new {
                    *known = Some(found);
                }
                is_new
            });
        }
        let docker_turned = async {
            while observed.changed().await.is_ok() {
                let newest = observed.borrow_and_update().docker.status;
                if std::mem::replace(&mut status, newest) != newest {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            Ok(()) = engines.changed() => { engines.borrow_and_update(); }
            Ok(()) = gpus.changed() => {}
            () = docker_turned => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

async fn look(
    docker: &dyn Docker,
    gpus: tianqi_common::wire::inventory::GpuInventory,
    hami: Arc<HamiInjector>,
    docker_root: &watch::Sender<PathBuf>,
) -> Option<NodeInventory> {
    let engine = docker.engine().await.ok();
    let facts = docker.facts().await.ok();
    let root = facts.filter(|facts| facts.local).map(|facts| PathBuf::from(facts.root_dir));
    if let Some(root) = &root {
        docker_root.send_if_modified(|known| {
            let is_new = known != root;
            known.clone_from(root);
            is_new
        });
    }
    let collected = tokio::task::spawn_blocking(move || {
        let hami = hami.library();
        inventory::collect(Parts { docker: engine, docker_root: root, gpus, hami })
    });
    match collected.await {
        Ok(inventory) => Some(inventory),
        Err(error) => {
            tracing::error!(%error, "the machine could not be looked at");
            None
        }
    }
}

/// Whether two inventories differ, in free space too when `with_space`.
fn differs(old: &NodeInventory, new: &NodeInventory, with_space: bool) -> bool {
    if with_space {
        return old != new;
    }
    let without = |inventory: &NodeInventory| {
        let mut inventory = inventory.clone();
        inventory.disks.iter_mut().for_each(|disk| disk.free_bytes = 0);
        inventory
    };
    without(old) != without(new)
}

/// Tells the sampler which containers run.
pub(super) async fn targets(
    docker: DockerHandle,
    mut observed: watch::Receiver<NodeObserved>,
    to: watch::Sender<Vec<Target>>,
) {
    while observed.changed().await.is_ok() {
        let instances = observed.borrow_and_update().instances.clone();
        let known = to.borrow().clone();
        let mut targets = Vec::new();
        for instance in instances {
            let (ContainerState::Running, Some(container_id)) =
                (&instance.state, &instance.container_id)
            else {
                continue;
            };
            let seen = known.iter().find(|target| target.container_id == *container_id);
            let pid = match docker.current().inspect(container_id).await {
                Ok(container) => container.pid,
                // An engine that is away does not end the processes it started.
                Err(_) => seen.map(|target| target.pid),
            };
            if let Some(pid) = pid {
                let container_id = container_id.clone();
                targets.push(Target { instance: instance.id, container_id, pid });
            }
        }
        to.send_if_modified(|known| {
            let is_new = *known != targets;
            *known = targets;
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use tianqi_common::wire::inventory::Disk;

    use super::*;

    #[test]
    fn free_space_alone_is_a_change_only_now_and_then() {
        let with = |free_bytes, cpu_cores| NodeInventory {
            disks: vec![Disk { free_bytes, ..Disk::default() }],
            cpu_cores,
            ..NodeInventory::default()
        };

        assert!(!differs(&with(1, 8), &with(2, 8), false));
        assert!(differs(&with(1, 8), &with(2, 8), true));
        assert!(differs(&with(1, 8), &with(1, 9), false));
    }

    #[tokio::test]
    async fn nothing_is_reported_before_the_first_look() {
        let (sender, receiver) = watch::channel(NodeObserved::default());
        let (to, mut reported) = watch::channel(None);
        let task = tokio::spawn(observed(receiver, to));
        tokio::task::yield_now().await;
        assert_eq!(*reported.borrow(), None);

        sender.send_replace(NodeObserved::default());

        assert!(reported.wait_for(Option::is_some).await.is_ok());
        drop(sender);
        task.await.unwrap();
    }
}
