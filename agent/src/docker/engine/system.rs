//! The engine itself: what it is, what it can do, what happens in it, and the instances' network.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect, SystemInfo};
use bollard::query_parameters::{EventsOptionsBuilder, InspectNetworkOptions};
use futures_util::StreamExt;
use tianqi_common::wire::inventory::{DockerEngine, GpuSupport};

use super::container::by_label;
use super::{Engine, QUICK, SLOW};
use crate::docker::{
    DockerError, DockerEvent, EngineFacts, NetworkFacts, NetworkSpec, Pieces, label,
};

/// The oldest API that is served: Docker 20.10.
const OLDEST_API: (u32, u32) = (1, 41);
const ICC: &str = "com.docker.network.bridge.enable_icc";
const BRIDGE: &str = "com.docker.network.bridge.name";

impl Engine {
    pub(super) async fn read_engine(&self) -> Result<DockerEngine, DockerError> {
        let version = self.within("version", QUICK, self.client.version()).await?;
        let api_version = version.api_version.unwrap_or_default();
        if !is_new_enough(&api_version) {
            return Err(DockerError::Unsupported(format!(
                "docker engine {} speaks API {api_version:?}; 1.41 (Docker 20.10) or newer is needed",
                version.version.unwrap_or_default()
            )));
        }
        let info = self.within("info", QUICK, self.client.info()).await?;
        let local = self.dialer.endpoint().is_local();
        Ok(DockerEngine {
            version: version.version.unwrap_or_default(),
            api_version,
            cgroup_driver: info.cgroup_driver.map(|d| d.to_string()).unwrap_or_default(),
            cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
            storage_driver: info.driver.clone().unwrap_or_default(),
            backing_filesystem: backing_filesystem(&info),
            live_restore: info.live_restore_enabled.unwrap_or_default(),
            gpu_support: gpu_support(&info, local),
            local,
        })
    }

    pub(super) async fn read_facts(&self) -> Result<EngineFacts, DockerError> {
        let info = self.within("info", QUICK, self.client.info()).await?;
        let local = self.dialer.endpoint().is_local();
        let root_dir = info.docker_root_dir.clone().unwrap_or_default();
        let mounts = if local {
            tokio::fs::read_to_string("/proc/self/mounts").await.unwrap_or_default()
        } else {
            String::new()
        };
        Ok(EngineFacts {
            storage_driver: info.driver.clone().unwrap_or_default(),
            backing_filesystem: backing_filesystem(&info),
            project_quota: has_project_quota(&mounts, &root_dir),
            root_dir,
            cdi_devices: cdi_devices(&info),
            local,
        })
    }

    pub(super) fn follow_events(&self) -> Pieces<DockerEvent> {
        let mut filters = by_label(None);
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let events = self.client.events(Some(options)).map(|event| {
            event.map(|message| {
                let actor = message.actor.unwrap_or_default();
                let instance = actor.attributes.as_ref().and_then(|all| all.get(label::INSTANCE));
                DockerEvent {
                    instance: instance.and_then(|id| id.parse().ok()),
                    container: actor.id.unwrap_or_default(),
                    action: message.action.unwrap_or_default(),
                }
            })
        });
        self.pieces("events", events)
    }

