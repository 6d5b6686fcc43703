//! `bcache fsck`: checks the metadata of a set and repairs it.
//!
//! Long because everything is told twice, for people and for programs.

use super::partial::partial;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::check::Progress;
use bcache_engine::fsck::repair::{self, Plan, WriteAt};
use bcache_engine::fsck::view::Device;
use bcache_engine::fsck::{Checked, Finding, Kind, Options, Severity, check};
use bcache_format::{Pos, Sectors};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::canceled::Canceled;
use super::{Out, Outcome, memory};
use crate::devices::{Access, InUse, Writable, each_once, open_for};
use crate::{kept, raw, signature};

/// Exit code: nothing found.
const OK: u8 = 0;
/// Exit code: everything that was found is repaired.
const CORRECTED: u8 = 1;
/// Exit code: something is wrong and stays so.
const UNCORRECTED: u8 = 4;
/// Signatures before this byte are of whoever has the device.
const IN_FRONT: u64 = 1 << 20;
/// Exit code: the check itself did not work, or a repair is refused.
pub const OPERATION: u8 = 8;
/// Exit code: the command line makes no sense.
pub const USAGE: u8 = 16;
/// Exit code: the person at the terminal said no, or a signal ended the check.
const CANCELED: u8 = 32;

/// Check and repair a cache set: superblocks, journal, prio sets, uuid table, btree, extents, buckets, backing devices
///
/// Cache and backing devices of one set, in any order; a cache alone or a backing device alone can be checked too.
/// On a terminal, without -n, -p or -y, asks before it repairs; without a terminal it only checks. A repair is
/// computed and tried in memory first; what cannot be proved there is not written. What it overwrites is kept in a
/// file that `bcache undo` puts back. Exit code as fsck(8): 0 nothing found, 1 repaired, 4 something is left (5 after
/// a repair), 8 the check did not work, the devices are not those of one set or not whole, or the repair is refused, 16
/// the command line makes no sense, 32 canceled by a signal, 36 canceled at the question, so that something is left. A
/// repair that has begun to write is not canceled.
/// Findings are explained in bcache-findings(7) and by --explain.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache fsck -n /dev/sdb /dev/nvme0n1\n  \
    bcache fsck -y --dry-run /dev/sdb /dev/nvme0n1\n  bcache fsck --explain bset-checksum")]
pub struct Args {
    /// Check only: nothing is opened for writing
    #[arg(short = 'n', group = "mode")]
    no: bool,
    /// Repair what can be repaired without losing anything: no sector of any device reads otherwise than before
    #[arg(short = 'p', visible_short_alias = 'a', group = "mode")]
    preen: bool,
    /// Repair all that can be repaired; what is lost by it is told
    #[arg(short = 'y', group = "mode")]
    yes: bool,
    /// Accepted for fsck(8) and ignored: a set is always checked in full
    #[arg(short = 'f')]
    force: bool,
    /// With -p or -y: list the writes of the repair and do none of them
    #[arg(long)]
    dry_run: bool,
    /// Keep what the repair overwrites in this file, which must not exist yet. Otherwise one is made in /var/log
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    /// Write progress to this file descriptor: number of the pass, how much is done, of how much, device. With 0 it is
    /// the bar that a terminal has anyway
    #[arg(short = 'C', value_name = "FD")]
    progress: Option<u16>,
    /// One JSON object a line: each finding, each device of the set that was not named, a summary, each write of a dry
    /// run, the undo file of a repair
    #[arg(long)]
    json: bool,
    /// Read all cached data as well, and compare clean data with the backing device
    #[arg(long)]
    data: bool,
    /// Say what a finding means and what repair does; `all` for all of them
    #[arg(long, value_name = "ID")]
    explain: Option<String>,
    /// Devices of one set, in any order
    #[arg(value_name = "DEV", required_unless_present = "explain")]
    devices: Vec<PathBuf>,
}

/// Check and repair bcache devices
#[derive(Debug, clap::Parser)]
#[command(name = "bcache-fsck", version)]
pub struct Program {
    #[command(flatten)]
    args: Args,
}

/// The program of its own name.
pub fn run_program(program: Program, out: &mut Out) -> Outcome {
    run(program.args, out)
}

/// What to do about findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Look,
    Preen,
    Yes,
    Ask,
}

impl Args {
    fn mode(&self) -> Mode {
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        match (self.no, self.preen, self.yes) {
            (true, _, _) => Mode::Look,
            (_, true, _) => Mode::Preen,
            (_, _, true) => Mode::Yes,
            _ if terminal && !self.json => Mode::Ask,
            _ => Mode::Look,
        }
    }
}

