//! The Docker engine and the slicing library in use: the configuration, overridden by what an admin
//! set on the node's page. The last settings are kept, because a reboot needs no controller.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tianqi_common::wire::desired::NodeSettings;
use tianqi_common::wire::observed::{DockerState, DockerStatus};
use tianqi_common::wire::stream::CheckReport;
use tokio::sync::watch;

use crate::config::Config;
use crate::docker::endpoint::Endpoint;
use crate::docker::engine::Engine;
use crate::docker::{Docker, DockerError, DockerHandle};
use crate::enroll::identity::write_bytes;
use crate::gpu::hami::HamiInjector;
use crate::streams::SettingsCheck;

/// Name of the file in the data directory; it may hold a key.
const FILE: &str = "settings.json";
/// How long a tried engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// Returns the settings that were kept, if they can be read.
pub(super) fn kept(data_dir: &Path) -> NodeSettings {
    let Ok(text) = std::fs::read(data_dir.join(FILE)) else { return NodeSettings::default() };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "the settings of the node's page were not kept well; the controller sends them again");
        NodeSettings::default()
    })
}

fn keep(data_dir: &Path, settings: &NodeSettings) {
    let written =
        serde_json::to_vec(settings).map_err(|error| error.to_string()).and_then(|text| {
            write_bytes(&data_dir.join(FILE), &text).map_err(|error| error.to_string())
        });
    if let Err(error) = written {
        tracing::error!(error, "the settings of the node's page were not kept");
    }
}

/// Returns the endpoint that configuration and settings give together.
fn endpoint(config: &Config, settings: &NodeSettings) -> Result<Endpoint, DockerError> {
    if let Some(url) = settings.docker_endpoint.as_deref().filter(|url| !url.is_empty()) {
        let (ca, cert, key) =
            (&settings.docker_tls_ca, &settings.docker_tls_cert, &settings.docker_tls_key);
        return Endpoint::parse(url, ca.as_deref(), cert.as_deref(), key.as_deref());
    }
    let read = |file: &Option<PathBuf>| match file {
        Some(file) => std::fs::read_to_string(file).map(Some).map_err(|error| {
            DockerError::Endpoint(format!("{} cannot be read: {error}", file.display()))
        }),
        None => Ok(None),
    };
    let docker = &config.docker;
    let (ca, cert, key) = (read(&docker.tls_ca)?, read(&docker.tls_cert)?, read(&docker.tls_key)?);
    Endpoint::parse(&docker.endpoint, ca.as_deref(), cert.as_deref(), key.as_deref())
}

/// Makes the engine that configuration and settings give together. Nothing is dialled yet.
pub(super) fn engine(config: &Config, settings: &NodeSettings) -> Result<Engine, DockerError> {
    let endpoint = endpoint(config, settings)?;
    if endpoint.is_in_clear() {
        tracing::warn!(
            "the Docker engine is spoken to without TLS: whoever can read or change that traffic is \
             root on its machine"
        );
    }
    Engine::new(endpoint)
}

/// Returns the directory of the slicing library.
pub(super) fn hami_dir(config: &Config, settings: &NodeSettings) -> PathBuf {
    let set = settings.hami_dir.as_deref().filter(|dir| !dir.is_empty());
    set.map_or_else(|| config.hami.dir.clone(), PathBuf::from)
}

/// Follows the settings of the node's page until the link is gone.
pub(super) async fn follow(
    config: Arc<Config>,
    docker: DockerHandle,
    hami: Arc<HamiInjector>,
    mut settings: watch::Receiver<Option<NodeSettings>>,
    mut used: NodeSettings,
) {
    while settings.changed().await.is_ok() {
        let Some(newest) = settings.borrow_and_update().clone() else { continue };
        if newest == used {
            continue;
        }
        match engine(&config, &newest) {
            Ok(engine) => docker.swap(Arc::new(engine)),
            Err(error) => {
                tracing::error!(%error, "the Docker endpoint of the node's page is not used")
            }
        }
        hami.set_dir(hami_dir(&config, &newest));
        keep(&config.data_dir, &newest);
        tracing::info!("the settings of the node's page are in use");
        used = newest;
    }
}

/// Tries settings beside those in use.
pub(super) struct Trial {
    pub(super) config: Arc<Config>,
}

impl SettingsCheck for Trial {
    fn check(&self, settings: NodeSettings) -> BoxFuture<'_, CheckReport> {
        Box::pin(async move {
            let tried = async {
                let engine = engine(&self.config, &settings)?;
                engine.engine().await
            };
            let (docker, engine) = match tokio::time::timeout(PATIENCE, tried).await {
                Ok(Ok(engine)) => {
                    let state =
                        DockerState { status: DockerStatus::Connected, reason: String::new() };
                    (state, Some(engine))
                }
                Ok(Err(error)) => (failed(&chain(&error)), None),
                Err(_) => (failed(&format!("no answer within {} s", PATIENCE.as_secs())), None),
            };
            let hami =
                HamiInjector::new(self.config.data_dir.clone(), hami_dir(&self.config, &settings));
            let library = tokio::task::spawn_blocking(move || hami.library()).await;
            let (hami_sha256, hami_problem) = match library {
                Ok(library) => (library.sha256, library.unusable),
                Err(error) => (String::new(), error.to_string()),
            };
            CheckReport { docker, engine, hami_sha256, hami_problem }
        })
    }
}

fn failed(reason: &str) -> DockerState {
    DockerState { status: DockerStatus::Failed, reason: reason.to_owned() }
}

/// Puts an error and its causes into one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::endpoint::Address;

    #[test]
    fn the_nodes_page_goes_before_the_configuration_and_empty_fields_do_not() {
        let config = Config::default();
        let page = NodeSettings {
            docker_endpoint: Some("tcp://10.0.0.1:2375".to_owned()),
            hami_dir: Some("/opt/hami".to_owned()),
            ..NodeSettings::default()
        };
        let empty = NodeSettings {
            docker_endpoint: Some(String::new()),
            hami_dir: Some(String::new()),
            ..NodeSettings::default()
        };

        assert!(matches!(endpoint(&config, &page).unwrap().address, Address::Tcp { .. }));
        assert!(endpoint(&config, &empty).unwrap().is_local());
        assert_eq!(hami_dir(&config, &page), Path::new("/opt/hami"));
        assert_eq!(hami_dir(&config, &empty), config.hami.dir);
    }

    #[test]
    fn settings_are_kept_over_a_restart_and_damage_is_no_reason_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let settings = NodeSettings { hami_dir: Some("/h".to_owned()), ..NodeSettings::default() };

        keep(folder.path(), &settings);
        assert_eq!(kept(folder.path()), settings);

        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(kept(folder.path()), NodeSettings::default());
    }

    #[tokio::test]
    async fn trying_an_engine_that_is_not_there_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        let trial = Trial { config: Arc::new(config) };
        let settings = NodeSettings {
            docker_endpoint: Some("unix:///nonexistent/docker.sock".to_owned()),
            hami_dir: Some("/nonexistent".to_owned()),
            ..NodeSettings::default()
        };

        let report = trial.check(settings).await;

        assert_eq!(report.docker.status, DockerStatus::Failed);
        assert!(!report.docker.reason.is_empty() && !report.hami_problem.is_empty());
        assert_eq!(report.engine, None);
    }
}
