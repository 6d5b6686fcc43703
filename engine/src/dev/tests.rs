//! Real files on both backends.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::env::{Backend, Env, Runtime};

/// Directories to test in: one on a disk, where direct I/O works, and one in memory, where it may not.
fn directories() -> Vec<PathBuf> {
    let mut dirs = vec![std::env::temp_dir()];
    if Path::new("/dev/shm").is_dir() {
        dirs.push("/dev/shm".into());
    }
    dirs
}

/// Runs `body` on a fresh file of 16 MiB in each directory, on each backend.
fn each(body: impl AsyncFn(&Env, &Path)) {
    for backend in [Backend::Auto, Backend::Threads] {
        for dir in directories() {
            let file = tempfile::NamedTempFile::new_in(dir).unwrap();
            file.as_file().set_len(16 << 20).unwrap();
            let runtime = Runtime::with_backend(backend).unwrap();
            runtime.block_on(body(&runtime.env(), file.path()));
        }
    }
}

fn filled(byte: u8, len: usize) -> Shared {
    let mut buf = Buf::zeroed(len);
    buf.fill(byte);
    buf.freeze()
}

#[test]
fn bytes_written_are_read_back() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        assert_eq!((dev.geometry().bytes, dev.geometry().logical_block), (16 << 20, 512));
        dev.write(512, filled(1, 1024), false).await.unwrap();
        dev.write(4096, filled(2, 3 << 20), true).await.unwrap();
        dev.flush().await.unwrap();
        let read = dev.read(0, Buf::recycled(4 << 20)).await.unwrap();
        assert!(read[..512].iter().all(|b| *b == 0));
        assert!(read[512..1536].iter().all(|b| *b == 1));
        assert!(read[4096..4096 + (3 << 20)].iter().all(|b| *b == 2));
        let outside = std::fs::read(path).unwrap();
        assert!(outside[..4 << 20] == read[..]);
    });
}

#[test]
fn views_anywhere_in_a_buffer_are_written() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        let mut buf = Buf::zeroed(8192);
        buf.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 7) as u8);
        let shared = buf.freeze();
        // 28 is where the payload of a network request begins.
        dev.write(0, shared.slice(28..28 + 4096), false).await.unwrap();
        assert!(dev.read(0, Buf::zeroed(4096)).await.unwrap()[..] == shared[28..28 + 4096]);
    });
}

#[test]
fn many_operations_at_once_all_end() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        let writes: Vec<Io<()>> =
            (0..2000u64).map(|i| dev.write(i * 4096, filled(i as u8, 4096), false)).collect();
        for write in writes {
            write.await.unwrap();
        }
        let reads: Vec<Io<Buf>> = (0..2000u64).map(|i| dev.read(i * 4096, Buf::recycled(4096))).collect();
        for (i, read) in reads.into_iter().enumerate() {
            assert!(read.await.unwrap().iter().all(|b| *b == i as u8));
        }
    });
}

#[test]
fn dropped_operations_go_on() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        drop(dev.write(0, filled(9, 65536), true));
        for _ in 0..64 {
            drop(dev.read(0, Buf::zeroed(65536)));
        }
        dev.write_zeroes(1 << 20, 4096).await.unwrap();
        let mut tries = 0;
        while dev.read(0, Buf::zeroed(65536)).await.unwrap().iter().any(|b| *b != 9) {
            tries += 1;
            assert!(tries < 1000);
            env.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_write_in_flight_ends_before_the_runtime_is_gone() {
    for backend in [Backend::Auto, Backend::Threads] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let runtime = Runtime::with_backend(backend).unwrap();
        let dev = open(&runtime.env(), file.path(), OpenMode::READ_WRITE).unwrap();
        runtime.block_on(async { drop(dev.write(0, filled(9, 1 << 20), false)) });
        drop(runtime);
        assert!(std::fs::read(file.path()).unwrap().iter().all(|b| *b == 9));
    }
}

