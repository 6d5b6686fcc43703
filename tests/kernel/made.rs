//! What `make-bcache` makes, the kernel takes: each option is registered, attached, written to, stopped and read
//! again.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use bcache_tests::cmd::run;
use bcache_tests::stamp::{Load, Mode};
use bcache_tests::vm::Machine;
use bcache_tests::{paths, sparse};

/// One way to format a cache and a backing device.
struct Variant {
    name: &'static str,
    /// Options for both devices.
    options: &'static str,
    /// Length of the cache in MiB; the backing devices have 96 MiB.
    cache_mib: u64,
    /// What the kernel's settings of the made set must say: a file below `/sys/fs/bcache/SET` or
    /// `/sys/block/BACKING/bcache`, and its content.
    settings: &'static [(&'static str, &'static str)],
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "defaults",
        options: "",
        cache_mib: 300,
        settings: &[
            ("bucket_size", "512.0k"),
            ("block_size", "4.0k"),
            ("cache_mode", "[writethrough]"),
            ("discard", "0"),
            ("cache_replacement_policy", "[lru]"),
        ],
    },
    Variant {
        name: "smallest buckets and blocks",
        options: "--writeback -b 4k -w 512",
        cache_mib: 128,
        settings: &[("bucket_size", "4.0k"), ("block_size", "0.5k"), ("cache_mode", "[writeback]")],
    },
    Variant {
        name: "small buckets",
        options: "--writeback -b 16k -w 1k --cache_replacement_policy random",
        cache_mib: 128,
        settings: &[
            ("bucket_size", "16.0k"),
            ("block_size", "1.0k"),
            ("cache_replacement_policy", "[random]"),
        ],
    },
    Variant {
        name: "data offset",
        options: "--writeback -w 2k -o 2048",
        cache_mib: 300,
        settings: &[("block_size", "2.0k")],
    },
    Variant {
        name: "discard and fifo",
        options: "--discard --cache-replacement-policy fifo",
        cache_mib: 300,
        settings: &[("discard", "1"), ("cache_replacement_policy", "[fifo]")],
    },
    Variant {
        name: "label and set uuid",
        options: "--writeback -l a-label --cset-uuid cdc6ac30-0d1f-4c0c-a0f9-7a8f1a0b1c2d",
        cache_mib: 300,
        settings: &[("label", "a-label")],
    },
    Variant {
        name: "largest plain buckets",
        options: "--writeback -b 16M",
        cache_mib: 513 * 16,
        settings: &[("bucket_size", "16.0M")],
    },
    Variant {
        name: "large buckets",
        options: "--writeback -b 32M",
        cache_mib: 513 * 32,
        settings: &[("bucket_size", "32.0M")],
    },
];

/// The devices of a variant and the load they are given.
struct Made {
    cache: PathBuf,
    backing: PathBuf,
    load: Load,
}

fn format(dir: &Path, index: usize, variant: &Variant) -> Made {
    let (cache, backing) = (dir.join(format!("cache{index}")), dir.join(format!("backing{index}")));
    sparse::create(&cache, variant.cache_mib << 20).unwrap();
    sparse::create(&backing, 96 << 20).unwrap();
    let program = paths::program("make-bcache").unwrap();
    let options = variant.options.split_whitespace();
    let said =
        run(Command::new(program).args(options).arg("-C").arg(&cache).arg("-B").arg(&backing)).unwrap();
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{}", variant.name);
    let load = Load {
        block_sectors: 8,
        range_sectors: 100_000,
        count: 600,
        seed: index as u64 + 1,
        mode: Mode::Rand,
    };
    Made { cache, backing, load }
}

