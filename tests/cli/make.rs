//! `make-bcache`: what it decides, prints and refuses. A refusal leaves every device as it was.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bcache_tests::cmd::{Said, ours, run};
use bcache_tests::{paths, sparse};
use serde_json::Value;

/// A directory with the files `cache` and `backing` of 300 MiB, `small` of 1 MiB and `tiny` of 4 KiB.
fn devices() -> tempfile::TempDir {
    let dir = paths::scratch().unwrap();
    for (name, len) in [("cache", 300 << 20), ("backing", 300 << 20), ("small", 1 << 20), ("tiny", 4096)] {
        sparse::create(&dir.path().join(name), len).unwrap();
    }
    dir
}

fn make(dir: &Path, args: &str) -> Said {
    let program = paths::program("make-bcache").unwrap();
    run(std::process::Command::new(program).args(args.split_whitespace()).current_dir(dir)).unwrap()
}

fn json(dir: &Path, args: &str) -> Vec<Value> {
    let said = make(dir, &format!("--json {args}"));
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{args}");
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn fingerprints(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), sparse::fingerprint(&path).unwrap())).collect()
}

/// The command line is refused with exit code 1 and one line that holds `why`, and no device changes.
fn refused(dir: &Path, args: &str, why: &str) {
    let before = fingerprints(dir);
    let said = make(dir, args);
    assert_eq!(said.code, 1, "{args}: {said:?}");
    assert_eq!(said.stdout, "", "{args}");
    assert_eq!(said.stderr.lines().count(), 1, "{args}: {}", said.stderr);
    assert!(said.stderr.contains(why), "{args}: {}", said.stderr);
    assert_eq!(before, fingerprints(dir), "{args}: something was written");
}

#[test]
fn sizes_the_kernel_cannot_use_are_refused() {
    let dir = devices();
    for (args, why) in [
        ("-C -b 2k cache", "bucket size too small"),
        ("-C -b 12k cache", "bucket size must be a power of two"),
        ("-C -b 0 cache", "bucket size too small"),
        ("-C -b 2T cache", "bucket size too large"),
        ("-C -b 1x cache", "a size is a number"),
        ("-C -b 99999999999T cache", "too large"),
        ("-C -w 8k cache", "block size too large"),
        ("-C -w 256 cache", "block size too small"),
        ("-C -w 3k cache", "block size must be a power of two"),
        (
            "-C -b 1M cache",
            "Not enough buckets on cache: 300, need 513; buckets of 512 KiB would do: -b 512k",
        ),
        ("-C small", "Not enough buckets on small: 2, need 513; a cache has at least 2101248 bytes"),
        ("-C -w 1k -b 1M small", "need 513; a cache has at least 2101248 bytes"),
        ("-B tiny", "tiny is too small"),
        ("-B -o 2048 small", "its data would start at sector 2048"),
        ("-B -o 18446744073709551615 small", "small is too small"),
        ("-B -o 15 backing", "Bad data offset; minimum 16 sectors"),
        (
            "-B -w 4k -o 2049 backing",
            "Data offset of 2049 sectors is no multiple of the block size, 4096 bytes",
        ),
        ("-C cache -B -w 1k -o 17 backing", "no multiple of the block size, 1024 bytes"),
        ("-B -o x backing", "invalid value 'x'"),
    ] {
        refused(dir.path(), args, why);
    }
    assert_eq!(make(dir.path(), "-C -b 512k cache").code, 0, "600 buckets are enough");
}

#[test]
fn the_bucket_count_is_refused_up_to_512() {
    let dir = devices();
    sparse::create(&dir.path().join("cache"), 512 * (512 << 10)).unwrap();
    refused(dir.path(), "-C cache", "need 513");
    sparse::create(&dir.path().join("cache"), 513 * (512 << 10)).unwrap();
    assert_eq!(make(dir.path(), "-C cache").code, 0);
}