#[test]
fn zeroing_and_discards_change_their_range_only() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        dev.write(0, filled(1, 1 << 20), false).await.unwrap();
        dev.write_zeroes(4096, 8192).await.unwrap();
        dev.discard(65536, 4096).await.unwrap();
        let read = dev.read(0, Buf::zeroed(1 << 20)).await.unwrap();
        assert!(read[4096..12288].iter().all(|b| *b == 0));
        assert!(read[..4096].iter().chain(&read[12288..65536]).chain(&read[69632..]).all(|b| *b == 1));
        assert_eq!(std::fs::metadata(path).unwrap().len(), 16 << 20);
    });
}

#[test]
fn ranges_are_checked() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        for (at, len) in [(0, 100), (100, 512), (16 << 20, 512), (u64::MAX - 511, 512)] {
            assert_eq!(dev.write(at, filled(1, len), false).await.expect_err("refused").errno, libc::EINVAL);
            assert_eq!(dev.read(at, Buf::zeroed(len)).await.expect_err("refused").errno, libc::EINVAL);
        }
        dev.write(16 << 20, filled(1, 0), false).await.unwrap();
    });
}

#[test]
fn a_read_only_device_changes_nothing() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_ONLY).unwrap();
        assert_eq!(dev.write(0, filled(1, 512), false).await.expect_err("refused").errno, libc::EROFS);
        assert_eq!(dev.discard(0, 512).await.expect_err("refused").errno, libc::EROFS);
        assert_eq!(dev.write_zeroes(0, 512).await.expect_err("refused").errno, libc::EROFS);
        dev.flush().await.unwrap();
        dev.read(0, Buf::zeroed(4096)).await.unwrap();
        let over = ReadOnly::new(open(env, path, OpenMode::READ_WRITE).unwrap());
        assert_eq!(over.write(0, filled(1, 512), false).await.expect_err("refused").errno, libc::EROFS);
    });
}

#[test]
fn a_file_has_one_user() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_WRITE).unwrap();
        let error = open(env, path, OpenMode::READ_WRITE).err().expect("it is taken");
        assert_eq!((error.op, error.errno), (DevOp::Open, libc::EBUSY));
        open(env, path, OpenMode::READ_ONLY).expect("looking is allowed");
        drop(dev);
        open(env, path, OpenMode::READ_WRITE).expect("it is free again");
    });
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let runtime = Runtime::new().unwrap();
    for path in ["/dev/null", "/", "/does/not/exist"] {
        assert!(open(&runtime.env(), Path::new(path), OpenMode::READ_ONLY).is_err(), "{path}");
    }
}

#[test]
fn a_file_that_shrank_gives_an_error() {
    each(async |env, path| {
        let dev = open(env, path, OpenMode::READ_ONLY).unwrap();
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
        let error = dev.read(0, Buf::zeroed(8192)).await.expect_err("half of it is gone");
        assert_eq!((error.errno, error.len), (libc::EIO, 8192));
    });
}

#[test]
fn wrappers_count_and_delay() {
    let runtime = crate::sim::Runtime::new(1);
    let power = crate::sim::Power::new();
    let disk = crate::sim::Disk::new(&runtime, &power, crate::sim::Config::new("sim", 1 << 20));
    let counting = Counting::new(disk.dev());
    let counts = counting.counts();
    let delay = Delay::new(&runtime.env(), Rc::new(counting), Duration::from_millis(8), 1);
    let before = runtime.clock();
    runtime.block_on(async {
        let (one, two) = (delay.read(0, Buf::zeroed(4096)), delay.write(0, filled(1, 512), true));
        one.await.unwrap();
        two.await.unwrap();
        delay.flush().await.unwrap();
    });
    assert!(runtime.clock() - before >= 16_000_000, "one head serves one after the other");
    let expect = Counts {
        reads: 1,
        read_bytes: 4096,
        writes: 1,
        written_bytes: 512,
        fua_writes: 1,
        flushes: 1,
        ..Counts::default()
    };
    assert_eq!(counts.get(), expect);
}