/// The part of the job that is about one variant, on two disks.
fn job(index: usize, variant: &Variant, load: &Load) -> String {
    let disk = |number: usize| format!("vd{}", char::from(b'a' + number as u8));
    let (cache, backing) = (disk(2 * index), disk(2 * index + 1));
    let Load { block_sectors, range_sectors, count, seed, .. } = load;
    let stamp = format!("{block_sectors} {range_sectors} {count} {seed} rand");
    let mut script = format!("begin '{}' {cache} {backing}\n", variant.name);
    for (file, value) in variant.settings {
        writeln!(script, "setting {file} '{value}'").unwrap();
    }
    writeln!(script, "$stamp write $device {stamp} 100").unwrap();
    writeln!(script, "stop_bcache\nregister /dev/{cache} /dev/{backing}\nattached").unwrap();
    writeln!(script, "$stamp check $device {stamp} {count}\nstop_bcache").unwrap();
    script
}

const FUNCTIONS: &str = r#"
# Waits until the backing device has its cache, and finds the names of both.
attached() {
  await test -L /sys/block/$backing/bcache/cache
  await test -b /dev/$(basename "$(readlink -f /sys/block/$backing/bcache/dev)")
  device=/dev/$(basename "$(readlink -f /sys/block/$backing/bcache/dev)")
  set=$(readlink -f /sys/block/$backing/bcache/cache)
  # Every write goes through the cache, and in writeback mode stays there.
  echo 0 > /sys/block/$backing/bcache/sequential_cutoff
  echo 0 > $set/congested_read_threshold_us
  echo 0 > $set/congested_write_threshold_us
  echo 0 > /sys/block/$backing/bcache/writeback_running
}
begin() {
  echo "== $1"
  backing=$3
  cache=$2
  register /dev/$cache /dev/$backing
  attached
}
# A setting of the set, of its cache or of the backing device has a value.
setting() {
  local file
  for file in $set/$1 $set/cache0/$1 /sys/block/$backing/bcache/$1; do
    if grep -qF -- "$2" $file 2> /dev/null; then return 0; fi
  done
  echo "$1 is not $2:" >&2
  grep -H . $set/$1 $set/cache0/$1 /sys/block/$backing/bcache/$1 >&2
  return 1
}
"#;

/// Formats every variant, lets a kernel use all of them in one boot, and looks at what is left.
fn the_kernel_takes_every_variant(kernel: &'static str) {
    let dir = paths::scratch().unwrap();
    let mut machine = Machine::new(kernel).seconds(600);
    let stamp = paths::program("stamp").unwrap();
    let mut script = format!("stamp={}\n{FUNCTIONS}\nload_bcache\n", stamp.display());
    let mut all = Vec::new();
    for (index, variant) in VARIANTS.iter().enumerate() {
        let made = format(dir.path(), index, variant);
        machine = machine.disk(&made.cache).disk(&made.backing);
        script += &job(index, variant, &made.load);
        all.push(made);
    }
    script += "no_kernel_complaints\n";
    println!("{}", machine.succeed(&script).unwrap());
    for (variant, made) in VARIANTS.iter().zip(&all) {
        left_behind(variant, made);
        content_is_what_was_written(dir.path(), variant, made);
        nothing_is_wrong(variant, made);
    }
}

/// The superblocks after the run, as we read them.
fn left_behind(variant: &Variant, made: &Made) {
    let program = paths::program("bcache-super-show").unwrap();
    let said = run(Command::new(program).arg("--json").arg(&made.cache).arg(&made.backing)).unwrap();
    let shown: Vec<serde_json::Value> =
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (cache, backing) = (&shown[0], &shown[1]);
    let version = if variant.name == "large buckets" { 5 } else { 3 };
    assert_eq!(cache["version"], version, "{}", variant.name);
    assert_eq!(cache["cache"]["sync"], true, "{}", variant.name);
    assert_eq!(cache["set_uuid"], backing["set_uuid"], "{}", variant.name);
    let state = if variant.options.contains("--writeback") { "dirty" } else { "clean" };
    assert_eq!(backing["backing"]["state"], state, "{}", variant.name);
}

