//! What an image is and what may be said of one.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::core::error::{Problem, Result};
use crate::core::patch::Patch;
use crate::core::secret::Secret;
use crate::core::text;
use crate::core::timestamp::Timestamp;

/// Longest address, in characters; Docker's own limit of a name is 255 and a digest adds 72.
const ADDRESS_MAX: usize = 500;
const NAME_MAX: usize = 150;
const SOURCE_MAX: usize = 255;
const TEXT_MAX: usize = 1_000;
const CREDENTIAL_MAX: usize = 4_096;

/// A new image.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateImage {
    /// Unique among images, at most 150 characters.
    pub name: String,
    /// The image reference as Docker takes it, such as `registry.example.org/team/pytorch:2.4`.
    pub address: String,
    /// At most 1 000 characters.
    #[serde(default)]
    pub description: String,
    /// Where it comes from, at most 255 characters.
    #[serde(default)]
    pub source: String,
    /// Whether it works with a part of a card; it needs glibc for that.
    #[serde(default)]
    pub supports_slicing: bool,
    /// Whether people may choose it.
    #[serde(default = "yes")]
    pub listed: bool,
    /// For admins, at most 1 000 characters.
    #[serde(default)]
    pub remark: String,
    /// Account at a private registry.
    #[serde(default)]
    pub registry_username: Option<String>,
    /// Its password or token. Stored sealed, never answered.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub registry_password: Option<Secret>,
}

/// A change of an image: what is left out stays, null clears.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchImage {
    /// Another name.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Patch<String>,
    /// Another address; instances that stand keep theirs.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Patch<String>,
    /// Another description.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// Another source.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub source: Patch<String>,
    /// Whether it works with a part of a card.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub supports_slicing: Patch<bool>,
    /// Whether people may choose it.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub listed: Patch<bool>,
    /// Another remark.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub remark: Patch<String>,
    /// Another registry account; null forgets account and password.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub registry_username: Patch<String>,
    /// Another registry password.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub registry_password: Patch<Secret>,
}

/// Which images are wanted.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ImageQuery {
    /// Part of the name.
    pub name: Option<String>,
    /// Part of the address.
    pub address: Option<String>,
    /// Part of the source.
    pub source: Option<String>,
    /// Whether people may choose it.
    pub listed: Option<bool>,
    /// Whether it works with a part of a card.
    pub supports_slicing: Option<bool>,
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
    /// `name`, `address` or `created_at`; `-` before it turns the order.
    pub sort: Option<String>,
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Image {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The image reference.
    pub address: String,
    /// For people.
    pub description: String,
    /// Where it comes from.
    pub source: String,
    /// Whether it works with a part of a card.
    pub supports_slicing: bool,
    /// Whether people may choose it.
    pub listed: bool,
    /// For admins.
    pub remark: String,
    /// Account at a private registry.
    pub registry_username: Option<String>,
    /// Whether a registry password is set.
    pub has_registry_password: bool,
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

impl CreateImage {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) naming the field and what to write.
    pub(super) fn check(&self) -> Result<()> {
        text::line("name", &self.name, 1, NAME_MAX)?;
        check_address(&self.address)?;
        text::block("description", &self.description, TEXT_MAX)?;
        text::line("source", &self.source, 0, SOURCE_MAX)?;
        text::block("remark", &self.remark, TEXT_MAX)?;
        check_credentials(
            self.registry_username.as_deref(),
            self.registry_password.as_ref().map(Secret::expose),
        )
    }
}

/// Both parts of a credential, or neither.
pub(super) fn check_credentials(username: Option<&str>, password: Option<&str>) -> Result<()> {
    match (username, password) {
        (None, None) => Ok(()),
        (Some(username), Some(password)) => {
            text::line("registry_username", username, 1, SOURCE_MAX)?;
            if (1..=CREDENTIAL_MAX).contains(&password.len()) {
                return Ok(());
            }
            let detail = format!("registry_password has 1 to {CREDENTIAL_MAX} bytes");
            Err(Problem::invalid("bad_field", detail))
        }
        _ => {
            let detail = "registry_username and registry_password go together; set both or neither";
            Err(Problem::invalid("bad_field", detail))
        }
    }
}

/// Checks the shape of an image reference. Whether it exists is found out by the pull.
///
/// # Errors
///
/// `bad_field` (422).
pub(super) fn check_address(address: &str) -> Result<()> {
    let is_allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':' | '@');
    let ends_well = |c: char| c.is_ascii_alphanumeric();
    let is_fine = !address.is_empty()
        && address.len() <= ADDRESS_MAX
        && address.chars().all(is_allowed)
        && address.starts_with(ends_well)
        && address.ends_with(ends_well)
        && !["//", "..", ":/", "/:"].iter().any(|bad| address.contains(bad));
    if is_fine {
        return Ok(());
    }
    let detail = format!(
        "address is an image reference of at most {ADDRESS_MAX} characters, such as registry.example.org/team/image:tag"
    );
    Err(Problem::invalid("bad_field", detail))
}

/// What of a row may change.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ImageFields {
    pub name: String,
    pub address: String,
    pub description: String,
    pub source: String,
    pub supports_slicing: bool,
    pub listed: bool,
    pub remark: String,
}

impl ImageFields {
    /// Lays `patch` over these fields and checks the result.
    ///
    /// # Errors
    ///
    /// `bad_field` (422).
    pub(super) fn patched(self, patch: &mut PatchImage) -> Result<Self> {
        let take = std::mem::take::<Patch<String>>;
        let fields = Self {
            name: take(&mut patch.name).over_required("name", self.name)?,
            address: take(&mut patch.address).over_required("address", self.address)?,
            description: take(&mut patch.description)
                .over_required("description", self.description)?,
            source: take(&mut patch.source).over_required("source", self.source)?,
            supports_slicing: patch
                .supports_slicing
                .over_required("supports_slicing", self.supports_slicing)?,
            listed: patch.listed.over_required("listed", self.listed)?,
            remark: take(&mut patch.remark).over_required("remark", self.remark)?,
        };
        text::line("name", &fields.name, 1, NAME_MAX)?;
        check_address(&fields.address)?;
        text::block("description", &fields.description, TEXT_MAX)?;
        text::line("source", &fields.source, 0, SOURCE_MAX)?;
        text::block("remark", &fields.remark, TEXT_MAX)?;
        Ok(fields)
    }
}
