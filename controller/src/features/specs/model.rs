//! What a spec is and what may be said of one.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::core::error::{Problem, Result};
use crate::core::number::{CpuCores, Money};
use crate::core::patch::Patch;
use crate::core::text;
use crate::core::timestamp::Timestamp;

const NAME_MAX: usize = 150;
const MODEL_MAX: usize = 150;
const REMARK_MAX: usize = 1_000;
/// Most cards of one instance; the largest machines hold 16.
const GPU_COUNT_MAX: u32 = 16;
/// Least memory of a slice: a CUDA context alone takes some 500 MiB.
const SLICE_MIB_MIN: u64 = 256;
/// Most GPU memory of one card, 1 TiB; no card has as much.
const GPU_MIB_MAX: u64 = 1 << 20;
/// Least memory of an instance; Docker refuses less than 6 MiB.
const MEMORY_MIB_MIN: u64 = 16;
/// Most memory of an instance, 64 TiB.
const MEMORY_MIB_MAX: u64 = 64 << 20;
/// Most disk of an instance, 1 PiB.
const DISK_GIB_MAX: u64 = 1 << 20;

/// Everything that a spec says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecFields {
    /// Unique among specs, at most 150 characters.
    pub name: String,
    /// The card's model as NVML names it, such as `NVIDIA L40`; any model when left out.
    #[serde(default)]
    pub gpu_model: Option<String>,
    /// Cards, 0 to 16; with `slicing` exactly 1.
    #[serde(default)]
    pub gpu_count: u32,
    /// Memory of the slice in MiB.
    #[serde(default)]
    pub gpu_memory_mib: Option<u64>,
    /// Share of the card's multiprocessors of the slice, 1 to 100; in proportion to its memory when
    /// left out.
    #[serde(default)]
    pub gpu_core_percent: Option<u32>,
    /// Whether the instance gets a slice of one card instead of whole cards.
    #[serde(default)]
    pub slicing: bool,
    /// CPU cores, at most 3 decimals.
    #[schema(value_type = f64)]
    pub cpu_cores: CpuCores,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the system disk in GiB; 0 for no limit.
    #[serde(default)]
    pub system_disk_gib: u64,
    /// Size of the volume at `/data` in GiB; 0 for none.
    #[serde(default)]
    pub data_disk_gib: u64,
    /// Price as decimal text, at most 6 decimals.
    #[serde(default)]
    #[schema(value_type = String)]
    pub price_per_hour: Money,
    /// Whether people may choose it.
    #[serde(default = "yes")]
    pub listed: bool,
    /// For admins, at most 1 000 characters.
    #[serde(default)]
    pub remark: String,
}

/// A change of a spec: what is left out stays, null clears.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchSpec {
    /// Another name.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Patch<String>,
    /// Another model; null for any.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub gpu_model: Patch<String>,
    /// Cards.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    pub gpu_count: Patch<u32>,
    /// Memory of the slice in MiB.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub gpu_memory_mib: Patch<u64>,
    /// Share of the card's multiprocessors.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    pub gpu_core_percent: Patch<u32>,
    /// Slice or whole cards.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub slicing: Patch<bool>,
    /// CPU cores.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub cpu_cores: Patch<CpuCores>,
    /// Memory in MiB.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub memory_mib: Patch<u64>,
    /// Size of the system disk in GiB.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub system_disk_gib: Patch<u64>,
    /// Size of the volume at `/data` in GiB.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub data_disk_gib: Patch<u64>,
    /// Price.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub price_per_hour: Patch<Money>,
    /// Whether people may choose it.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub listed: Patch<bool>,
    /// Another remark.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub remark: Patch<String>,
}

/// Which specs are wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SpecQuery {
    /// Part of the name.
    pub name: Option<String>,
    /// Part of the model.
    pub gpu_model: Option<String>,
    /// Whether people may choose it.
    pub listed: Option<bool>,
    /// Slices, or whole cards and none.
    pub slicing: Option<bool>,
    /// Made at this time or later.
    #[param(value_type = Option<String>)]
    pub created_after: Option<Timestamp>,
    /// Made before this time.
    #[param(value_type = Option<String>)]
    pub created_before: Option<Timestamp>,
    /// Page, from 1.
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
    /// `name`, `gpu_count`, `cpu_cores`, `memory_mib`, `price_per_hour` or `created_at`; `-` before it
    /// turns the order.
    pub sort: Option<String>,
}

