//! What requests and answers about quotas hold.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tianqi_common::unit::Millicores;
use tianqi_scheduler::quota::{Amounts, Limits, Setting, Settings};
use utoipa::openapi::schema::{OneOfBuilder, Type};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::core::number::CpuCores;
use crate::core::timestamp::Timestamp;

/// Largest limit that is not "unlimited": what every reader of JSON keeps exactly.
const COUNT_MAX: u64 = (1 << 53) - 1;
/// How "no limit, whatever the role's row says" is written.
const UNLIMITED: &str = "unlimited";

/// What a row says: a limit, `"unlimited"`, or null for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QuotaFields {
    /// Instances that nobody has asked to delete.
    pub instances: Option<Count>,
    /// Whole cards of instances that should run.
    pub gpus: Option<Count>,
    /// Memory of slices of instances that should run, in MiB.
    pub gpu_memory_mib: Option<Count>,
    /// CPU of instances that should run, at most 3 decimals.
    pub cpu_cores: Option<Cores>,
    /// Memory of instances that should run, in MiB.
    pub memory_mib: Option<Count>,
    /// Disk of instances that exist, in GiB.
    pub disk_gib: Option<Count>,
}

/// A number, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub Setting);

/// A number of CPU cores, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cores(pub Setting);

/// The most that an account may have; null for no limit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitsView {
    instances: Option<u64>,
    gpus: Option<u64>,
    gpu_memory_mib: Option<u64>,
    #[schema(value_type = Option<f64>)]
    cpu_cores: Option<CpuCores>,
    memory_mib: Option<u64>,
    disk_gib: Option<u64>,
}

/// What an account uses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsedView {
    instances: u64,
    gpus: u64,
    gpu_memory_mib: u64,
    #[schema(value_type = f64)]
    cpu_cores: CpuCores,
    memory_mib: u64,
    disk_gib: u64,
}

/// A row of the list: the quota of an account, or of a role.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuotaView {
    /// The account; null for a role's quota.
    pub user_id: Option<Uuid>,
    /// The account's name; null for a role's quota.
    pub user_name: Option<String>,
    /// The role; null for an account's quota.
    pub role: Option<String>,
    /// What the row says.
    pub quota: QuotaFields,
    /// When it was set last.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// What an account may have and uses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UserQuota {
    /// Which account.
    pub user_id: Uuid,
    /// Its name.
    pub user_name: String,
    /// Its role, whose quota fills what its own does not say.
    pub role: String,
    /// What its own row says; all null when there is none.
    pub quota: QuotaFields,
    /// What applies.
    pub limits: LimitsView,
    /// What it uses.
    pub used: UsedView,
}

/// What every account of a role may have, unless its own quota says otherwise.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoleQuota {
    /// Which role.
    pub role: String,
    /// What its row says; all null when there is none.
    pub quota: QuotaFields,
}

/// What the caller may have and uses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OwnQuota {
    /// What applies.
    pub limits: LimitsView,
    /// What counts.
    pub used: UsedView,
}

/// Which quotas are wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct QuotaQuery {
    /// Part of the name of the account or role.
    pub name: Option<String>,
    /// Page, from 1.
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
    /// `name` or `updated_at`; `-` before it turns the order.
    pub sort: Option<String>,
}

impl From<QuotaFields> for Settings {
    fn from(fields: QuotaFields) -> Self {
        let count = |field: Option<Count>| field.map(|Count(setting)| setting);
        Self {
            instances: count(fields.instances),
            gpus: count(fields.gpus),
            gpu_memory_mib: count(fields.gpu_memory_mib),
            cpu_millicores: fields.cpu_cores.map(|Cores(setting)| setting),
            memory_mib: count(fields.memory_mib),
            disk_gib: count(fields.disk_gib),
        }
    }
}

impl From<Settings> for QuotaFields {
    fn from(settings: Settings) -> Self {
        Self {
            instances: settings.instances.map(Count),
            gpus: settings.gpus.map(Count),
            gpu_memory_mib: settings.gpu_memory_mib.map(Count),
            cpu_cores: settings.cpu_millicores.map(Cores),
            memory_mib: settings.memory_mib.map(Count),
            disk_gib: settings.disk_gib.map(Count),
        }
    }
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        Self {
            instances: limits.instances,
            gpus: limits.gpus,
            gpu_memory_mib: limits.gpu_memory_mib,
            cpu_cores: limits.cpu_millicores.map(|millis| CpuCores(Millicores(millis))),
            memory_mib: limits.memory_mib,
            disk_gib: limits.disk_gib,
        }
    }
}

impl From<Amounts> for UsedView {
    fn from(used: Amounts) -> Self {
        Self {
            instances: used.instances,
            gpus: used.gpus,
            gpu_memory_mib: used.gpu_memory_mib,
            cpu_cores: CpuCores(Millicores(used.cpu_millicores)),
            memory_mib: used.memory_mib,
            disk_gib: used.disk_gib,
        }
    }
}

/// What a field may be in JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(serde_json::Number),
    Word(String),
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || {
            let what = format!("a limit is a whole number from 0 to {COUNT_MAX}, or {UNLIMITED:?}");
            serde::de::Error::custom(what)
        };
        match Written::deserialize(deserializer).map_err(|_| wrong())? {
            Written::Word(word) if word == UNLIMITED => Ok(Self(Setting::Unlimited)),
            Written::Word(_) => Err(wrong()),
            Written::Number(number) => match number.as_u64() {
                Some(limit) if limit <= COUNT_MAX => Ok(Self(Setting::AtMost(limit))),
                _ => Err(wrong()),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || {
            let what = format!("a limit of CPU cores is a number, or {UNLIMITED:?}");
            serde::de::Error::custom(what)
        };
        match Written::deserialize(deserializer).map_err(|_| wrong())? {
            Written::Word(word) if word == UNLIMITED => Ok(Self(Setting::Unlimited)),
            Written::Word(_) => Err(wrong()),
            Written::Number(number) => {
                let cores = CpuCores::parse_total(&number.to_string());
                let CpuCores(Millicores(millis)) = cores.map_err(serde::de::Error::custom)?;
                Ok(Self(Setting::AtMost(millis)))
            }
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Setting::Unlimited => serializer.serialize_str(UNLIMITED),
            Setting::AtMost(limit) => serializer.serialize_u64(limit),
        }
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Setting::Unlimited => serializer.serialize_str(UNLIMITED),
            Setting::AtMost(millis) => CpuCores(Millicores(millis)).serialize(serializer),
        }
    }
}

fn number_or_unlimited(number: Type) -> RefOr<Schema> {
    let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([UNLIMITED]));
    let number = ObjectBuilder::new().schema_type(number).minimum(Some(0));
    OneOfBuilder::new().item(number).item(word).into()
}

impl PartialSchema for Count {
    fn schema() -> RefOr<Schema> {
        number_or_unlimited(Type::Integer)
    }
}

impl ToSchema for Count {}

impl PartialSchema for Cores {
    fn schema() -> RefOr<Schema> {
        number_or_unlimited(Type::Number)
    }
}

impl ToSchema for Cores {}
