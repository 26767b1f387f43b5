//! The programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the path of `tianqi-controller` or `tianqi-agent` as built from this source.
///
/// `make test` builds them first and says where by `TIANQI_TEST_BINARIES`; otherwise they are
/// built at the first call.
///
/// # Panics
///
/// When they cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(folder).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

fn folder() -> PathBuf {
    if let Ok(folder) = std::env::var("TIANQI_TEST_BINARIES") {
        return PathBuf::from(folder);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("target/test-binaries");
    let status = Command::new(root.join("deploy/local/build.sh")).arg(&folder).status();
    assert!(status.is_ok_and(|status| status.success()), "the programs under test do not build");
    folder
}