/// Our own reader of cached devices finds what went through the kernel's.
fn content_is_what_was_written(dir: &Path, variant: &Variant, made: &Made) {
    let content = dir.join("content");
    let program = paths::program("bcache").unwrap();
    let export = ["export", "-o"];
    let said =
        run(Command::new(program).args(export).arg(&content).arg(&made.cache).arg(&made.backing)).unwrap();
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{}", variant.name);
    let report = made.load.check(BufReader::new(File::open(&content).unwrap()), made.load.count).unwrap();
    assert_eq!(report.bad, 0, "{}: {report}", variant.name);
}

/// The checker has nothing to say of what the kernel left.
fn nothing_is_wrong(variant: &Variant, made: &Made) {
    let program = paths::program("bcache").unwrap();
    let said = run(Command::new(program).args(["fsck", "-n"]).arg(&made.cache).arg(&made.backing)).unwrap();
    assert_eq!(said.code, 0, "{}: {said:?}", variant.name);
}

#[test]
#[ignore = "boots a kernel"]
fn every_option_is_taken_by_linux_6_12() {
    the_kernel_takes_every_variant("6.12");
}

mod long {
    #[test]
    #[ignore = "boots a kernel"]
    fn every_option_is_taken_by_linux_6_1() {
        super::the_kernel_takes_every_variant("6.1");
    }
}

#[test]
#[ignore = "boots a kernel"]
fn devices_that_are_in_use_or_have_larger_blocks_are_refused() {
    let dir = paths::scratch().unwrap();
    let disks = ["a", "b", "c"].map(|name| dir.path().join(name));
    for disk in &disks {
        sparse::create(disk, 400 << 20).unwrap();
    }
    let make = paths::program("make-bcache").unwrap();
    let fsck = paths::program("bcache-fsck").unwrap();
    let script = format!(
        r#"
make={} fsck={}
# busy OPTION DEVICE...: the checker does not touch them.
busy() {{
  local said status=0
  said=$($fsck "$@" 2>&1) || status=$?
  if ((status != 8)) || [[ $said != *'in use'* ]]; then echo "fsck $*: $status, $said" >&2; return 1; fi
}}
refused() {{
  local why=$1 said
  shift
  if said=$($make "$@" 2>&1); then echo "not refused: $*" >&2; return 1; fi
  if [[ $said != *"$why"* ]]; then echo "$*: $said" >&2; return 1; fi
}}
# vda has blocks of 4096 bytes, and so has its partition
addpart /dev/vda 1 2048 716800
await test -b /dev/vda1
refused 'smaller than the logical block of /dev/vda, 4096 bytes' -C -w 512 /dev/vda
refused 'smaller than the logical block of /dev/vda1, 4096 bytes' -C -w 2k /dev/vda1
refused 'smaller than the logical block of /dev/vda, 4096 bytes' -w 512 -C /dev/vdb -B /dev/vda
$make --dry-run -C /dev/vdb | grep -q 'block_size:.*1$'
$make --dry-run -C /dev/vdb -B /dev/vda | grep -q 'block_size:.*8$'
$make --dry-run -C /dev/vda1 | grep -q 'block_size:.*8$'
# in use as swap
mkswap -q /dev/vdb
refused 'already has a swap signature' -C /dev/vdb
swapon /dev/vdb
refused '/dev/vdb is in use' --force -C /dev/vdb
refused '/dev/vdb is in use' --force -B /dev/vdc /dev/vdb
swapoff /dev/vdb
# in use by the kernel's bcache
load_bcache
$make --force -C /dev/vdb -B /dev/vdc
register /dev/vdb /dev/vdc
await test -b /dev/bcache0
refused '/dev/vdc is in use by bcache0' --force -B /dev/vdc
refused '/dev/vdb is in use' --force -C /dev/vdb
for option in -n -p -y; do
  busy $option /dev/vdb /dev/vdc
  busy $option /dev/vdc
done
stop_bcache
$fsck -n /dev/vdb /dev/vdc
refused 'Already a bcache device on /dev/vdc' -B /dev/vdc
$make --wipe-bcache -B /dev/vdc
"#,
        make.display(),
        fsck.display()
    );
    Machine::new("6.12").disk_4k(&disks[0]).disk(&disks[1]).disk(&disks[2]).succeed(&script).unwrap();
}
