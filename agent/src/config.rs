//! The configuration: a TOML file, overridden by the environment, checked before anything starts.
//!
//! `TIANQI_` + section + `__` + key overrides a key: `TIANQI_DOCKER__ENDPOINT`, `TIANQI_DATA_DIR`.
//! What an admin set on the node's page overrides `[docker]` and `[hami]` in turn.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where identity, ledger and regions are.
    pub data_dir: PathBuf,
    /// The Docker engine.
    pub docker: Docker,
    /// The cards.
    pub gpu: Gpu,
    /// The slicing library.
    pub hami: Hami,
    /// The network of the instances.
    pub network: Network,
    /// The log.
    pub log: Log,
}

/// `[docker]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// `unix:///…` or `tcp://host:port`.
    pub endpoint: String,
    /// PEM file of the CA that signs the engine's certificate.
    pub tls_ca: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its key.
    pub tls_key: Option<PathBuf>,
}

/// `[gpu]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Path of the NVML library; the driver's own when absent.
    pub nvml_library: Option<PathBuf>,
    /// Imaginary cards, such as `2xNVIDIA-L40:46068`; real ones when empty.
    pub simulate: String,
}

/// `[hami]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hami {
    /// Directory that holds `libvgpu.so`.
    pub dir: PathBuf,
}

/// `[network]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Docker's name of the network.
    pub name: String,
    /// The bridge interface.
    pub bridge: String,
    /// IPv4 range such as `10.213.0.0/16`; Docker chooses when empty.
    pub subnet: String,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,tianqi_agent=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/tianqi-agent"),
            docker: Docker::default(),
            gpu: Gpu::default(),
            hami: Hami::default(),
            network: Network::default(),
            log: Log::default(),
        }
    }
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            endpoint: "unix:///var/run/docker.sock".to_owned(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}

impl Default for Hami {
    fn default() -> Self {
        Self { dir: PathBuf::from("/root/HAMi-core/build") }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { name: "tianqi".to_owned(), bridge: "tianqi0".to_owned(), subnet: String::new() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment does not parse.
    #[error("the configuration cannot be read")]
    Unreadable(#[source] config::ConfigError),
    /// A key has a value that cannot work.
    #[error("{key}: {problem}")]
    Invalid {
        /// Section and key.
        key: &'static str,
        /// What is wrong and what to write instead.
        problem: String,
    },
}

impl Config {
    /// Reads `file` (which may be missing when `is_required` is false) and the environment, and
    /// checks the result.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the key.
    pub fn load(file: &Path, is_required: bool) -> Result<Self, ConfigError> {
        Self::read(file, is_required, std::env::vars().filter(|(name, _)| is_key(name)).collect())
    }

    fn read(
        file: &Path,
        is_required: bool,
        variables: std::collections::HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let source =
            config::File::from(file).format(config::FileFormat::Toml).required(is_required);
        let environment = config::Environment::with_prefix("TIANQI")
            .prefix_separator("_")
            .separator("__")
            .source(Some(variables));
        let built = config::Config::builder().add_source(source).add_source(environment).build();
        let config: Self =
            built.and_then(config::Config::try_deserialize).map_err(ConfigError::Unreadable)?;
        config.check()?;
        Ok(config)
    }

    /// Checks what types alone cannot.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] naming the first key that cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        /// Linux allows no longer interface name.
        const INTERFACE_NAME_MAX: usize = 15;
        let invalid =
            |key, problem: &str| Err(ConfigError::Invalid { key, problem: problem.to_owned() });
        if !self.data_dir.is_absolute() {
            return invalid("data_dir", "must be an absolute path");
        }
        let docker = &self.docker;
        let is_tcp = docker.endpoint.starts_with("tcp://");
        if !is_tcp && !docker.endpoint.starts_with("unix:///") {
            return invalid("docker.endpoint", "must begin with unix:/// or tcp://");
        }
        let given = [&docker.tls_ca, &docker.tls_cert, &docker.tls_key];
        let count = given.iter().filter(|file| file.is_some()).count();
        if count != 0 && count != given.len() {
            return invalid("docker.tls_ca", "set tls_ca, tls_cert and tls_key all, or none");
        }
        if count != 0 && !is_tcp {
            return invalid("docker.tls_ca", "goes with a tcp:// endpoint, not with a unix socket");
        }
        if !self.hami.dir.is_absolute() {
            return invalid("hami.dir", "must be an absolute path");
        }
        if self.network.name.is_empty() {
            return invalid("network.name", "must not be empty");
        }
        if !(1..=INTERFACE_NAME_MAX).contains(&self.network.bridge.len()) {
            return invalid("network.bridge", "must have 1 to 15 characters");
        }
        Ok(())
    }
}

/// Whether a variable sets a key of ours: other programs of Tianqi share the prefix.
fn is_key(name: &str) -> bool {
    const SECTIONS: [&str; 5] = ["DOCKER__", "GPU__", "HAMI__", "NETWORK__", "LOG__"];
    let key = name.strip_prefix("TIANQI_").unwrap_or_default();
    key == "DATA_DIR" || SECTIONS.iter().any(|section| key.starts_with(section))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        with_environment(text, &[])
    }

    fn with_environment(text: &str, set: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        let variables: HashMap<_, _> =
            set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(&file, true, variables)
    }

    #[test]
    fn the_example_file_holds_the_defaults() {
        let example = include_str!("../../deploy/agent.example.toml");

        assert_eq!(load(example).unwrap(), Config::default());
    }

    #[test]
    fn a_missing_file_gives_the_defaults_unless_it_was_named() {
        let nowhere = Path::new("/nonexistent/agent.toml");

        assert_eq!(Config::read(nowhere, false, HashMap::new()).unwrap(), Config::default());
        assert!(Config::read(nowhere, true, HashMap::new()).is_err());
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let set = [("TIANQI_DATA_DIR", "/d"), ("TIANQI_GPU__SIMULATE", "1xA:5")];

        let loaded = with_environment("data_dir = \"/x\"", &set).unwrap();

        assert_eq!(loaded.data_dir, Path::new("/d"));
        assert_eq!(loaded.gpu.simulate, "1xA:5");
    }

    #[test]
    fn variables_of_the_controller_are_not_ours() {
        assert!(is_key("TIANQI_DATA_DIR") && is_key("TIANQI_DOCKER__TLS_CA"));
        assert!(!is_key("TIANQI_HTTP__LISTEN") && !is_key("TIANQI_CONFIG") && !is_key("GPU__X"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let cases = [
            ("data_dir = \"relative\"", "data_dir"),
            ("[docker]\nendpoint = \"http://x\"", "docker.endpoint"),
            ("[docker]\nendpoint = \"tcp://h:2376\"\ntls_ca = \"/ca\"", "docker.tls_ca"),
            ("[docker]\ntls_ca = \"/a\"\ntls_cert = \"/b\"\ntls_key = \"/c\"", "docker.tls_ca"),
            ("[hami]\ndir = \"x\"", "hami.dir"),
            ("[network]\nname = \"\"", "network.name"),
            ("[network]\nbridge = \"sixteencharacter\"", "network.bridge"),
        ];
        for (text, key) in cases {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with(key), "{text}: {error}");
        }
        assert!(load("[docker]\nendpiont = \"x\"").is_err());
        assert!(load("surprise = 1").is_err());
    }
}
