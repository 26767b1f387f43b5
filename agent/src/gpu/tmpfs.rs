//! Small filesystems in memory, one per sliced instance: a tenant who fills the files that HAMi-core
//! needs fills this and nothing else.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Size of one such filesystem: a region is 2 MB, the rest is for locks.
pub const SIZE_BYTES: u64 = 4 << 20;
/// Files that one such filesystem can hold.
const MOST_FILES: u32 = 64;

/// Mounts a small filesystem on `dir`, making the directory. One that is mounted already stays.
///
/// # Errors
///
/// When the directory cannot be made or the system refuses the mount, as it does without
/// `CAP_SYS_ADMIN`.
pub fn ensure_mounted(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if is_mounted(dir)? {
        return Ok(());
    }
    let options = format!("size={SIZE_BYTES},nr_inodes={MOST_FILES},mode=0700");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tianqi-region"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Unmounts what is on `dir` and removes the directory. What is gone already is fine. A filesystem
/// that is still in use disappears from the tree and ends with its last user.
///
/// # Errors
///
/// When the system refuses, or when the directory holds something that was not ours.
pub fn remove(dir: &Path) -> io::Result<()> {
    while dir.exists() && is_mounted(dir)? {
        match umount2(dir, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(Errno::EBUSY) => umount2(dir, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns whether something is mounted on `dir`.
///
/// # Errors
///
/// When the directory or the mount table cannot be read.
pub fn is_mounted(dir: &Path) -> io::Result<bool> {
    let dir = dir.canonicalize()?;
    let table = fs::read("/proc/self/mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    let wanted = dir.to_string_lossy();
    Ok(table.lines().filter_map(mount_point).any(|point| point == wanted))
}

/// Returns the mount point of a line of `mountinfo`, with its octal escapes undone.
fn mount_point(line: &str) -> Option<String> {
    let escaped = line.split(' ').nth(4)?;
    Some(
        [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .into_iter()
            .fold(escaped.to_owned(), |text, (code, plain)| text.replace(code, plain)),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Unmounts at the end of a test, also of one that failed.
    struct Mounted(std::path::PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = remove(&self.0);
        }
    }

    #[test]
    fn a_small_filesystem_is_full_at_its_size_and_not_beyond() {
        let state = tempfile::tempdir().unwrap();
        let mounted = Mounted(state.path().join("with space"));
        ensure_mounted(&mounted.0).unwrap();
        ensure_mounted(&mounted.0).unwrap();
        assert!(is_mounted(&mounted.0).unwrap());

        let mut file = fs::File::create(mounted.0.join("flood")).unwrap();
        let mut written: u64 = 0;
        let full = loop {
            match file.write(&[7; 65_536]) {
                Ok(bytes) => written += bytes as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(full.raw_os_error(), Some(Errno::ENOSPC as i32));
        assert!(written <= SIZE_BYTES, "{written} bytes fit in");

        drop(file);
        fs::remove_file(mounted.0.join("flood")).unwrap();
        let made = (0..1000)
            .take_while(|n| fs::File::create(mounted.0.join(n.to_string())).is_ok())
            .count();
        assert!(made < 64, "{made} files fit in");

        remove(&mounted.0).unwrap();
        remove(&mounted.0).unwrap();
        assert!(!mounted.0.exists());
    }

    #[test]
    fn a_filesystem_in_use_is_removed_all_the_same() {
        let state = tempfile::tempdir().unwrap();
        let mounted = Mounted(state.path().join("region"));
        ensure_mounted(&mounted.0).unwrap();
        let held = fs::File::create(mounted.0.join("held")).unwrap();

        remove(&mounted.0).unwrap();

        assert!(!mounted.0.exists());
        drop(held);
    }

    #[test]
    fn a_directory_with_something_else_in_it_is_left_alone() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("precious"), b"x").unwrap();

        assert!(remove(state.path()).is_err());
        assert!(state.path().join("precious").exists());
    }
}
