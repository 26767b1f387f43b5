use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;

use super::*;

const SLICE: GpuSlice = GpuSlice { memory: GpuMemoryMib(8192), cores: CorePercent(30) };

fn seeded() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    for (offset, part) in seed(SLICE) {
        put(&mut bytes, usize::try_from(offset).unwrap(), &part);
    }
    bytes
}

fn set(bytes: &mut [u8], offset: usize, value: u64, width: usize) {
    put(bytes, offset, &value.to_le_bytes()[..width]);
}

/// Every byte of a fresh region that is not zero, by the table of offsets of layout 1.2 on a
/// little-endian LP64 machine.
#[test]
fn a_fresh_region_has_exactly_these_bytes() {
    let mut golden = vec![0; 2_008_953];
    let mut expect =
        |offset: usize, value: &[u8]| golden[offset..offset + value.len()].copy_from_slice(value);
    expect(0, &[0x4e, 0xf7, 0x2f, 0x01]);
    expect(4, &[1, 0, 0, 0]);
    expect(8, &[2, 0, 0, 0]);
    expect(24, &[1, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0]);
    for device in 0..16 {
        expect(1600 + device * 8, &[0, 0, 0, 0, 2, 0, 0, 0]);
        expect(1728 + device * 8, &[30, 0, 0, 0, 0, 0, 0, 0]);
    }
    expect(2_008_900, &[1, 0, 0, 0]);
    expect(2_008_904, &[2, 0, 0, 0]);
    expect(2_008_908, &[1, 0, 0, 0]);
    expect(2_008_920, &[1, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0]);

    let differing = seeded().iter().zip(&golden).position(|(a, b)| a != b);
    assert_eq!(differing, None);
    assert_eq!(seeded().len(), golden.len());
}

#[test]
fn a_region_is_read_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("region");

    write(&path, SLICE).unwrap();

    let region = read(&path).unwrap();
    assert_eq!(region.version, (1, 2));
    assert_eq!(region.limits, vec![8192 << 20; 16]);
    assert_eq!(region.core_limits, vec![30; 16]);
    assert!(region.processes.is_empty());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
}

#[test]
fn writing_again_keeps_the_file_and_drops_what_processes_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("region");
    write(&path, SLICE).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let mut used = std::fs::read(&path).unwrap();
    set(&mut used, 1600, u64::MAX, 8);
    set(&mut used, PROCS, 42, 4);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&used, 0).unwrap();

    write(&path, SLICE).unwrap();

    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert!(std::fs::read(&path).unwrap() == seeded());
}

#[test]
fn a_region_that_is_a_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    std::fs::write(&target, b"precious").unwrap();
    let path = dir.path().join("region");
    std::os::unix::fs::symlink(&target, &path).unwrap();

    assert!(write(&path, SLICE).is_err());
    assert!(matches!(read(&path), Err(RegionError::Io(_))));
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
}

#[test]
fn processes_are_summed_and_stale_ones_left_out() {
    let mut bytes = seeded();
    set(&mut bytes, PROC_NUM, 4, 4);
    let slot = |number: usize| PROCS + number * PROC_STRIDE;
    let process = |bytes: &mut [u8], number, pid, status, total| {
        set(bytes, slot(number), pid, 4);
        set(bytes, slot(number) + 4, pid + 1000, 4);
        set(bytes, slot(number) + 8 + 32, total, 8);
        set(bytes, slot(number) + 8 + 64 + 32, u64::MAX - 5, 8);
        set(bytes, slot(number) + 1928, status, 4);
    };
    process(&mut bytes, 0, 7, 1, 100);
    process(&mut bytes, 1, 8, 0, 100);
    process(&mut bytes, 2, 9, 1, 100);
    set(&mut bytes, slot(2) + 1936, 3, 8);
    process(&mut bytes, 3, 0, 1, 100);

    let region = parse(&bytes).unwrap();

    assert_eq!(region.processes, [Process { pid: 7, host_pid: 1007, used_bytes: 100 }]);
}

#[test]
fn the_shifted_layout_is_known_by_its_size() {
    let mut bytes = vec![0; 2_008_985];
    set(&mut bytes, 0, u64::from(MAGIC), 4);
    set(&mut bytes, 4, 1, 4);
    set(&mut bytes, 8, 1, 4);
    set(&mut bytes, 1632, 5 << 30, 8);
    set(&mut bytes, 1760, 40, 8);
    set(&mut bytes, 2_008_928, 1, 4);
    set(&mut bytes, 1888, 7, 4);
    set(&mut bytes, 1888 + 16 + 32, 100, 8);
    set(&mut bytes, 1888 + 1936, 1, 4);

    let region = parse(&bytes).unwrap();

    assert_eq!((region.limits[0], region.core_limits[0]), (5 << 30, 40));
    assert_eq!(region.processes, [Process { pid: 7, host_pid: 0, used_bytes: 100 }]);
}

#[test]
fn unknown_layouts_are_refused() {
    assert!(matches!(parse(&[0; 100]), Err(RegionError::UnknownSize(100))));
    let mut newer = seeded();
    set(&mut newer, 8, 3, 4);
    assert!(matches!(parse(&newer), Err(RegionError::UnknownVersion { minor: 3, .. })));
    let mut foreign = seeded();
    set(&mut foreign, 0, 0, 4);
    assert!(matches!(parse(&foreign), Err(RegionError::UnknownVersion { magic: 0, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_region_that_a_tenant_scribbled_on_never_panics(
        spots in proptest::collection::vec((0_usize..2_008_953, any::<u64>()), 1..200),
        processes in any::<u32>(),
    ) {
        let mut bytes = seeded();
        for (offset, value) in spots {
            set(&mut bytes, offset, value, 8);
        }
        set(&mut bytes, PROC_NUM, u64::from(processes), 4);
        let _ = parse(&bytes);
        prop_assert!(parse(&bytes[..bytes.len() / 2]).is_err());
    }
}