#[test]
fn command_lines_without_sense_are_refused() {
    let dir = devices();
    let too_long = format!("-C cache -l {}", "x".repeat(33));
    for (args, why) in [
        ("", "Please supply a device"),
        ("-C", "Please supply a device"),
        ("cache", "Please specify -C or -B"),
        ("cache -C backing", "Please specify -C or -B"),
        ("-C cache backing", "Only one cache device"),
        ("-C cache -B backing -C small", "Only one cache device"),
        ("-C cache -B cache", "cache and cache are the same device"),
        ("-B backing ./backing", "are the same device"),
        ("-C --nonsense cache", "unexpected argument '--nonsense'"),
        ("-C --cache-replacement-policy mru cache", "one of lru, fifo, random"),
        ("-C --cset-uuid 1234 cache", "Bad uuid"),
        ("-C --cset-uuid 00000000-0000-0000-0000-000000000000 cache", "Bad uuid"),
        (&too_long, "at most 32 bytes"),
        ("-C /dev/null", "neither a block device nor a file"),
        ("-C nowhere", "Can't open dev nowhere: No such file"),
        ("-B .", "neither a block device nor a file"),
    ] {
        refused(dir.path(), args, why);
    }
}

#[test]
fn a_refusal_of_one_device_spares_them_all() {
    let dir = devices();
    refused(dir.path(), "-C cache -B backing tiny", "tiny is too small");
    refused(dir.path(), "-C small -B backing", "Not enough buckets");
}

#[test]
fn a_label_is_one_backing_devices() {
    let dir = devices();
    sparse::create(&dir.path().join("more"), 1 << 20).unwrap();
    refused(
        dir.path(),
        "-C cache -B backing more -l films",
        "backing and more cannot both be labelled \"films\": format them one by one",
    );
    assert_eq!(make(dir.path(), "-C cache -B backing -l films").code, 0, "a cache has no name");
}

#[test]
fn a_label_that_will_not_be_the_name_is_told() {
    let dir = devices();
    for label in ["control", "a/b", "-x", "with space", "two\nlines", "\u{1b}[31mred"] {
        let program = paths::program("make-bcache").unwrap();
        let mut command = std::process::Command::new(program);
        command.args(["--wipe-bcache", &format!("--label={label}"), "-B", "backing"]).current_dir(dir.path());
        let said = run(&mut command).unwrap();
        assert_eq!(said.code, 0, "{said:?}");
        let line = format!("make-bcache: the label {label:?} makes no name");
        assert!(said.stderr.starts_with(&line), "{said:?}");
        assert!(said.stderr.contains("so backing will be /dev/mapper/bcache"), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    }
    let said = make(dir.path(), "--wipe-bcache -l a.plain-name -B backing");
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    // A cache has no name.
    assert_eq!(make(dir.path(), "-l control -C cache").stderr, "");
}

#[test]
fn an_old_superblock_is_only_overwritten_when_told_to() {
    let dir = devices();
    assert_eq!(make(dir.path(), "-C cache -B backing").code, 0);
    refused(dir.path(), "-C cache", "Already a bcache device on cache, overwrite with --wipe-bcache");
    refused(dir.path(), "-B backing", "Already a bcache device on backing");
    for consent in ["--wipe-bcache", "--wipe_bcache", "--force"] {
        let said = make(dir.path(), &format!("{consent} -C cache -B backing"));
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{consent}");
    }
}

#[test]
fn a_foreign_signature_is_only_overwritten_when_told_to() {
    let dir = devices();
    let path = dir.path().join("backing");
    let device = File::options().read(true).write(true).open(&path).unwrap();
    device.write_all_at(b"SWAPSPACE2", 4086).unwrap();
    device.write_all_at(b"CD001", 0x8001).unwrap(); // ISO 9660, which stands behind bcache's superblock
    device.write_all_at(&[1], 0x8000).unwrap();
    for args in ["-B backing", "-B --wipe-bcache backing"] {
        refused(dir.path(), args, "signature, remove it using wipefs -a or overwrite it with --force");
    }
    assert_eq!(make(dir.path(), "-B --force backing").code, 0);
    let mut start = [0xff; 4096];
    device.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, [0; 4096]);
    let found = run(std::process::Command::new("/sbin/wipefs").arg(&path)).unwrap().stdout;
    assert!(found.contains("bcache") && !found.contains("iso9660"), "{found}");
}

#[test]
fn a_file_that_is_locked_is_in_use() {
    let dir = devices();
    let file = File::open(dir.path().join("cache")).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    refused(dir.path(), "-C cache", "cache is in use");
    drop(lock);
    assert_eq!(make(dir.path(), "-C cache").code, 0);
}

