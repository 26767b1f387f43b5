//! Where a person begins in a container.

use std::path::PathBuf;

/// Goes to where programs and paths begin, and returns it: the image's working directory, or the
/// user's home where the image names none.
pub(crate) fn begin() -> PathBuf {
    let is_named = std::env::current_dir().is_ok_and(|folder| folder.parent().is_some());
    if !is_named && let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        // A home that is missing or closed leaves the root.
        let _ = std::env::set_current_dir(home);
    }
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
}
