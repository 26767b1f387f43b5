//! The configuration: a TOML file, overridden by the environment, checked before anything starts.
//!
//! `TIANQI_` + section + `__` + key overrides a key: `TIANQI_HTTP__LISTEN`, `TIANQI_DATA_DIR`.

mod forwards;
mod identity;
mod jumpbox;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::core::http::proxy::Network;
use crate::core::http::rate::Rate;
use crate::core::secret::Secret;

pub use forwards::{Forwards, PortRange};
pub use identity::{Passwords, Tokens};
pub use jumpbox::Jumpbox;

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys, the SQLite database and the admin socket are.
    pub data_dir: PathBuf,
    /// The database.
    pub database: Database,
    /// Console and API.
    pub http: Http,
    /// How often people and programs may ask.
    pub limits: Limits,
    /// Agents.
    pub agents: Agents,
    /// Port forwards.
    pub forwards: Forwards,
    /// SSH.
    pub jumpbox: Jumpbox,
    /// Sessions.
    pub sessions: Sessions,
    /// The audit.
    pub audit: Audit,
    /// Passwords.
    pub passwords: Passwords,
    /// API tokens.
    pub tokens: Tokens,
    /// The log.
    pub log: Log,
}

/// `[database]`
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite:…`, `postgres://…` or `mysql://…`; empty for `sqlite:<data_dir>/tianqi.db`.
    pub url: String,
    /// Most connections in the pool.
    pub max_connections: u32,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where console and API listen.
    pub listen: SocketAddr,
    /// PEM of the certificate chain; with it and `tls_key` the port speaks TLS.
    pub tls_cert: Option<PathBuf>,
    /// PEM of the certificate's key.
    pub tls_key: Option<PathBuf>,
    /// The address people type, such as `https://gpu.example.org`.
    pub public_url: Option<String>,
    /// Addresses and networks of proxies whose `x-forwarded-for` and `x-forwarded-proto` are
    /// believed.
    pub trusted_proxies: Vec<Network>,
    /// Seconds that the head of a request may take, and that a connection may stand idle.
    pub head_seconds: u32,
    /// Seconds until the answer to a request begins; the body must have arrived by then.
    pub request_seconds: u32,
    /// Most connections at once.
    pub connections: u32,
    /// Most connections at once of one address that is no trusted proxy.
    pub connections_per_address: u32,
}

/// `[limits]`: requests per second in the long run, and how many at once. 0 per second is no limit.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of one address (IPv6: of one /64).
    pub address_per_second: u32,
    /// Of one address at once.
    pub address_burst: u32,
    /// Of one account.
    pub account_per_second: u32,
    /// Of one account at once.
    pub account_burst: u32,
}

/// `[agents]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Where agents connect (UDP).
    pub listen: SocketAddr,
    /// The `HOST:PORT` that agents dial, shown beside join tokens.
    pub public_address: Option<String>,
    /// Days that an agent's certificate is valid.
    pub certificate_days: u32,
}

/// `[sessions]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Minutes without use after which a session ends.
    pub idle_minutes: u32,
    /// Hours after which a session ends.
    pub absolute_hours: u32,
}

