//! Gives slices to containers with HAMi-core: the library, its preload line, and for every instance
//! a small filesystem with the region file and the lock directory.
//!
//! Under the agent's state directory: `hami/<sha256>/libvgpu.so` (immutable copies),
//! `hami/ld.so.preload`, and `regions/<instance>/` (a mount, empty after a reboot).

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::{GpuSlice, GpuUuid};
use tianqi_common::wire::inventory::HamiLibrary;

use super::inject::{InjectError, Injection, SliceInjector};
use super::library::{self, FILE_NAME, Library};
use super::region::{self, Region};
use super::slice::{self, SliceFiles};
use super::tmpfs;

/// Where HAMi-core's library is unless the configuration says otherwise.
pub const DEFAULT_DIR: &str = "/root/HAMi-core/build";
/// Beginning of the uuids of simulated cards.
const SIMULATED: &str = "SIM-";

/// What tells one state of the operator's file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    dir: PathBuf,
    /// Device, inode, size and modification time; nothing when there is no file.
    file: Option<(u64, u64, u64, i64, i64)>,
}

/// The library as it was last found.
#[derive(Clone, Debug)]
struct Found {
    stamp: Stamp,
    library: Result<Library, String>,
}

/// Gives slices to containers with HAMi-core. Its methods block on the disk.
#[derive(Debug)]
pub struct HamiInjector {
    data_dir: PathBuf,
    dir: Mutex<PathBuf>,
    found: Mutex<Option<Found>>,
}

impl HamiInjector {
    /// Works under the state directory `data_dir` with the library in `hami_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, hami_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            dir: Mutex::new(hami_dir.into()),
            found: Mutex::new(None),
        }
    }

    /// Takes the library from `dir` from here on. Instances keep the version they were made with.
    pub fn set_dir(&self, dir: impl Into<PathBuf>) {
        *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = dir.into();
    }

    /// Returns which library new slices get, or why none.
    #[must_use]
    pub fn library(&self) -> HamiLibrary {
        let dir = self.dir().to_string_lossy().into_owned();
        match self.find() {
            Ok(library) => HamiLibrary { dir, sha256: library.sha256, unusable: String::new() },
            Err(unusable) => HamiLibrary { dir, sha256: String::new(), unusable },
        }
    }

    /// Returns what the usable library asks of the system that loads it.
    #[must_use]
    pub fn preflight(&self) -> Option<super::elf::Preflight> {
        self.find().ok().map(|library| library.preflight)
    }

    /// Returns what the region of `instance` says. A tenant can write it: it is a hint.
    ///
    /// # Errors
    ///
    /// [`region::RegionError`] when there is none or its layout is not known.
    pub fn region(&self, instance: InstanceId) -> Result<Region, region::RegionError> {
        region::read(&self.region_file(instance))
    }

    /// Returns the instances that have files here and are not in `known`. They are left alone.
    #[must_use]
    pub fn leftovers(&self, known: &BTreeSet<InstanceId>) -> Vec<InstanceId> {
        let Ok(entries) = fs::read_dir(self.data_dir.join("regions")) else { return Vec::new() };
        let mut left: Vec<InstanceId> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|instance| !known.contains(instance))
            .collect();
        left.sort_unstable();
        left
    }

    fn dir(&self) -> PathBuf {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the library, adopting it anew when the operator's file changed.
    fn find(&self) -> Result<Library, String> {
        let dir = self.dir();
        let stamp = Stamp { file: stamp(&dir.join(FILE_NAME)), dir };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = found.as_ref().filter(|found| found.stamp == stamp) {
            return found.library.clone();
        }
        let library = library::adopt(&stamp.dir, &self.data_dir.join("hami"))
            .map_err(|error| error.to_string());
        // A library that could not be taken is tried again: a full disk does not stay full.
        *found = library.is_ok().then(|| Found { stamp, library: library.clone() });
        library
    }

    fn home(&self, instance: InstanceId) -> PathBuf {
        self.data_dir.join("regions").join(instance.to_string())
    }

    fn region_file(&self, instance: InstanceId) -> PathBuf {
        self.home(instance).join("cudevshr.cache")
    }

    fn lock_dir(&self, instance: InstanceId) -> PathBuf {
        self.home(instance).join("lock")
    }

    fn write_preload(&self) -> Result<PathBuf, InjectError> {
        let path = self.data_dir.join("hami/ld.so.preload");
        let line = format!("{}\n", slice::LIBRARY);
        if fs::read(&path).is_ok_and(|found| found == line.as_bytes()) {
            return Ok(path);
        }
        // Running containers hold the file that they were started with; a wrong one is replaced.
        let draft = self.data_dir.join("hami/.ld.so.preload.new");
        fs::write(&draft, line)
            .and_then(|()| fs::set_permissions(&draft, Permissions::from_mode(0o644)))
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|source| failed("write", &path, source))?;
        Ok(path)
    }

    fn seed(&self, instance: InstanceId, wanted: GpuSlice) -> Result<(), InjectError> {
        let home = self.home(instance);
        tmpfs::ensure_mounted(&home).map_err(|source| failed("mount", &home, source))?;
        let lock = self.lock_dir(instance);
        // Locks of processes that are gone must not stop those that come.
        let emptied = match fs::remove_dir_all(&lock) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(&lock),
        };
        emptied
            .and_then(|()| fs::set_permissions(&lock, Permissions::from_mode(0o777)))
            .map_err(|source| failed("make", &lock, source))?;
        let file = self.region_file(instance);
        region::write(&file, wanted).map_err(|source| failed("write", &file, source))
    }
}

impl SliceInjector for HamiInjector {
    fn prepare(
        &self,
        instance: InstanceId,
        wanted: GpuSlice,
        gpus: &[GpuUuid],
    ) -> Result<Injection, InjectError> {
        let simulated = gpus.iter().any(|uuid| uuid.0.starts_with(SIMULATED));
        let library = match self.find() {
            Ok(library) => library,
            Err(_) if simulated => return Ok(slice::not_enforced("simulated card")),
            Err(unusable) => return Ok(slice::not_enforced(unusable)),
        };
        if simulated && library.preflight.needs_driver() {
            // Without the driver's libraries every process of the container would end with 127.
            return Ok(slice::not_enforced("simulated card: the library needs a real driver"));
        }
        let preload = self.write_preload()?;
        self.seed(instance, wanted)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let files = SliceFiles {
            library_dir: text(&library.dir),
            preload: text(&preload),
            region: text(&self.region_file(instance)),
            lock_dir: text(&self.lock_dir(instance)),
        };
        Ok(slice::injection(wanted, &files))
    }

    fn reseed(
        &self,
        instance: InstanceId,
        wanted: GpuSlice,
        _gpus: &[GpuUuid],
    ) -> Result<(), InjectError> {
        // An instance that was made without enforcement has no home.
        if self.home(instance).exists() { self.seed(instance, wanted) } else { Ok(()) }
    }

    fn cleanup(&self, instance: InstanceId) -> Result<(), InjectError> {
        let home = self.home(instance);
        tmpfs::remove(&home).map_err(|source| failed("remove", &home, source))
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> InjectError {
    InjectError::Io { what, path: path.to_string_lossy().into_owned(), source }
}

fn stamp(file: &Path) -> Option<(u64, u64, u64, i64, i64)> {
    let data = fs::metadata(file).ok()?;
    Some((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

#[cfg(test)]
#[path = "hami_tests.rs"]
mod tests;