/// Checks, and repairs as asked.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    if let Some(id) = &args.explain {
        return explain(id, out);
    }
    let canceled = Canceled::exits(CANCELED);
    let mode = args.mode();
    let writes = mode != Mode::Look && !args.dry_run;
    each_once(&args.devices)?;
    let (mut devices, mut writable) = (Vec::new(), Vec::new());
    for path in &args.devices {
        let (in_use, access) =
            if writes { (InUse::Lay, Access::Write) } else { (InUse::LayOrTell, Access::Read) };
        let (device, write) = open_for(path, in_use, access)?;
        devices.push(device);
        writable.extend(write);
    }
    let checked = look(&args, &devices)?;
    tell(&checked, args.json, out)?;
    if checked.findings.is_empty() {
        return Ok(ExitCode::from(OK));
    }
    if checked.findings.counts.keys().any(|kind| kind.is_choice()) {
        out.flush()?;
        writeln!(
            io::stderr(),
            "nothing is repaired: these are not the devices of one set, or not all of one is there"
        )?;
        return Ok(ExitCode::from(OPERATION));
    }
    let may = match mode {
        Mode::Look => false,
        Mode::Preen => checked.worst().is_some_and(|worst| worst <= Severity::Lossless),
        Mode::Yes | Mode::Ask => true,
    };
    if !may {
        return Ok(ExitCode::from(UNCORRECTED));
    }
    for (path, device) in args.devices.iter().zip(&devices) {
        if let Some(other) = other_owner(&checked, path, device.name())? {
            out.flush()?;
            writeln!(io::stderr(), "nothing is repaired: {other}")?;
            return Ok(ExitCode::from(OPERATION));
        }
    }
    memory::suffices(repair::memory(&checked))?;
    let plan = match repair::plan(&devices, &checked, &mut random) {
        Ok(plan) => plan,
        Err(refused) => {
            out.flush()?;
            writeln!(io::stderr(), "nothing is repaired: {refused}")?;
            return Ok(ExitCode::from(OPERATION));
        }
    };
    tell_changed(&plan, &checked, args.json, out)?;
    if mode == Mode::Preen && !plan.changed.is_empty() {
        return Ok(ExitCode::from(UNCORRECTED));
    }
    if args.dry_run {
        list(&plan, args.json, out)?;
        return Ok(ExitCode::from(UNCORRECTED));
    }
    if mode == Mode::Ask && !agreed(&plan, out)? {
        return Ok(ExitCode::from(CANCELED | UNCORRECTED));
    }
    canceled.not_any_more();
    repair_now(&args, &plan, &checked, &devices, &writable, out)
}

/// What a device without a superblock is of by now, if that is not bcache: its superblock is not lost, but overwritten.
fn other_owner(checked: &Checked, path: &Path, name: &str) -> Result<Option<String>> {
    let lost =
        |finding: &Finding| matches!(finding.kind, Kind::SbLost | Kind::SbWiped) && *finding.device == *name;
    if !checked.findings.iter().any(lost) {
        return Ok(None);
    }
    let found = signature::find(path).with_context(|| path.display().to_string())?;
    // What stands at its end is of what is inside.
    let in_front = |found: &signature::Signature| found.place().is_some_and(|(at, _)| at < IN_FRONT);
    let kinds: Vec<_> = found
        .into_iter()
        .filter(|found| found.kind != "bcache" && in_front(found))
        .map(|found| found.kind)
        .collect();
    let text = format!(
        "{}: it has no superblock, but {} on it: it was given to something else since",
        path.display(),
        kinds.join(", ")
    );
    Ok((!kinds.is_empty()).then_some(text))
}

/// The check, with its progress where it is wanted.
fn look(args: &Args, devices: &[Device]) -> Result<Checked> {
    let machine = match args.progress {
        Some(fd) if fd > 0 => Some(raw::descriptor(fd).with_context(|| format!("-C {fd}"))?),
        _ => None,
    };
    let style = ProgressStyle::with_template("{msg:>10} {wide_bar} {percent:>3} %");
    let bar = ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let name = args.devices.first().map(|path| path.display().to_string()).unwrap_or_default();
    let progress = |Progress { pass, name: word, done, of }| {
        bar.set_length(of);
        bar.set_position(done);
        bar.set_message(word);
        if let Some(mut file) = machine.as_ref() {
            // Nobody reading it is no reason to stop a check.
            let _ = writeln!(file, "{} {done} {of} {name}", pass + 1);
        }
    };
    let options = Options { data: args.data, progress: Some(&progress), kept: Some(&kept::left_of) };
    let checked = check(devices.iter().cloned(), options);
    bar.finish_and_clear();
    Ok(checked)
}