/// `[audit]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// Days after which rows of the audit are removed; 0 keeps them for ever.
    pub retention_days: u32,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,tianqi_controller=debug`.
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
            data_dir: PathBuf::from("/var/lib/tianqi"),
            database: Database::default(),
            http: Http::default(),
            limits: Limits::default(),
            agents: Agents::default(),
            forwards: Forwards::default(),
            jumpbox: Jumpbox::default(),
            sessions: Sessions::default(),
            audit: Audit::default(),
            passwords: Passwords::default(),
            tokens: Tokens::default(),
            log: Log::default(),
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self { url: String::new(), max_connections: 16 }
    }
}

impl std::fmt::Debug for Database {
    /// Leaves out the URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("engine", &self.url.split(':').next())
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8890)),
            tls_cert: None,
            tls_key: None,
            public_url: None,
            trusted_proxies: Vec::new(),
            head_seconds: 30,
            request_seconds: 60,
            connections: 8_192,
            connections_per_address: 1_024,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            address_per_second: 200,
            address_burst: 1_000,
            account_per_second: 100,
            account_burst: 500,
        }
    }
}

impl Limits {
    /// Lets everybody ask as often as they like.
    #[must_use]
    pub fn none() -> Self {
        Self { address_per_second: 0, account_per_second: 0, ..Self::default() }
    }

    /// Returns what one address may ask.
    #[must_use]
    pub fn address(&self) -> Rate {
        Rate { per_second: self.address_per_second, burst: self.address_burst }
    }

    /// Returns what one account may ask.
    #[must_use]
    pub fn account(&self) -> Rate {
        Rate { per_second: self.account_per_second, burst: self.account_burst }
    }
}

impl Http {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid =
            |key, problem: &str| Err(ConfigError::Invalid { key, problem: problem.to_owned() });
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return invalid("http.tls_cert", "set tls_cert and tls_key both, or neither");
        }
        if let Some(url) = &self.public_url
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            return invalid("http.public_url", "must begin with https:// or http://");
        }
        if !(1..=3_600).contains(&self.head_seconds) {
            return invalid("http.head_seconds", "must be 1 to 3600");
        }
        if !(1..=3_600).contains(&self.request_seconds) {
            return invalid("http.request_seconds", "must be 1 to 3600");
        }
        if self.connections == 0 || self.connections_per_address == 0 {
            return invalid("http.connections", "both limits of connections must be at least 1");
        }
        Ok(())
    }
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8891)),
            public_address: None,
            certificate_days: 30,
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { idle_minutes: 720, absolute_hours: 168 }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { retention_days: 180 }
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
        let source =
            config::File::from(file).format(config::FileFormat::Toml).required(is_required);
        // Other variables with our prefix, such as TIANQI_ADMIN_PASSWORD, are not keys.
        let keys =
            std::env::vars().filter(|(name, _)| name == "TIANQI_DATA_DIR" || name.contains("__"));
        let environment = config::Environment::with_prefix("TIANQI")
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("http.trusted_proxies")
            .with_list_parse_key("forwards.user_addresses")
            .with_list_parse_key("forwards.reserved_ports")
            .source(Some(keys.collect()));
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
        let invalid =
            |key, problem: &str| Err(ConfigError::Invalid { key, problem: problem.to_owned() });
        if !(1..=1_000).contains(&self.database.max_connections) {
            return invalid("database.max_connections", "must be 1 to 1000");
        }
        let engine = self.database.url.split(':').next().unwrap_or_default();
        if !matches!(engine, "" | "sqlite" | "postgres" | "postgresql" | "mysql" | "mariadb") {
            return invalid("database.url", "must begin with sqlite:, postgres: or mysql:");
        }
        self.http.check()?;
        if self.limits.address_burst == 0 || self.limits.account_burst == 0 {
            return invalid("limits", "a burst must be at least 1; 0 per second is no limit");
        }
        if !(1..=365).contains(&self.agents.certificate_days) {
            return invalid("agents.certificate_days", "must be 1 to 365");
        }
        if self.sessions.idle_minutes == 0 || self.sessions.absolute_hours == 0 {
            return invalid("sessions", "idle_minutes and absolute_hours must be at least 1");
        }
        if self.audit.retention_days > 36_500 {
            return invalid("audit.retention_days", "must be 0 (for ever) to 36500 (100 years)");
        }
        self.forwards.check()?;
        self.jumpbox.check()?;
        self.passwords.check()?;
        self.tokens.check()?;
        Ok(())
    }

    /// Returns the password that the operator chose for the first account
    /// (`TIANQI_ADMIN_PASSWORD`), if any. It is no key: it counts at the first start alone.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "configuration enters here")]
    pub fn admin_password() -> Option<Secret> {
        let password = std::env::var("TIANQI_ADMIN_PASSWORD").ok()?;
        (!password.is_empty()).then(|| Secret::new(password))
    }

    /// Returns the database's URL, with the default filled in.
    #[must_use]
    pub fn database_url(&self) -> String {
        if self.database.url.is_empty() {
            format!("sqlite:{}", self.data_dir.join("tianqi.db").display())
        } else {
            self.database.url.clone()
        }
    }

    /// Returns the origin of the public URL: scheme, host and port without a path.
    #[must_use]
    pub fn public_origin(&self) -> Option<String> {
        let url = self.http.public_url.as_deref()?;
        let (scheme, rest) = url.split_once("://")?;
        Some(format!("{scheme}://{}", rest.split('/').next()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("controller.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&file, true)
    }

    #[test]
    fn the_example_file_holds_every_key_with_its_default() {
        let example = include_str!("../../deploy/controller.example.toml");

        let loaded = load(example).unwrap();

        assert_eq!(format!("{loaded:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn an_unknown_key_and_a_value_that_cannot_work_are_refused_by_name() {
        assert!(load("[http]\nlistne = \"x\"").is_err());
        let error = load("[http]\ntls_cert = \"/x\"").unwrap_err().to_string();
        assert!(error.contains("http.tls_cert"), "{error}");
        let error = load("[http]\ntrusted_proxies = [\"10.0.0.0/99\"]").unwrap_err();
        let error = format!("{:?}", anyhow::Error::from(error));
        assert!(error.contains("10.0.0.0/99"), "{error}");
        let error = load("[limits]\naddress_burst = 0").unwrap_err().to_string();
        assert!(error.contains("limits"), "{error}");
        let error = load("[jumpbox]\nlogin_seconds = 0").unwrap_err().to_string();
        assert!(error.contains("jumpbox.login_seconds"), "{error}");
        let error = load("[database]\nurl = \"oracle:x\"").unwrap_err().to_string();
        assert!(error.contains("database.url"), "{error}");
    }

    #[test]
    fn the_database_password_is_never_printed() {
        let mut config = Config::default();
        config.database.url = "postgres://u:hunter2@h/d".to_owned();

        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