/// A spec.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Spec {
    /// Its id.
    pub id: Uuid,
    /// What it says.
    #[serde(flatten)]
    pub fields: SpecFields,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

fn yes() -> bool {
    true
}

fn refuse<T>(detail: impl Into<String>) -> Result<T> {
    Err(Problem::invalid("bad_field", detail))
}

fn within(field: &str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    refuse(format!("{field} is {min} to {max}; {value} was given"))
}

impl SpecFields {
    /// Checks every field, alone and together.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) naming the field and what to write.
    pub(super) fn check(&self) -> Result<()> {
        text::line("name", &self.name, 1, NAME_MAX)?;
        text::block("remark", &self.remark, REMARK_MAX)?;
        within("memory_mib", self.memory_mib, MEMORY_MIB_MIN, MEMORY_MIB_MAX)?;
        within("system_disk_gib", self.system_disk_gib, 0, DISK_GIB_MAX)?;
        within("data_disk_gib", self.data_disk_gib, 0, DISK_GIB_MAX)?;
        within("gpu_count", u64::from(self.gpu_count), 0, u64::from(GPU_COUNT_MAX))?;
        if let Some(model) = &self.gpu_model {
            text::line("gpu_model", model, 1, MODEL_MAX)?;
        }
        match (self.slicing, self.gpu_count) {
            (true, 1) => self.check_slice(),
            (true, _) => refuse("slicing needs gpu_count 1: a slice is a part of one card"),
            (false, _) if self.gpu_memory_mib.is_some() || self.gpu_core_percent.is_some() => {
                refuse(
                    "gpu_memory_mib and gpu_core_percent are for slices; whole cards come with all they have",
                )
            }
            (false, 0) if self.gpu_model.is_some() => refuse(
                "gpu_model needs gpu_count of at least 1; leave it out for a spec without cards",
            ),
            (false, _) => Ok(()),
        }
    }

    fn check_slice(&self) -> Result<()> {
        let Some(memory) = self.gpu_memory_mib else {
            return refuse("slicing needs gpu_memory_mib");
        };
        within("gpu_memory_mib", memory, SLICE_MIB_MIN, GPU_MIB_MAX)?;
        match self.gpu_core_percent {
            Some(cores) => within("gpu_core_percent", u64::from(cores), 1, 100),
            None => Ok(()),
        }
    }

    /// Lays `patch` over these fields and checks the result.
    ///
    /// # Errors
    ///
    /// `bad_field` (422).
    pub(super) fn patched(self, patch: PatchSpec) -> Result<Self> {
        let fields = Self {
            name: patch.name.over_required("name", self.name)?,
            gpu_model: patch.gpu_model.over(self.gpu_model),
            gpu_count: patch.gpu_count.over_required("gpu_count", self.gpu_count)?,
            gpu_memory_mib: patch.gpu_memory_mib.over(self.gpu_memory_mib),
            gpu_core_percent: patch.gpu_core_percent.over(self.gpu_core_percent),
            slicing: patch.slicing.over_required("slicing", self.slicing)?,
            cpu_cores: patch.cpu_cores.over_required("cpu_cores", self.cpu_cores)?,
            memory_mib: patch.memory_mib.over_required("memory_mib", self.memory_mib)?,
            system_disk_gib: patch
                .system_disk_gib
                .over_required("system_disk_gib", self.system_disk_gib)?,
            data_disk_gib: patch
                .data_disk_gib
                .over_required("data_disk_gib", self.data_disk_gib)?,
            price_per_hour: patch
                .price_per_hour
                .over_required("price_per_hour", self.price_per_hour)?,
            listed: patch.listed.over_required("listed", self.listed)?,
            remark: patch.remark.over_required("remark", self.remark)?,
        };
        fields.check()?;
        Ok(fields)
    }
}
