//! Sets of the real programs in the hands of Linux and back: it has to read what was acknowledged, whatever ended the
//! program before it, and what it writes has to be there when the programs come again.

use std::fmt::Write as _;
use std::path::Path;

use bcache_engine::env::Rng;
use bcache_tests::vm::Machine;

use super::{End, Outcome, SECTOR, World, readers, said, with};

/// Rounds of a set before Linux takes it, and after.
const ROUNDS: u64 = 3;
/// Writes to each device by Linux.
const WRITES: u64 = 6;

/// In the machine: Linux takes the set in a directory, reads all of it, writes, and lets it go. Its files are on no disk that
/// direct I/O can be done on, so they are copied.
const TURN: &str = r#"
# What hangs says where on the console.
dmesg -n 8
load_bcache
modprobe loop
turn() {
  local set=$1 file loops=() devices=() number
  rm -rf /dev/shm/set; mkdir /dev/shm/set
  cp --sparse=always "$set"/*.img /dev/shm/set
  for file in cache one two; do loops+=("$(losetup --find --show /dev/shm/set/$file.img)"); done
  register "${loops[@]}"
  for number in 1 2; do
    await test -e "/sys/block/${loops[number]##*/}/bcache/dev/dev"
    devices+=("$(basename "$(realpath "/sys/block/${loops[number]##*/}/bcache/dev")")")
  done
  for file in /sys/block/bcache*; do
    [[ " ${devices[*]} " == *" ${file##*/} "* ]] || devices+=("${file##*/}")
  done
  ((${#devices[@]} == 3))
  for number in 0 1 2; do
    readable() { head -c 4096 "/dev/${devices[number]}" > /dev/null 2>&1; }
    await readable
    dd if="/dev/${devices[number]}" of="$set/read-$number" bs=1M iflag=direct status=none
  done
  while read -r number at file; do
    dd if="$set/$file" of="/dev/${devices[number]}" bs=4096 seek="$at" oflag=direct,seek_bytes conv=notrunc,fsync status=none
  done < "$set/writes"
  stop_bcache
  losetup --detach-all
  cp --sparse=always /dev/shm/set/*.img "$set"
}
"#;

/// A set that goes to Linux, and what Linux writes to it.
struct Visitor {
    world: World,
    rng: Rng,
    seed: u64,
    /// For each: the device's number, and the write's.
    writes: Vec<(usize, u32)>,
}

impl Visitor {
    /// A set after some rounds.
    fn new(seed: u64, share: &Path) -> Outcome<Visitor> {
        let mut rng = Rng::new(seed);
        let world = World::within(said("a directory", tempfile::TempDir::new_in(share))?, &mut rng)?;
        let mut visitor = Visitor { world, rng, seed, writes: Vec::new() };
        visitor.rounds()?;
        visitor.prepare()?;
        Ok(visitor)
    }

    fn rounds(&mut self) -> Outcome {
        for _ in 0..ROUNDS {
            self.world.round(&mut self.rng)?;
        }
        Ok(())
    }

    /// Puts what Linux is to write beside the devices.
    fn prepare(&mut self) -> Outcome {
        let dir = self.world.dir.path();
        let mut list = String::new();
        for (number, model) in self.world.models.iter().enumerate() {
            let sectors = with(model, |model| model.sectors());
            for _ in 0..WRITES {
                // Direct I/O of whole pages.
                let count = self.rng.between(1, 32) * 8;
                let sector = self.rng.below(sectors - count + 1) / 8 * 8;
                let (write, bytes) = with(model, |model| model.begin_write(sector, count));
                let file = format!("write-{}", self.writes.len());
                said(&file, std::fs::write(dir.join(&file), &bytes[..]))?;
                let _ = writeln!(list, "{number} {} {file}", sector * SECTOR);
                self.writes.push((number, write));
            }
        }
        said("the list of writes", std::fs::write(dir.join("writes"), list))
    }

    /// Judges what Linux read, and what others read after it.
    fn back(&mut self) -> Outcome {
        for (number, model) in self.world.models.iter().enumerate() {
            let bytes =
                said("what Linux read", std::fs::read(self.world.dir.path().join(format!("read-{number}"))))?;
            let wanted = with(model, |model| model.sectors()) * SECTOR;
            if bytes.len() as u64 != wanted {
                return Err(format!("Linux shows {} bytes of device {number}, not {wanted}", bytes.len()));
            }
            // It read before it wrote: these writes have begun and are seen by nobody yet.
            let judged = with(model, |model| model.judge_at_rest(&bytes));
            judged.map_err(|wrong| format!("Linux, device {number}: {wrong}"))?;
        }
        for (number, write) in self.writes.drain(..) {
            with(&self.world.models[number], |model| model.end_write(write, true));
        }
        for model in &self.world.models {
            with(model, |model| model.stopped());
        }
        readers::agree(&self.world, End::Stop, &mut self.rng)?;
        self.rounds()
    }
}

fn visits(test: &str, count: u64) {
    let count = super::number("ROUNDS").unwrap_or(count);
    let first = super::number("ROUNDS_SEED").unwrap_or(1);
    let replay = |seed: u64| {
        format!(
            "replay: ROUNDS_SEED={seed} ROUNDS=1 cargo test -p bcache-tests --test rounds -- --ignored {test}"
        )
    };
    let share = bcache_tests::paths::scratch().expect("a directory");
    let mut script = TURN.to_owned();
    let mut visitors = Vec::new();
    for seed in first..first + count {
        let made = Visitor::new(seed, share.path());
        let visitor = made.unwrap_or_else(|what| panic!("set {seed}: {what}\n{}", replay(seed)));
        let name = visitor.world.dir.path().file_name().unwrap_or_default();
        let _ = writeln!(script, "turn /share/{}", name.display());
        visitors.push(visitor);
    }
    script.push_str("no_kernel_complaints\n");
    // Linux may write a btree node only 30 s after it was changed, and keep a write waiting for the journal until then.
    let seconds = 60 + 90 * count as u32;
    let machine = Machine::new("6.12").share(share.path()).seconds(seconds);
    let finished = machine.run(&script).expect("a machine");
    if finished.status != 0 {
        let kept = share.keep();
        panic!("{}: {}\n{}\nfiles in {}", finished.status, finished.output, finished.console, kept.display());
    }
    for mut visitor in visitors {
        let seed = visitor.seed;
        visitor.back().unwrap_or_else(|what| panic!("set {seed}: {what}\n{}", replay(seed)));
    }
    println!(
        "{test}: {count} sets handed to Linux and back, {ROUNDS} rounds before and after, ROUNDS_SEED={first}"
    );
}

#[test]
#[ignore = "boots a kernel"]
fn four_sets_go_to_linux_and_come_back() {
    visits("kernel::four_sets_go_to_linux_and_come_back", 4);
}

mod long {
    #[test]
    #[ignore = "boots a kernel, and takes long"]
    fn fifty_sets_go_to_linux_and_come_back() {
        super::visits("kernel::long::fifty_sets_go_to_linux_and_come_back", 50);
    }
}
