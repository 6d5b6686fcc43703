//! Who reads a set that nobody serves.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use bcache_engine::env::Rng;
use bcache_tests::cmd::{Said, ours};
use serde_json::Value;

use super::{DATA_OFFSET, End, Outcome, SECTOR, World, said, with};

/// How long files may be in use after a process was killed.
const PATIENCE: Duration = Duration::from_secs(20);
/// The torn end of a journal is what a kill leaves, and no damage.
const TORN: &str = "journal-tail-torn";

impl World {
    /// What `bcache SUBCOMMAND` says of all devices. The kernel closes the ring of a process that was killed, and with it
    /// the files that it uses, some time after the process is gone.
    fn bcache(&self, args: &[&str]) -> Outcome<Said> {
        let started = Instant::now();
        loop {
            let devices = self.devices.iter().filter_map(|path| path.to_str());
            let said = said(args[0], ours("bcache", args.iter().copied().chain(devices)))?;
            if !said.stderr.contains("in use") || started.elapsed() > PATIENCE {
                return Ok(said);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What `bcache export` writes of what `--of` names.
    fn exported(&self, of: &str) -> Outcome<Vec<u8>> {
        let file = self.dir.path().join("export");
        let path = file.to_string_lossy().into_owned();
        let export = self.bcache(&["export", "--of", of, "-o", &path])?;
        if export.code != 0 {
            return Err(format!("export of {of} ends with {}: {}", export.code, export.stderr.trim()));
        }
        let bytes = said("the export", std::fs::read(&file))?;
        said("the export", std::fs::remove_file(&file))?;
        Ok(bytes)
    }

    /// `bcache fsck -n` finds nothing that a kill does not leave.
    fn check(&self, end: End) -> Outcome {
        let check = self.bcache(&["fsck", "-n", "--json"])?;
        let lines = check.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let findings = lines.filter(|line| line["kind"] == "finding");
        let wrong = findings.filter(|line| end == End::Stop || line["id"] != TORN);
        let wrong: Vec<String> = wrong.map(|line| format!("{}: {}", line["id"], line["detail"])).collect();
        if !wrong.is_empty() {
            return Err(format!("fsck -n finds {}", wrong.join("; ")));
        }
        if matches!(check.code, 0 | 4) {
            return Ok(());
        }
        Err(format!("fsck -n ends with {}: {}{}", check.code, check.stdout, check.stderr))
    }

    /// `bcache map` of some sectors leads to the bytes that were exported.
    fn map(&self, of: &str, exported: &[u8], rng: &mut Rng) -> Outcome {
        let sector = rng.below(exported.len() as u64 / SECTOR);
        let map = self.bcache(&["map", "--json", "--of", of, &sector.to_string()])?;
        let place: Value = said("map", serde_json::from_str(&map.stdout))?;
        let mut bytes = vec![0; SECTOR as usize];
        if let (Some(device), Some(at)) = (place["device"].as_str(), place["byte"].as_u64()) {
            let device = self.devices.iter().find(|path| path.to_string_lossy().ends_with(device));
            let device = device.ok_or_else(|| format!("map names no device of ours: {place}"))?;
            said("map", File::open(device).and_then(|file| file.read_exact_at(&mut bytes, at)))?;
        }
        let there = &exported[(sector * SECTOR) as usize..][..SECTOR as usize];
        if bytes == there { Ok(()) } else { Err(format!("map says of sector {sector} of {of}: {place}")) }
    }
}

/// All read what may be read.
pub(super) fn agree(world: &World, end: End, rng: &mut Rng) -> Outcome {
    world.check(end)?;
    for ((of, _), model) in world.names().iter().zip(&world.models) {
        let bytes = world.exported(of)?;
        let judged = with(model, |model| model.judge_at_rest(&bytes));
        judged.map_err(|wrong| format!("exported, {of}: {wrong}"))?;
        world.map(of, &bytes, rng)?;
    }
    Ok(())
}

/// `bcache fsck -p` changes nothing of what anybody reads.
pub(super) fn repair(world: &World, rng: &mut Rng) -> Outcome {
    let undo = world.dir.path().join(format!("undo-{}", rng.bits()));
    let repair = world.bcache(&["fsck", "-p", "--undo", &undo.to_string_lossy()])?;
    if !matches!(repair.code, 0 | 1) {
        return Err(format!("fsck -p ends with {}: {}{}", repair.code, repair.stdout, repair.stderr));
    }
    agree(world, End::Stop, rng).map_err(|what| format!("after fsck -p: {what}"))
}

/// After `bcache flush` the backing devices have it all.
pub(super) fn flush(world: &World) -> Outcome {
    let flush = world.bcache(&["flush"])?;
    if flush.code != 0 {
        // Somebody has to say first that this is to be repaired.
        let torn = flush.stderr.contains(TORN);
        return if torn { Ok(()) } else { Err(format!("flush ends with {}: {}", flush.code, flush.stderr)) };
    }
    for (path, model) in world.devices[1..].iter().zip(&world.models) {
        let sectors = with(model, |model| model.sectors());
        let mut bytes = vec![0; (sectors * SECTOR) as usize];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, DATA_OFFSET * SECTOR));
        said("a backing device", read)?;
        let judged = with(model, |model| model.judge_at_rest(&bytes));
        judged.map_err(|wrong| format!("flushed offline, {}: {wrong}", path.display()))?;
    }
    Ok(())
}