/// Writes the undo file, then the repair, and looks again.
fn repair_now(
    args: &Args,
    plan: &Plan,
    checked: &Checked,
    devices: &[Device],
    writable: &[Writable],
    out: &mut Out,
) -> Outcome {
    let undo = keep_old(args, plan, devices)?;
    let targets: Vec<_> = writable.iter().map(|device| (device.name(), device as &dyn WriteAt)).collect();
    let done = repair::apply(plan, &targets);
    let undo = undo.display().to_string();
    if args.json {
        writeln!(out, "{}", json!({"kind": "undo", "file": undo}))?;
    } else {
        writeln!(out, "what was overwritten is in {undo}; `bcache undo` puts it back")?;
    }
    done?;
    if let Some(cache) = checked.cache.as_ref().filter(|_| !checked.kept.is_empty()) {
        kept::set_aside(cache.sb.set_uuid)?;
    }
    let again = check(devices.iter().cloned(), Options::default());
    if !args.json || !again.findings.is_empty() {
        tell(&again, args.json, out)?;
    }
    Ok(ExitCode::from(if again.findings.is_empty() { CORRECTED } else { CORRECTED | UNCORRECTED }))
}

/// Saves what the plan overwrites, durably, and tells where.
fn keep_old(args: &Args, plan: &Plan, devices: &[Device]) -> Result<PathBuf> {
    let path = args.undo.clone().unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let name = format!("bcache-undo-{}-{}", now.unwrap_or_default().as_secs(), std::process::id());
        let log = PathBuf::from("/var/log");
        let beside_log = nix::unistd::access(&log, nix::unistd::AccessFlags::W_OK).is_ok();
        if beside_log { log.join(name) } else { PathBuf::from(name) }
    });
    let bytes = repair::undo::save(plan, devices)?;
    write_durably(&path, &bytes)
        .with_context(|| format!("{}: keeping what would be overwritten", path.display()))?;
    Ok(path)
}