    pub(super) async fn make_network(
        &self,
        network: &NetworkSpec,
    ) -> Result<NetworkFacts, DockerError> {
        match self.inspect_network(&network.name).await {
            Err(error) if error.is_not_found() => {}
            other => return other.map(|found| network_facts(&found)),
        }
        let config = IpamConfig { subnet: Some(network.subnet.clone()), ..Default::default() };
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some("bridge".to_owned()),
            ipam: (!network.subnet.is_empty())
                .then(|| Ipam { config: Some(vec![config]), ..Default::default() }),
            options: Some(HashMap::from([
                (ICC.to_owned(), "false".to_owned()),
                (BRIDGE.to_owned(), network.bridge.clone()),
            ])),
            labels: Some(HashMap::from([(label::NETWORK.to_owned(), network.name.clone())])),
            ..Default::default()
        };
        match self.within("create network", SLOW, self.client.create_network(request)).await {
            Ok(_) | Err(DockerError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        self.inspect_network(&network.name).await.map(|found| network_facts(&found))
    }

    async fn inspect_network(&self, name: &str) -> Result<NetworkInspect, DockerError> {
        let call = self.client.inspect_network(name, None::<InspectNetworkOptions>);
        self.within("inspect network", QUICK, call).await
    }
}

fn network_facts(network: &NetworkInspect) -> NetworkFacts {
    let options = network.options.clone().unwrap_or_default();
    let configs = network.ipam.as_ref().and_then(|ipam| ipam.config.clone()).unwrap_or_default();
    // Docker names a bridge after the network's id when it was given no name.
    let default_bridge =
        network.id.as_deref().and_then(|id| id.get(..12)).map(|id| format!("br-{id}"));
    NetworkFacts {
        bridge: options.get(BRIDGE).cloned().or(default_bridge).unwrap_or_default(),
        isolated: options.get(ICC).is_some_and(|value| value == "false"),
        subnets: configs.into_iter().filter_map(|config| config.subnet).collect(),
    }
}

fn is_new_enough(api: &str) -> bool {
    let parsed = api.split_once('.').map(|(major, minor)| (major.parse(), minor.parse()));
    matches!(parsed, Some((Ok(major), Ok(minor))) if (major, minor) >= OLDEST_API)
}

fn backing_filesystem(info: &SystemInfo) -> String {
    let status = info.driver_status.iter().flatten();
    status
        .filter_map(|pair| match pair.as_slice() {
            [name, value] if name == "Backing Filesystem" => Some(value.clone()),
            _ => None,
        })
        .next()
        .unwrap_or_default()
}

fn cdi_devices(info: &SystemInfo) -> Vec<String> {
    let devices = info.discovered_devices.iter().flatten();
    devices.filter_map(|device| device.id.clone()).collect()
}

/// Docker 29 lists CDI devices; older engines do not say whether the hook is there, so for an
/// engine of this machine the usual places are looked at, and the runtimes it knows.
fn gpu_support(info: &SystemInfo, local: bool) -> GpuSupport {
    if cdi_devices(info).iter().any(|id| id.starts_with("nvidia.com/gpu=")) {
        return GpuSupport::Cdi;
    }
    let places = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"];
    let has_hook =
        || places.iter().any(|dir| Path::new(dir).join("nvidia-container-runtime-hook").exists());
    let has_runtime = info.runtimes.as_ref().is_some_and(|all| all.contains_key("nvidia"));
    if has_runtime || (local && has_hook()) { GpuSupport::Hook } else { GpuSupport::None }
}

/// Returns whether the filesystem that holds `root_dir` counts by project, which is what limits
/// one container's or volume's size on xfs.
fn has_project_quota(mounts: &str, root_dir: &str) -> bool {
    let holds = |mount: &str| {
        mount == "/" || root_dir == mount || root_dir.starts_with(&format!("{mount}/"))
    };
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(mount, ..)| holds(mount))
        // The longest mount wins, and of equal ones the last, which lies on top.
        .max_by_key(|(mount, ..)| mount.len())
        .is_some_and(|(_, filesystem, options)| {
            filesystem == "xfs" && options.split(',').any(|o| o == "prjquota" || o == "pquota")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_before_1_41_are_too_old() {
        assert!(["1.41", "1.44", "1.100", "2.0"].iter().all(|api| is_new_enough(api)));
        assert!(!["1.40", "1.9", "", "x", "1."].iter().any(|api| is_new_enough(api)));
    }

    #[test]
    fn project_quota_is_read_from_the_mount_that_holds_the_data() {
        let mounts = "/dev/a / ext4 rw 0 0\n/dev/b /var/lib/docker xfs rw,prjquota 0 0\n\
                      /dev/c /var/lib/dockerish xfs rw 0 0\n";

        assert!(has_project_quota(mounts, "/var/lib/docker"));
        assert!(has_project_quota(mounts, "/var/lib/docker/overlay2"));
        assert!(!has_project_quota(mounts, "/var/lib/dockerish"));
        assert!(!has_project_quota(mounts, "/srv"));
        assert!(!has_project_quota("", "/srv"));
    }
}
