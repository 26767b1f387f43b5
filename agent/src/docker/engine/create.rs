//! The create body in bollard's words.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType,
    RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;

use super::{Engine, SLOW};
use crate::docker::model::GpuRequest;
use crate::docker::{CreateContainer, DockerError};

impl Engine {
    pub(super) async fn create_container(
        &self,
        container: &CreateContainer,
    ) -> Result<String, DockerError> {
        let options = CreateContainerOptionsBuilder::default().name(&container.name).build();
        let call = self.client.create_container(Some(options), body(container));
        Ok(self.within("create", SLOW, call).await?.id)
    }
}

fn body(container: &CreateContainer) -> ContainerCreateBody {
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    ContainerCreateBody {
        image: Some(container.image.clone()),
        entrypoint: some(&container.entrypoint),
        cmd: some(&container.cmd),
        env: some(&container.env),
        labels: Some(container.labels.clone().into_iter().collect()),
        // Output of a terminal cannot be told apart, and its logs are read by line.
        tty: Some(false),
        open_stdin: Some(container.keep_stdin_open),
        host_config: Some(host(container)),
        ..Default::default()
    }
}

fn host(container: &CreateContainer) -> HostConfig {
    let disk =
        container.disk_bytes.map(|bytes| HashMap::from([("size".to_owned(), bytes.to_string())]));
    HostConfig {
        nano_cpus: Some(container.nano_cpus),
        memory: Some(container.memory_bytes),
        memory_swap: Some(container.memory_bytes),
        pids_limit: Some(container.pids_limit),
        shm_size: Some(container.shm_bytes).filter(|bytes| *bytes > 0),
        cap_drop: Some(container.cap_drop.clone()),
        security_opt: Some(container.security_opt.clone()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some(container.log_driver.clone()),
            config: Some(container.log_options.clone().into_iter().collect()),
        }),
        network_mode: Some(container.network.clone()),
        storage_opt: disk,
        device_requests: devices(&container.gpus),
        mounts: Some(mounts(container)),
        init: Some(false),
        privileged: Some(false),
        ..Default::default()
    }
}

fn devices(gpus: &GpuRequest) -> Option<Vec<DeviceRequest>> {
    let request = match gpus {
        GpuRequest::None => return None,
        GpuRequest::Nvidia(uuids) => DeviceRequest {
            driver: Some("nvidia".to_owned()),
            device_ids: Some(uuids.clone()),
            capabilities: Some(vec![vec![
                "gpu".to_owned(),
                "compute".to_owned(),
                "utility".to_owned(),
            ]]),
            ..Default::default()
        },
        GpuRequest::Cdi(names) => DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(names.clone()),
            ..Default::default()
        },
    };
    Some(vec![request])
}

fn mounts(container: &CreateContainer) -> Vec<Mount> {
    let binds = container.binds.iter().map(|bind| Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.clone()),
        target: Some(bind.target.clone()),
        read_only: Some(bind.read_only),
        ..Default::default()
    });
    let volumes = container.volumes.iter().map(|(name, target)| Mount {
        typ: Some(MountType::VOLUME),
        source: Some(name.clone()),
        target: Some(target.clone()),
        read_only: Some(false),
        ..Default::default()
    });
    binds.chain(volumes).collect()
}
