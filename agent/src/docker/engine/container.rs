//! Containers and volumes of an engine, read and changed.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    StartContainerOptions, StopContainerOptionsBuilder,
};
use futures_util::stream::{self, StreamExt};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::GpuUuid;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{AFTER_GRACE, Engine, QUICK, SLOW};
use crate::docker::{Container, CreateVolume, DockerError, Run, Volume, label};

/// Containers inspected at once.
const INSPECTS: usize = 8;

impl Engine {
    pub(super) async fn list_containers(
        &self,
        of: Option<InstanceId>,
    ) -> Result<Vec<Container>, DockerError> {
        let options =
            ListContainersOptionsBuilder::default().all(true).filters(&by_label(of)).build();
        let listed = self.within("list", QUICK, self.client.list_containers(Some(options))).await?;
        let ids: Vec<String> = listed.into_iter().filter_map(|summary| summary.id).collect();
        let inspected: Vec<_> = stream::iter(ids)
            .map(|id| async move { self.inspect_ours(&id).await })
            .buffer_unordered(INSPECTS)
            .collect()
            .await;
        let mut found = Vec::with_capacity(inspected.len());
        for container in inspected {
            match container {
                Ok(container) => found.push(container),
                // It went away between list and inspect, or its label is not ours after all.
                Err(DockerError::NotFound { .. } | DockerError::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| (a.instance, &a.id).cmp(&(b.instance, &b.id)));
        Ok(found)
    }

    pub(super) async fn inspect_ours(&self, container: &str) -> Result<Container, DockerError> {
        let call = self.client.inspect_container(container, None::<InspectContainerOptions>);
        let answer = self.within("inspect", QUICK, call).await?;
        read(answer).ok_or_else(|| {
            DockerError::Unsupported(format!("container {container} is not one of tianqi's"))
        })
    }

    pub(super) async fn start_container(&self, container: &str) -> Result<(), DockerError> {
        let call = self.client.start_container(container, None::<StartContainerOptions>);
        self.within("start", SLOW, call).await
    }

    pub(super) async fn stop_container(
        &self,
        container: &str,
        grace: Duration,
    ) -> Result<(), DockerError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let call = self.client.stop_container(container, Some(options));
        self.within("stop", grace + AFTER_GRACE, call).await
    }

    pub(super) async fn remove_container(&self, container: &str) -> Result<(), DockerError> {
        let options = RemoveContainerOptionsBuilder::default().v(true).force(true).build();
        let call = self.client.remove_container(container, Some(options));
        match self.within("remove", SLOW, call).await {
            // Another removal of the same container is on its way and ends by itself.
            Err(DockerError::Conflict { message }) if message.contains("already in progress") => {
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    pub(super) async fn list_volumes(
        &self,
        instance: InstanceId,
    ) -> Result<Vec<Volume>, DockerError> {
        let options =
            ListVolumesOptionsBuilder::default().filters(&by_label(Some(instance))).build();
        let call = self.client.list_volumes(Some(options));
        let listed = self.within("list volumes", QUICK, call).await?;
        let volumes = listed.volumes.unwrap_or_default().into_iter();
        Ok(volumes.map(|v| Volume { name: v.name, mountpoint: v.mountpoint }).collect())
    }

    pub(super) async fn make_volume(&self, volume: &CreateVolume) -> Result<(), DockerError> {
        let body = bollard::models::VolumeCreateRequest {
            name: Some(volume.name.clone()),
            driver: Some("local".to_owned()),
            driver_opts: Some(volume.options.clone().into_iter().collect()),
            labels: Some(volume.labels.clone().into_iter().collect()),
            ..Default::default()
        };
        self.within("create volume", SLOW, self.client.create_volume(body)).await.map(drop)
    }

    pub(super) async fn drop_volume(&self, name: &str) -> Result<(), DockerError> {
        let call = self.client.remove_volume(name, None::<RemoveVolumeOptions>);
        match self.within("remove volume", SLOW, call).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    pub(super) async fn has_path(&self, container: &str, path: &str) -> Result<bool, DockerError> {
        let options = ContainerArchiveInfoOptionsBuilder::default().path(path).build();
        let call = self.client.get_container_archive_info(container, Some(options));
        match self.within("archive", QUICK, call).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn by_label(of: Option<InstanceId>) -> HashMap<String, Vec<String>> {
    let wanted = match of {
        Some(instance) => format!("{}={instance}", label::INSTANCE),
        None => label::INSTANCE.to_owned(),
    };
    HashMap::from([("label".to_owned(), vec![wanted])])
}

/// Reads what inspect shows; nothing when the container does not carry our label.
fn read(answer: ContainerInspectResponse) -> Option<Container> {
    let labels = answer.config.and_then(|config| config.labels).unwrap_or_default();
    let instance = labels.get(label::INSTANCE)?.parse().ok()?;
    let gpus = labels.get(label::GPUS).map(String::as_str).unwrap_or_default();
    let state = answer.state.unwrap_or_default();
    let code = state.exit_code.unwrap_or_default();
    let out_of_memory = state.oom_killed.unwrap_or_default();
    use ContainerStateStatusEnum as Status;
    let run = match state.status {
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING) => Run::Running,
        Some(Status::EXITED | Status::DEAD) => {
            Run::Exited { code, out_of_memory, error: state.error.unwrap_or_default() }
        }
        Some(Status::REMOVING) => Run::Removing,
        Some(Status::CREATED | Status::STOPPING | Status::EMPTY) | None => Run::Created,
    };
    Some(Container {
        id: answer.id?,
        name: answer.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        instance,
        generation: labels.get(label::GENERATION).and_then(|g| g.parse().ok()).unwrap_or(0),
        gpus: gpus.split(',').filter(|g| !g.is_empty()).map(|g| GpuUuid(g.to_owned())).collect(),
        limits: labels
            .get(label::LIMITS)
            .and_then(|limits| serde_json::from_str(limits).ok())
            .unwrap_or_default(),
        created_at: answer.created.as_deref().and_then(millis).unwrap_or_default(),
        started_at: state.started_at.as_deref().and_then(millis),
        finished_at: state.finished_at.as_deref().and_then(millis),
        run,
        volumes: answer
            .mounts
            .unwrap_or_default()
            .into_iter()
            .filter(|mount| mount.typ.as_deref() == Some("volume"))
            .filter_map(|mount| mount.name)
            .collect(),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0),
    })
}

/// Reads Docker's times; nothing for its zero time, year 1.
fn millis(text: &str) -> Option<UnixMillis> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    let millis = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()?;
    (millis > 0).then_some(UnixMillis(millis))
}
