//! `bcache-super-show`: its lines and exit codes, on good and on damaged superblocks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bcache_format::superblock::{RawSuperblock, SB_OFFSET};
use bcache_tests::cmd::{Said, ours, run};
use bcache_tests::golden::Set;
use bcache_tests::{paths, sparse};

fn show(args: &[&Path]) -> Said {
    ours("bcache-super-show", args).unwrap()
}

/// What Debian's prints on a golden device, recorded.
fn recorded(set: &str, file: &str) -> String {
    let name = format!("{set}.{}.show", file.trim_end_matches(".img"));
    fs::read_to_string(paths::repository().join("tests/golden/expected").join(name)).unwrap()
}

#[test]
fn every_golden_device_is_shown_as_debian_does() {
    for set in Set::all().unwrap() {
        for file in &set.entry.files {
            let said = show(&[&set.path(file)]);
            assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{} {file}", set.name);
            let expected = recorded(&set.name, file);
            match expected.strip_suffix(" [unknown]\n") {
                // Debian's does not know version 5 and stops there.
                Some(known) => assert!(said.stdout.starts_with(known), "{}", said.stdout),
                None => assert_eq!(said.stdout, expected, "{} {file}", set.name),
            }
        }
    }
}

#[test]
fn version_5_is_shown_in_full() {
    let set = Set::open("large-bucket-64m").unwrap();
    let text = show(&[&set.path("cache.img")]).stdout;
    for line in [
        "sb.version\t\t5 [cache device]",
        "dev.sectors_per_bucket\t131072",
        "dev.cache.first_sector\t131072",
        "dev.cache.total_sectors\t81920000",
        "cset.uuid\t\t22222222-1111-4111-8111-000000000010",
    ] {
        assert!(text.lines().any(|have| have == line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn showing_changes_nothing_and_needs_no_write_permission() {
    let set = Set::open("fresh").unwrap();
    let dir = paths::scratch().unwrap();
    for copy in set.copy_to(dir.path()).unwrap() {
        let before = sparse::fingerprint(&copy).unwrap();
        fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        assert_eq!(show(&[&copy]).code, 0);
        assert_eq!(sparse::fingerprint(&copy).unwrap(), before);
    }
}

#[test]
fn several_devices_are_named_and_the_worst_exit_code_counts() {
    let set = Set::open("fresh").unwrap();
    let (cache, backing) = (set.path("cache.img"), set.path("backing.img"));
    let said = show(&[&cache, &backing]);
    let expected = format!(
        "{}:\n{}\n{}:\n{}",
        cache.display(),
        recorded("fresh", "cache.img"),
        backing.display(),
        recorded("fresh", "backing.img")
    );
    assert_eq!((said.code, said.stdout), (0, expected));
    let said = show(&[Path::new("/dev/null"), &backing]);
    assert_eq!(said.code, 2);
    assert!(said.stdout.ends_with(&recorded("fresh", "backing.img")));
}

#[test]
fn json_is_one_object_a_line() {
    let set = Set::open("two-backing-flash").unwrap();
    let mut args = vec![PathBuf::from("--json")];
    args.extend(set.paths());
    args.push("/dev/null".into());
    let said = ours("bcache-super-show", &args).unwrap();
    let lines: Vec<serde_json::Value> =
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((said.code, lines.len()), (2, 4));
    assert_eq!(lines[2]["role"], "cache");
    assert_eq!(lines[2]["cache"]["sync"], true);
    assert_eq!(lines[0]["backing"]["cache_mode"], "writeback");
    assert_eq!(lines[0]["label"], "lab-bcache0");
    assert_eq!(lines[3]["error"], "cannot be read");
}

#[test]
fn a_command_line_without_sense_ends_with_1() {
    for args in [&[][..], &["--nonsense"], &["-x", "/dev/null"]] {
        let said = ours("bcache-super-show", args).unwrap();
        assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{args:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{args:?}: {}", said.stderr);
    }
}

/// Bytes at an offset of the superblock.
type Change = (u64, &'static [u8]);
/// A damaged superblock: a name, the golden file it starts from, what is put where, and whether the checksum is made
/// right afterwards.
type Damage = (&'static str, &'static str, &'static [Change], bool);

const DAMAGES: &[Damage] = &[
    ("magic", "cache.img", &[(0x18, &[0])], false),
    ("sector", "cache.img", &[(0x08, &[9])], false),
    ("checksum", "cache.img", &[(0x00, &[0; 8])], false),
    ("unknown version", "cache.img", &[(0x10, &[7])], true),
    ("version 2", "cache.img", &[(0x10, &[2])], true),
    ("full label", "cache.img", &[(0x48, b"0123456789abcdef0123456789ABCDEF")], true),
    ("odd label", "backing.img", &[(0x48, b"a b/\xc3\xa9\n")], true),
    ("all flags of a cache", "cache.img", &[(0x68, &[0xff; 8])], true),
    ("fifo", "cache.img", &[(0x68, &[4])], true),
    ("random", "cache.img", &[(0x68, &[8])], true),
    ("writearound", "backing.img", &[(0x68, &[2])], true),
    ("no caching", "backing.img", &[(0x68, &[3])], true),
    ("unknown mode", "backing.img", &[(0x68, &[9])], true),
    ("clean", "backing.img", &[(0x6f, &[0x20])], true),
    ("dirty", "backing.img", &[(0x6f, &[0x40])], true),
    ("stale", "backing.img", &[(0x6f, &[0x60])], true),
    ("version 4", "backing.img", &[(0x10, &[4]), (0xb8, &[0, 1, 2, 3])], true),
    ("experimental by keys", "backing.img", &[(0x10, &[4]), (0xce, &[1])], true),
    ("experimental by d", "backing.img", &[(0x10, &[4]), (0xd0, &[1])], true),
    ("no buckets", "cache.img", &[(0xb8, &[0; 8])], true),
    ("huge numbers", "cache.img", &[(0xb8, &[0xff; 8]), (0xc0, &[0xff; 8]), (0xcc, &[0xff; 2])], true),
];

/// Writes the damaged device and returns where it is.
fn damaged(dir: &Path, (_, file, changes, seal): &Damage) -> PathBuf {
    let device = dir.join("device");
    sparse::copy(&Set::open("fresh").unwrap().path(file), &device).unwrap();
    let open = File::options().read(true).write(true).open(&device).unwrap();
    for (at, bytes) in *changes {
        open.write_all_at(bytes, SB_OFFSET + at).unwrap();
    }
    if *seal {
        let mut bytes = [0; 4096];
        open.read_exact_at(&mut bytes, SB_OFFSET).unwrap();
        let csum = RawSuperblock::read(&bytes).unwrap().expected_csum();
        open.write_all_at(&csum.to_le_bytes(), SB_OFFSET).unwrap();
    }
    device
}

#[test]
fn damage_has_its_exit_code_and_its_words() {
    let dir = paths::scratch().unwrap();
    for (name, code, stderr, last) in [
        ("magic", 2, "Invalid superblock (bad magic)\n", "sb.magic\t\tbad magic"),
        ("sector", 2, "Invalid superblock (bad sector)\n", "sb.first_sector\t\t9 [expected 8s]"),
        ("checksum", 2, "Corrupt superblock (bad csum)\n", "]"),
        ("unknown version", 0, "", "sb.version\t\t7 [unknown]"),
        ("experimental by keys", 3, "Possible experimental format detected, bailing\n", "1024"),
    ] {
        let damage = DAMAGES.iter().find(|damage| damage.0 == name).unwrap();
        let said = show(&[&damaged(dir.path(), damage)]);
        assert_eq!((said.code, said.stderr.as_str()), (code, stderr), "{name}");
        assert!(said.stdout.trim_end().ends_with(last), "{name}: {}", said.stdout);
    }
    let checksum = damaged(dir.path(), &DAMAGES[2]);
    assert_eq!(show(&[Path::new("-f"), &checksum]).code, 0);
    let missing = show(&[&dir.path().join("missing")]);
    assert_eq!((missing.code, missing.stderr.as_str()), (2, ""));
    assert!(missing.stdout.ends_with("missing: No such file or directory\n"), "{missing:?}");
    let short = show(&[Path::new("/dev/null")]);
    assert_eq!((short.code, short.stdout.as_str(), short.stderr.as_str()), (2, "", "Couldn't read\n"));
}

mod debian {
    use super::*;
    use std::process::Command;

    fn theirs(args: &[&Path]) -> Said {
        run(Command::new("/usr/sbin/bcache-super-show").args(args)).unwrap()
    }

    #[test]
    #[ignore = "needs Debian's bcache-tools"]
    fn every_damage_is_shown_the_same() {
        let dir = paths::scratch().unwrap();
        for damage in DAMAGES {
            let device = damaged(dir.path(), damage);
            for args in [&[device.as_path()][..], &[Path::new("-f"), &device]] {
                assert_eq!(show(args), theirs(args), "{}", damage.0);
            }
        }
    }

    #[test]
    #[ignore = "needs Debian's bcache-tools"]
    fn the_recorded_lines_are_what_it_prints() {
        for set in Set::all().unwrap() {
            for file in &set.entry.files {
                assert_eq!(
                    theirs(&[&set.path(file)]).stdout,
                    recorded(&set.name, file),
                    "{} {file}",
                    set.name
                );
            }
        }
    }
}
