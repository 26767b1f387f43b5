//! Trees of files to copy, and whether two are the same.

#![allow(dead_code, reason = "every test file uses its part of this one")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Returns bytes that look random and are the same for the same seed.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes directories and files of all sizes and names, the largest of `largest` bytes.
pub fn plant(root: &Path, largest: usize) {
    let names: [&[u8]; 6] =
        [b"plain", b"two words", "数据 ★".as_bytes(), b"quote'\"$x", b"-dash", b"\xca\xfd.txt"];
    let sizes = [0, 1, 4095, 32_768, 261_120, 261_121, 1_000_003];
    let mut folder = root.to_owned();
    for (depth, name) in names.iter().enumerate() {
        fs::create_dir(&folder).unwrap();
        for (index, size) in sizes.iter().enumerate() {
            let mut file = name.to_vec();
            file.extend_from_slice(format!(" {index}").as_bytes());
            let content = bytes(*size, (depth * 100 + index) as u64);
            fs::write(folder.join(OsStr::from_bytes(&file)), content).unwrap();
        }
        folder.push(OsStr::from_bytes(name));
    }
    fs::create_dir(&folder).unwrap();
    fs::write(root.join("largest"), bytes(largest, 1)).unwrap();
}

/// Fails where the two trees differ in names or content.
pub fn assert_same(left: &Path, right: &Path) {
    let (names, others) = (names(left), names(right));
    assert_eq!(names, others);
    for name in names {
        let (left, right) = (left.join(&name), right.join(&name));
        if left.is_dir() {
            assert!(right.is_dir(), "{}", name.display());
        } else {
            assert!(fs::read(left).unwrap() == fs::read(right).unwrap(), "{}", name.display());
        }
    }
}

fn names(root: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(root).unwrap().to_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    names.sort();
    names
}
