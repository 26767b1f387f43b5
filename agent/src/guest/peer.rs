//! Who is at the other end of a socket.

use tianqi_common::id::InstanceId;
use tokio::net::UnixStream;

use crate::docker::Docker;

/// Returns whether the process that dialled runs in the container of `instance` that runs now.
pub(super) async fn is_of(stream: &UnixStream, docker: &dyn Docker, instance: InstanceId) -> bool {
    let Some(pid) = stream.peer_cred().ok().and_then(|peer| peer.pid()) else { return false };
    let Ok(containers) = docker.containers(Some(instance)).await else { return false };
    let Ok(cgroup) = tokio::fs::read_to_string(format!("/proc/{pid}/cgroup")).await else {
        return false;
    };
    containers.iter().filter(|container| container.run.is_running()).any(|container| {
        // Engines name the group of a container by its whole id, whatever stands around it.
        container.id.len() >= 32 && cgroup.contains(&container.id)
    })
}
