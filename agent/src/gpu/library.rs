//! Immutable copies of HAMi-core's library, one per version.
//!
//! The operator's directory is read and never shown to a container: what is replaced there reaches
//! new instances only. A copy is named by its hash and never written again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::elf::{self, ElfError, Preflight};

/// Name of HAMi-core's library.
pub const FILE_NAME: &str = "libvgpu.so";
/// Largest file that is taken for a library; HAMi-core's is about 1 MB.
const MOST_BYTES: u64 = 64 << 20;

/// One version of the library, in a copy that never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Directory that holds the copy and nothing else.
    pub dir: PathBuf,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// What it asks of the system that loads it.
    pub preflight: Preflight,
}

/// Why there is no usable library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The operator's file cannot be read.
    #[error(
        "{path} cannot be read: {source}; build HAMi-core there or set the node's HAMi directory"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The operator's file is too large, or not a file.
    #[error("{path} is not a file of at most {MOST_BYTES} bytes")]
    NotAFile {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not a library for this machine.
    #[error("{path} cannot be loaded: {source}")]
    NotLoadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// The copy could not be made.
    #[error("no copy of the library can be made in {dir}: {source}")]
    NotCopied {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The copy is not what its name says.
    #[error("{path} was changed after it was made; move it away and restart the agent")]
    Changed {
        /// Which copy.
        path: PathBuf,
    },
}

/// Takes the library of `hami_dir` into `copies` and returns the copy. A version that is there
/// already is checked and used again.
///
/// # Errors
///
/// [`LibraryError`] when there is no library that this machine can load, or no copy of it.
pub fn adopt(hami_dir: &Path, copies: &Path) -> Result<Library, LibraryError> {
    let path = hami_dir.join(FILE_NAME);
    let data = read(&path)?;
    let preflight =
        elf::preflight(&data).map_err(|source| LibraryError::NotLoadable { path, source })?;
    let sha256 = hex::encode(Sha256::digest(&data));
    let dir = copies.join(&sha256);
    let not_copied = |source| LibraryError::NotCopied { dir: copies.to_owned(), source };
    copy(&data, copies, &dir).map_err(not_copied)?;
    let copied = dir.join(FILE_NAME);
    if read(&copied)? != data {
        return Err(LibraryError::Changed { path: copied });
    }
    Ok(Library { dir, sha256, preflight })
}

fn read(path: &Path) -> Result<Vec<u8>, LibraryError> {
    let unreadable = |source| LibraryError::Unreadable { path: path.to_owned(), source };
    // Opening a pipe for reading waits for a writer unless told otherwise.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(unreadable)?;
    let data = file.metadata().map_err(unreadable)?;
    if !data.is_file() || data.len() > MOST_BYTES {
        return Err(LibraryError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Held while a copy is made: settings are tried beside the loop that takes a new library in, and both
/// would write the same draft.
static COPYING: Mutex<()> = Mutex::new(());

/// Makes the copy unless it is there. It is written under another name first, so that a power cut
/// leaves a whole copy or none.
fn copy(data: &[u8], copies: &Path, dir: &Path) -> io::Result<()> {
    let _turn = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    if dir.exists() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(copies)?;
    let draft = copies.join(format!(".new-{}", std::process::id()));
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    DirBuilder::new().create(&draft)?;
    fs::set_permissions(&draft, Permissions::from_mode(0o755))?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(draft.join(FILE_NAME))?;
    file.write_all(data)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    File::open(&draft)?.sync_all()?;
    fs::rename(&draft, dir)?;
    File::open(copies)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(marker: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let places = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib/aarch64-linux-gnu/libm.so.6",
            "/lib64/libm.so.6",
        ];
        let mut library = places.iter().find_map(|place| fs::read(place).ok()).unwrap();
        library.extend_from_slice(marker);
        fs::write(dir.path().join(FILE_NAME), library).unwrap();
        dir
    }

    #[test]
    fn a_copy_stays_what_it_was_when_the_operator_replaces_the_library() {
        let state = tempfile::tempdir().unwrap();
        let hami = operator(b"one");
        let copies = state.path().join("hami");
        let first = adopt(hami.path(), &copies).unwrap();
        let bytes = fs::read(first.dir.join(FILE_NAME)).unwrap();

        let other = operator(b"two");
        fs::copy(other.path().join(FILE_NAME), hami.path().join(FILE_NAME)).unwrap();
        let second = adopt(hami.path(), &copies).unwrap();

        assert_ne!(first.sha256, second.sha256);
        assert_eq!(fs::read(first.dir.join(FILE_NAME)).unwrap(), bytes);
        assert!(second.dir.ends_with(&second.sha256));
    }

    #[test]
    fn a_copy_can_be_read_by_everybody_and_written_by_its_owner() {
        let state = tempfile::tempdir().unwrap();
        let hami = operator(b"one");

        let library = adopt(hami.path(), state.path()).unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&library.dir), 0o755);
        assert_eq!(mode(&library.dir.join(FILE_NAME)), 0o644);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "no draft is left");
        assert_eq!(adopt(hami.path(), state.path()).unwrap(), library, "adopting twice is fine");
    }

    #[test]
    fn many_who_adopt_at_once_get_the_same_copy() {
        let state = tempfile::tempdir().unwrap();
        let hami = operator(b"one");

        for round in 0..20 {
            let copies = state.path().join(round.to_string());
            let barrier = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        barrier.wait();
                        adopt(hami.path(), &copies).unwrap();
                    });
                }
            });
            assert_eq!(fs::read_dir(&copies).unwrap().count(), 1, "one copy and no draft");
        }
    }

    #[test]
    fn a_copy_that_somebody_changed_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let hami = operator(b"one");
        let library = adopt(hami.path(), state.path()).unwrap();

        fs::write(library.dir.join(FILE_NAME), b"evil").unwrap();

        assert!(matches!(adopt(hami.path(), state.path()), Err(LibraryError::Changed { .. })));
    }

    #[test]
    fn a_missing_or_foreign_library_is_told_in_words() {
        let state = tempfile::tempdir().unwrap();
        let hami = tempfile::tempdir().unwrap();

        let missing = adopt(hami.path(), state.path()).unwrap_err().to_string();
        assert!(missing.contains("libvgpu.so cannot be read"), "{missing}");

        fs::write(hami.path().join(FILE_NAME), b"not a library").unwrap();
        let foreign = adopt(hami.path(), state.path()).unwrap_err().to_string();
        assert!(foreign.contains("not a 64-bit ELF file"), "{foreign}");

        fs::remove_file(hami.path().join(FILE_NAME)).unwrap();
        fs::create_dir(hami.path().join(FILE_NAME)).unwrap();
        assert!(matches!(adopt(hami.path(), state.path()), Err(LibraryError::NotAFile { .. })));
    }
}
