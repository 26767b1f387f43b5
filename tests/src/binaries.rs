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
    // A test binary lies in target/<profile>/deps.
    let test = std::env::current_exe().expect("own path");
    let profile = test.parent().and_then(Path::parent).expect("target folder").to_owned();
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--bins", "-p", "tianqi-controller", "-p", "tianqi-agent"])
        .args(["-p", "tianqi-tests"])
        .args(if profile.ends_with("release") { &["--release"][..] } else { &[] })
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the programs under test do not build");
    profile
}
