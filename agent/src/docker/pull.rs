//! Pure parts of fetching an image: its reference, and how far all layers together are.

use std::collections::BTreeMap;

use super::{DockerError, PullProgress};

/// Longest image reference.
const REFERENCE_MAX: usize = 512;
/// Most layers that are told apart; Docker itself stops at 127.
const LAYERS_MAX: usize = 1_024;

/// Checks that `reference` can stand in a path of Docker's API.
///
/// # Errors
///
/// [`DockerError::Refused`] with what is wrong.
pub fn check_reference(reference: &str) -> Result<(), DockerError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
    let first = reference.chars().next();
    let is_fine = reference.len() <= REFERENCE_MAX
        && first.is_some_and(|c| c.is_ascii_alphanumeric())
        && reference.chars().all(allowed)
        && !reference.contains("..")
        && !reference.contains("//");
    if is_fine {
        return Ok(());
    }
    Err(DockerError::Refused {
        status: 400,
        message: format!("invalid reference format: {reference:?} is not the name of an image"),
    })
}

/// Returns `reference` with a tag: without one, Docker fetches every tag there is.
#[must_use]
pub fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains(':') || reference.contains('@') {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    }
}

/// Returns the registry that `reference` names, as Docker keys credentials.
#[must_use]
pub fn registry(reference: &str) -> String {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "https://index.docker.io/v1/".to_owned(),
    }
}

/// How far the layers of one image are.
#[derive(Debug, Default)]
pub struct Layers {
    /// Fetched and whole bytes by layer.
    layers: BTreeMap<String, (u64, u64)>,
}

impl Layers {
    /// Takes one of Docker's messages in and returns how far all layers together are.
    pub fn update(
        &mut self,
        layer: &str,
        status: &str,
        current: Option<u64>,
        total: Option<u64>,
    ) -> PullProgress {
        let is_known = self.layers.contains_key(layer);
        let names_layer = !layer.is_empty() && (is_known || self.layers.len() < LAYERS_MAX);
        match (status, current) {
            ("Downloading", Some(current)) if names_layer => {
                let (done, whole) = self.layers.entry(layer.to_owned()).or_default();
                *whole = total.unwrap_or(current).max(*whole);
                *done = current.min(*whole).max(*done);
            }
            ("Download complete" | "Verifying Checksum" | "Pull complete", _) if is_known => {
                if let Some((done, whole)) = self.layers.get_mut(layer) {
                    *done = *whole;
                }
            }
            _ => {}
        }
        let sum = |pick: fn(&(u64, u64)) -> u64| {
            self.layers.values().map(pick).fold(0_u64, u64::saturating_add)
        };
        PullProgress {
            done_bytes: sum(|layer| layer.0),
            total_bytes: sum(|layer| layer.1),
            status: status.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_sums_layers_and_never_goes_back() {
        let mut layers = Layers::default();
        layers.update("a", "Pulling fs layer", None, None);
        layers.update("a", "Downloading", Some(10), Some(100));
        layers.update("b", "Downloading", Some(5), Some(50));
        let both = layers.update("a", "Downloading", Some(60), Some(100));
        assert_eq!((both.done_bytes, both.total_bytes), (65, 150));

        layers.update("a", "Download complete", None, None);
        let unpacking = layers.update("a", "Extracting", Some(1), Some(100));
        assert_eq!((unpacking.done_bytes, unpacking.total_bytes), (105, 150));
        assert_eq!(unpacking.status, "Extracting");
        let retried = layers.update("b", "Downloading", Some(1), Some(50));
        assert_eq!(retried.done_bytes, 105);
    }

    #[test]
    fn references_without_tag_get_one_so_that_not_every_tag_is_fetched() {
        assert_eq!(with_tag("busybox"), "busybox:latest");
        assert_eq!(with_tag("reg.example:5000/a/b"), "reg.example:5000/a/b:latest");
        assert_eq!(with_tag("reg.example:5000/a/b:1.2"), "reg.example:5000/a/b:1.2");
        assert_eq!(with_tag("a@sha256:00"), "a@sha256:00");
        assert_eq!(registry("reg.example:5000/a/b:1"), "reg.example:5000");
        assert_eq!(registry("library/busybox:1"), "https://index.docker.io/v1/");
    }

    #[test]
    fn references_that_would_leave_the_path_are_refused() {
        let long = "a".repeat(600);
        for bad in
            ["", "../secrets", "a/../../info", "a?b=c", "a#b", "a b", "名", "/a", "-a", &long]
        {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
        check_reference("sha256:0123").unwrap();
        check_reference("reg.example:5000/team/app_x:1.2-rc.1").unwrap();
    }
}