#[test]
fn roles_apply_to_the_devices_that_follow() {
    let dir = devices();
    sparse::create(&dir.path().join("more"), 1 << 20).unwrap();
    for args in [
        "-C cache -B backing more",
        "-B backing more -C cache",
        "-B backing -C cache -B more",
        "-C -B -C cache -B backing more",
        "--bdev backing --cache cache --bdev more",
        "-C cache -B -- backing more",
    ] {
        let made = json(dir.path(), &format!("--wipe-bcache {args}"));
        let roles: Vec<_> = made.iter().map(|one| (one["role"].as_str(), one["device"].as_str())).collect();
        let expected = [("cache", "cache"), ("backing", "backing"), ("backing", "more")];
        assert_eq!(roles, expected.map(|(role, device)| (Some(role), Some(device))), "{args}");
        assert!(made.iter().all(|one| one["set_uuid"] == made[0]["set_uuid"]), "{args}");
    }
}

#[test]
fn options_have_all_their_spellings() {
    let dir = devices();
    let set = "cdc6ac30-0d1f-4c0c-a0f9-7a8f1a0b1c2d";
    for args in [
        format!("-w 4k -b 256k -o 32 --cset-uuid {set} --cache-replacement-policy fifo -l name"),
        format!(
            "--block 4096 --bucket 262144 --data-offset 32 --cset_uuid={set} --cache_replacement_policy=fifo --label name"
        ),
        format!("-w4K -b256K --data_offset=32 --cset={set} --cache_r fifo -lname"),
    ] {
        let made =
            json(dir.path(), &format!("{args} --wipe-bcache --writeback --discard -C cache -B backing"));
        let (cache, backing) = (&made[0], &made[1]);
        assert_eq!(cache["bucket_sectors"], 512, "{args}");
        assert_eq!(cache["cache"]["replacement"], "fifo");
        assert_eq!(cache["cache"]["discard"], true);
        assert_eq!(backing["backing"]["data_offset_sectors"], 32);
        assert_eq!(backing["backing"]["cache_mode"], "writeback");
        assert_eq!(backing["version"], 4);
        for one in &made {
            assert_eq!((one["block_sectors"].as_u64(), one["label"].as_str()), (Some(8), Some("name")));
            assert_eq!(one["set_uuid"], set);
        }
    }
}

#[test]
fn large_buckets_are_version_5() {
    let dir = devices();
    sparse::create(&dir.path().join("cache"), 40 << 30).unwrap();
    let made = json(dir.path(), "-b 64M -C cache -B backing");
    assert_eq!((made[0]["version"].as_u64(), made[0]["bucket_sectors"].as_u64()), (Some(5), Some(1 << 17)));
    assert_eq!(made[0]["cache"]["features"]["incompat"], 2);
    assert_eq!(made[1]["version"], 1);
    let made = json(dir.path(), "--force -b 16M -C cache");
    assert_eq!((made[0]["version"].as_u64(), made[0]["bucket_sectors"].as_u64()), (Some(0), Some(1 << 15)));
}

#[test]
fn a_dry_run_prints_and_writes_nothing() {
    let dir = devices();
    let before = fingerprints(dir.path());
    let said = make(dir.path(), "--dry-run -C cache -B backing");
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    assert!(said.stdout.contains("nbuckets:\t\t600\n"), "{}", said.stdout);
    assert_eq!(before, fingerprints(dir.path()));
    refused(dir.path(), "--dry-run -C small", "Not enough buckets");
}

#[test]
fn it_is_a_subcommand_too() {
    let dir = devices();
    let cache = dir.path().join("cache");
    let said = ours("bcache", [Path::new("make"), Path::new("-C"), &cache]).unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let shown = ours("bcache", [Path::new("show-super"), &cache]).unwrap();
    let uuid = said.stdout.lines().next().unwrap().rsplit('\t').next().unwrap();
    assert!(shown.stdout.contains(&format!("dev.uuid\t\t{uuid}\n")), "{shown:?}");
}

#[test]
fn help_says_how_to_use_it() {
    for program in ["make-bcache", "bcache-super-show", "bcache"] {
        let said = ours(program, ["--help"]).unwrap();
        assert_eq!((said.code, said.stderr.as_str()), (0, ""));
        assert!(program == "bcache" || said.stdout.contains("Examples:"), "{}", said.stdout);
        assert!(said.stdout.lines().all(|line| line.chars().count() <= 118), "{program}: too wide");
    }
}
