//! What a shared library asks of the system that loads it, read from its ELF headers.

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader};

/// Libraries that the NVIDIA driver brings. Where one of them is missing in a container, every
/// process that preloads a library that needs it ends with 127 (HAMi #704).
const DRIVER_LIBRARIES: [&str; 2] = ["libcuda.so.1", "libnvidia-ml.so.1"];

/// What a shared library asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preflight {
    /// Other libraries, as `DT_NEEDED` names them.
    pub needed: Vec<String>,
    /// Newest version of glibc that it was linked against, such as `(2, 28)`. Images with an older
    /// one cannot load it.
    pub glibc: Option<(u32, u32)>,
}

impl Preflight {
    /// Returns whether it can only be loaded where the NVIDIA driver's libraries are.
    #[must_use]
    pub fn needs_driver(&self) -> bool {
        self.needed.iter().any(|name| DRIVER_LIBRARIES.contains(&name.as_str()))
    }
}

/// Why a file is not a library that this machine can load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The file is damaged, or something else.
    #[error("it is not a 64-bit ELF file: {0}")]
    NotElf(String),
    /// It is a program or an object file.
    #[error("it is not a shared library")]
    NotShared,
    /// It was built for another processor.
    #[error("it was built for another processor (ELF machine {found}, this machine is {wanted})")]
    OtherMachine {
        /// The file's.
        found: u16,
        /// This machine's.
        wanted: u16,
    },
}

/// Returns ELF's number for the processor of this machine, 0 for one that has no cards.
fn this_machine() -> u16 {
    match std::env::consts::ARCH {
        "x86_64" => elf::EM_X86_64.0,
        "aarch64" => elf::EM_AARCH64.0,
        _ => 0,
    }
}

/// Reads what the shared library in `data` asks for.
///
/// # Errors
///
/// [`ElfError`] when this machine cannot load it.
pub fn preflight(data: &[u8]) -> Result<Preflight, ElfError> {
    let broken = |error: object::read::Error| ElfError::NotElf(error.to_string());
    let header = FileHeader64::<Endianness>::parse(data).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if header.e_type.get(endian) != elf::ET_DYN {
        return Err(ElfError::NotShared);
    }
    let (found, wanted) = (header.e_machine.get(endian).0, this_machine());
    if found != wanted {
        return Err(ElfError::OtherMachine { found, wanted });
    }
    let sections = header.sections(endian, data).map_err(broken)?;
    let mut needed = Vec::new();
    if let Some((entries, strings)) = sections.dynamic(endian, data).map_err(broken)? {
        let strings = sections.strings(endian, data, strings).map_err(broken)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
            let name = entry.string(endian, strings).map_err(broken)?;
            needed.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    let mut glibc = None;
    if let Some((mut libraries, strings)) = sections.gnu_verneed(endian, data).map_err(broken)? {
        let strings = sections.strings(endian, data, strings).map_err(broken)?;
        while let Some((_, mut versions)) = libraries.next().map_err(broken)? {
            while let Some(version) = versions.next().map_err(broken)? {
                let name = version.name(endian, strings).map_err(broken)?;
                glibc = glibc.max(glibc_version(name));
            }
        }
    }
    Ok(Preflight { needed, glibc })
}

fn glibc_version(name: &[u8]) -> Option<(u32, u32)> {
    let version = std::str::from_utf8(name).ok()?.strip_prefix("GLIBC_")?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn system_library() -> Vec<u8> {
        let places = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib/aarch64-linux-gnu/libm.so.6",
            "/lib64/libm.so.6",
        ];
        let found = places.iter().find_map(|place| std::fs::read(place).ok());
        found.expect("this machine has no libm.so.6")
    }

    #[test]
    fn preflight_reads_a_real_library() {
        let found = preflight(&system_library()).unwrap();

        assert!(found.needed.contains(&"libc.so.6".to_owned()), "{found:?}");
        assert!(found.glibc >= Some((2, 2)), "{found:?}");
        assert!(!found.needs_driver());
    }

    #[test]
    fn preflight_refuses_what_this_machine_cannot_load() {
        let mut other = system_library();
        other[18] = 8;
        assert!(matches!(preflight(&other), Err(ElfError::OtherMachine { found: 8, .. })));

        let mut program = system_library();
        program[16] = 2;
        assert_eq!(preflight(&program), Err(ElfError::NotShared));

        assert!(matches!(preflight(b"#!/bin/sh\n"), Err(ElfError::NotElf(_))));
        assert!(matches!(preflight(b""), Err(ElfError::NotElf(_))));
    }

    #[test]
    fn a_library_that_needs_the_driver_is_known() {
        let needed = vec!["libc.so.6".to_owned(), "libnvidia-ml.so.1".to_owned()];

        assert!(Preflight { needed, glibc: None }.needs_driver());
    }

    proptest! {
        #[test]
        fn preflight_never_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..400),
            spots in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..40),
            cut in 0_usize..8192,
        ) {
            let _ = preflight(&noise);
            let mut damaged = system_library();
            for (at, byte) in spots {
                damaged[at] = byte;
            }
            let _ = preflight(&damaged);
            damaged.truncate(cut);
            let _ = preflight(&damaged);
        }
    }
}