/// A new file that outlives a crash, its name included. Only its owner may read it: it has parts of devices.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        // A part of it would put back a part.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// A number that no earlier life of a node has.
fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn agreed(plan: &Plan, out: &mut Out) -> Result<bool> {
    let (count, bytes) =
        plan.writes().fold((0, 0u64), |(count, bytes), write| (count + 1, bytes + write.bytes.len()));
    write!(out, "repair with {count} writes of {bytes} bytes in all? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Sectors of which a reader gets something else after the repair.
fn tell_changed(plan: &Plan, checked: &Checked, json: bool, out: &mut Out) -> Result<()> {
    let changed = plan.changed.iter().flat_map(|range| sectors(range, checked));
    if json && !plan.changed.is_empty() {
        let ranges: Vec<_> = changed.map(|range| range.json()).collect();
        writeln!(out, "{}", json!({"kind": "changed", "sectors": ranges}))?;
    } else if !json {
        for range in changed {
            writeln!(out, "a repair changes what is read there: {range}")?;
        }
    }
    Ok(())
}

/// The writes of a repair, in their order.
fn list(plan: &Plan, json: bool, out: &mut Out) -> Result<()> {
    for (index, step) in plan.steps.iter().enumerate() {
        if !json {
            writeln!(out, "step {}: {}", index + 1, step.why)?;
        }
        for write in &step.writes {
            let (device, byte, bytes) = (&write.device, write.byte, write.bytes.len());
            if json {
                let value = json!({"kind": "write", "step": index + 1, "why": step.why, "what": write.what,
                                   "device": &**device, "byte": byte, "bytes": bytes});
                writeln!(out, "{value}")?;
            } else {
                writeln!(out, "  {device} byte {byte}, {bytes} bytes: {}", write.what)?;
            }
        }
    }
    Ok(())
}

/// Prints the findings and their summary.
fn tell(checked: &Checked, json: bool, out: &mut Out) -> Result<()> {
    for finding in checked.findings.iter() {
        if json {
            writeln!(out, "{}", as_json(finding, checked))?;
        } else {
            as_text(finding, checked, out)?;
        }
    }
    summary(checked, json, out)
}

fn explain(id: &str, out: &mut Out) -> Outcome {
    let kinds: Vec<Kind> = match Kind::from_id(id) {
        Some(kind) => vec![kind],
        None if id == "all" => Kind::ALL.to_vec(),
        None => bail!("no finding is called {id}; `--explain all` lists them"),
    };
    for kind in kinds {
        writeln!(out, "{kind} ({})\n  {}\n  Repair: {}", kind.severity(), kind.means(), kind.repair())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn as_text(finding: &Finding, checked: &Checked, out: &mut Out) -> Result<()> {
    let bucket = finding.bucket.map_or_else(String::new, |bucket| format!(", bucket {bucket}"));
    writeln!(
        out,
        "{} ({}) {} at byte {}{bucket}\n  {}",
        finding.kind,
        finding.severity(),
        finding.device,
        finding.byte,
        finding.detail,
    )?;
    for lost in &finding.lost {
        for range in sectors(*lost, checked) {
            writeln!(out, "  lost, or not in its newest state: {range}")?;
        }
    }
    if !finding.lost.is_empty() {
        // A file system block is 8 sectors where nobody chose otherwise.
        writeln!(out, "  files: ext4: debugfs -R 'icheck SECTOR/8' DEV, then 'ncheck INODE'")?;
        writeln!(out, "         xfs: xfs_db -r -c 'blockget -n' -c 'daddr SECTOR' -c 'blockuse -n' DEV")?;
    }
    Ok(())
}

fn as_json(finding: &Finding, checked: &Checked) -> Value {
    let lost: Vec<_> =
        finding.lost.iter().flat_map(|lost| sectors(*lost, checked)).map(|lost| lost.json()).collect();
    json!({"kind": "finding", "id": finding.kind.id(), "severity": finding.severity().name(),
           "device": &*finding.device, "byte": finding.byte, "bucket": finding.bucket,
           "detail": finding.detail, "means": finding.kind.means(), "repair": finding.kind.repair(),
           "lost": lost})
}

/// Sectors of one cached device or volume.
struct Range {
    of: String,
    from: u64,
    to: Option<u64>,
}

impl Range {
    fn json(&self) -> Value {
        json!({"of": self.of, "from": self.from, "to": self.to})
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to {
            Some(to) => write!(f, "sectors {}..{to} of {}", self.from, self.of),
            None => write!(f, "sectors from {} on of {}", self.from, self.of),
        }
    }
}

/// A range of keys as sectors of the cached devices it is of.
fn sectors((from, to): (Pos, Pos), checked: &Checked) -> Vec<Range> {
    let uuids = checked.set.as_ref().map(|set| set.uuids.as_slice()).unwrap_or_default();
    let mut ranges = Vec::new();
    for (slot, entry) in (0u32..).zip(uuids).filter(|(_, entry)| !entry.is_free() && !entry.is_detached()) {
        if slot < from.inode || slot > to.inode {
            continue;
        }
        let backing = checked.backings.iter().find(|backing| backing.sb.uuid == entry.uuid);
        let offset = backing.map_or(Sectors(0), |backing| backing.fields.data_offset).0;
        let start = if slot == from.inode { from.offset } else { 0 };
        let end = backing
            .map(|backing| Sectors::from_bytes(backing.device.size()).0)
            .or(if entry.is_flash_only() { Some(entry.sectors.0) } else { None });
        let to = if slot == to.inode { Some(to.offset.min(end.unwrap_or(u64::MAX))) } else { end };
        if to.is_some_and(|to| to <= start.max(offset)) {
            continue;
        }
        let of = backing
            .map_or_else(|| format!("slot {slot} ({})", entry.uuid), |backing| backing.name.to_string());
        let from = start.saturating_sub(offset);
        ranges.push(Range { of, from, to: to.map(|to| to.saturating_sub(offset)) });
    }
    ranges
}

fn summary(checked: &Checked, json: bool, out: &mut Out) -> Result<()> {
    let absent = checked.absent();
    partial(&absent, json, out)?;
    let total: u64 = checked.findings.counts.values().sum();
    let dirty: u64 = checked.slots.values().map(|slot| slot.dirty).sum();
    let worst = checked.worst().map(Severity::name);
    if json {
        let counts: serde_json::Map<_, _> = checked
            .findings
            .counts
            .iter()
            .map(|(kind, count)| (kind.id().to_owned(), json!(count)))
            .collect();
        let value = json!({"kind": "summary", "findings": total, "worst": worst, "counts": counts,
                           "dirty_sectors": dirty, "partial": !absent.is_empty()});
        writeln!(out, "{value}")?;
        return Ok(());
    }
    match (total, worst) {
        (0, _) if !absent.is_empty() => {
            writeln!(out, "clean as far as it was checked: no finding, {dirty} dirty sectors")?;
        }
        (0, _) => writeln!(out, "clean: no finding, {dirty} dirty sectors")?,
        (1, Some(worst)) => writeln!(out, "1 finding, {worst}")?,
        (_, worst) => writeln!(out, "{total} findings, the worst is {}", worst.unwrap_or_default())?,
    }
    Ok(())
}
