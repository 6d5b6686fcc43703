//! `bcache salvage`: dirty data of a cache whose journal or btree root is gone.
//!
//! Long because what is sure, what is doubtful and what is lost are each chosen, written and told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bcache_engine::fsck::check::Progress;
use bcache_engine::fsck::repair::WriteAt;
use bcache_engine::fsck::salvage::{Belief, Salvage, data_byte};
use bcache_engine::fsck::view::{Backing, Content, Device};
use bcache_engine::fsck::{Finding, Kind, Options, check};
use bcache_format::superblock::BackingState;
use bcache_format::{Bkey, SECTOR_SIZE, Sectors};
use serde_json::json;

use super::choose::{Of, loses};
use super::export::{Sink, Sparse, Stream, copy_around, progress};
use super::output::{Output, Readers, finish_standard};
use super::partial::partial;
use super::{BadInput, Out, Outcome};
use crate::devices::{Access, InUse, Writable, each_has_data, each_once, open_for};
use crate::kept;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Save the dirty data of a damaged cache
///
/// Puts the set together as `bcache fsck` does, from all that can be found on the cache, and lays its dirty data over the
/// backing device, in an image or, with --to, on the device itself; that of a flash-only volume, or of a slot whose
/// backing device is gone, over zeros. With the journal gone, what is sure is the state of when its node was last
/// written: newer writes that only the journal knew are gone. What is in a range of which something is lost is doubtful
/// and left out unless asked for. Bad sectors are gone around and listed; a device that was cut off is read as far as it
/// goes. The cache is not changed. Exit code 1 when
/// something is lost, doubtful or not known.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["output", "to"])))]
#[command(after_help = "Example:\n  bcache salvage -o disk.img /dev/sdb /dev/nvme0n1")]
pub struct Args {
    /// Write an image: the backing device's content with the dirty data on top; `-` is standard output, and what is told
    /// goes to standard error then
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Write the dirty data to this backing device itself
    #[arg(long, value_name = "BACKING")]
    to: Option<PathBuf>,
    /// Take the extents of this slot, when the uuid table is gone too and several could be meant
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    /// A flash-only volume, as `volume:N`, from 0
    #[arg(long, value_name = "volume:N", conflicts_with = "slot")]
    of: Option<Of>,
    /// Write doubtful data as well
    #[arg(long)]
    doubtful: bool,
    /// Report one JSON object a line
    #[arg(long)]
    json: bool,
    /// The cache, and the backing device unless --to names it or there is none
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// What the dirty data is laid over.
enum Base<'b> {
    /// A backing device.
    Backing(&'b Backing),
    /// Nothing: a flash-only volume, or a slot whose backing device is gone. So many sectors.
    Zeros(Sectors),
}

impl Base<'_> {
    fn name(&self, slot: u32) -> String {
        match self {
            Self::Backing(backing) => backing.name.to_string(),
            Self::Zeros(_) => format!("slot {slot}"),
        }
    }
    /// Sectors of keys that are its: from, to.
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Backing(backing) => {
                (backing.fields.data_offset.0, Sectors::from_bytes(backing.device.size()).0)
            }
            Self::Zeros(sectors) => (0, sectors.0),
        }
    }
}

/// Salvages.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    each_once(args.devices.iter().chain(&args.to))?;
    let mut devices = Vec::new();
    for path in &args.devices {
        devices.push(open_for(path, InUse::LayOrTell, Access::Read)?.0);
    }
    let mut writable = None;
    if let Some(path) = &args.to {
        let (device, writes) = open_for(path, InUse::LayOrTell, Access::Write)?;
        devices.push(device);
        writable = writes;
    }
    each_has_data(&devices)?;
    let bar = progress("looking", 1);
    let tell = |now: Progress| {
        bar.set_length(now.of);
        bar.set_position(now.done);
    };
    let checked = check(devices, Options { data: false, progress: Some(&tell), kept: Some(&kept::left_of) });
    bar.finish_and_clear();
    // Of a device that was cut off, what is left is worth having.
    let cut_off = |kind: Kind| matches!(kind, Kind::BackingTooShort | Kind::SbTooBig);
    let choice = |finding: &&Finding| finding.kind.is_choice() && !cut_off(finding.kind);
    if let Some(choice) = checked.findings.iter().find(choice) {
        return Err(BadInput(format!("{}: {}", choice.device, choice.detail)).into());
    }
    let Some(cache) = &checked.cache else { bail!("no cache was named") };
    let found = Salvage::of(&checked).map_err(|refused| anyhow!("{}: {refused}", cache.name))?;
    let (slot, base) = choose(&args, &found, &checked.backings)?;
    let none = Vec::new();
    let keys = found.slots.get(&slot).unwrap_or(&none);
    if keys.is_empty() && found.lost.is_empty() {
        bail!("{}: no dirty data was found for slot {slot}", cache.name);
    }
    let wanted = |belief: Belief| belief == Belief::Sure || args.doubtful;
    let keys_to_write: Vec<Bkey> =
        keys.iter().filter(|(_, belief)| wanted(*belief)).map(|(key, _)| *key).collect();
    let lost = match (&args.output, &writable) {
        (Some(output), _) => image(output, &args.devices, &found, &base, &keys_to_write, out)?,
        (None, Some(device)) => lay(&found, &keys_to_write, Sectors(0), &base, device)?,
        (None, None) => bail!("nowhere to write to"),
    };
    // Standard output has the image then.
    let mut beside = std::io::stderr();
    let told: &mut dyn Write = if args.output.as_deref() == Some(Path::new("-")) { &mut beside } else { out };
    partial(&checked.absent(), args.json, told)?;
    let complete = report(&args, &found, slot, &base, keys, &lost, told)?;
    // What is lost of the journal has no place of which it could be said: whatever is newest may have been there.
    Ok(if complete && !loses(&checked) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which slot is meant, and what its dirty data is laid over.
fn choose<'b>(args: &Args, found: &Salvage, backings: &'b [Backing]) -> Result<(u32, Base<'b>)> {
    let volume = |slot: u32| found.volumes.iter().find(|(of, _)| *of == slot).map(|(_, sectors)| *sectors);
    // A volume or device that is not known ends where its data does.
    let end = |slot: u32| {
        let keys = found.slots.get(&slot).and_then(|keys| keys.last());
        Sectors(keys.map_or(0, |(key, _)| key.offset()))
    };
    let alone = |slot: u32| Base::Zeros(volume(slot).unwrap_or_else(|| end(slot)));
    let slots: Vec<_> = found.slots.keys().map(u32::to_string).collect();
    let slots = slots.join(", ");
    match &args.of {
        Some(Of::Volume(number)) => {
            let Some((slot, sectors)) = found.volumes.get(*number) else {
                let count = found.volumes.len();
                bail!("{count} flash-only volumes are known, counted from 0; --slot takes one of {slots}");
            };
            return Ok((*slot, Base::Zeros(*sectors)));
        }
        Some(Of::Backing(name)) => bail!("{name}: name the backing device without --of, or volume:N with it"),
        None => {}
    }
    let backing = match (backings, args.slot) {
        ([], Some(slot)) => return Ok((slot, alone(slot))),
        ([], None) => match (found.volumes.as_slice(), found.slots.len()) {
            ([(slot, sectors)], 1) => return Ok((*slot, Base::Zeros(*sectors))),
            _ => bail!("name the backing device too, or say --of volume:N or --slot with one of {slots}"),
        },
        ([backing], _) => backing,
        _ => bail!("name one backing device, {} were named", backings.len()),
    };
    if let Some(slot) = args.slot {
        let base = if volume(slot).is_some() { alone(slot) } else { Base::Backing(backing) };
        return Ok((slot, base));
    }
    let state = backing.sb.state();
    if state.is_whole() {
        bail!(
            "{}: it was in use without its cache since ({}), so what the cache has of it is older; --slot takes one of \
             {slots} all the same",
            backing.name,
            if state == BackingState::None { "detached" } else { "stale" }
        );
    }
    let known = found.uuids.get(&backing.sb.uuid).copied();
    // What is written to a device must be its own.
    let guessed = if args.to.is_none() && found.uuids.is_empty() { found.slot_of(backing) } else { None };
    let Some(slot) = known.or(guessed) else {
        bail!("which slot is {}'s is not known; say --slot with one of {slots}", backing.name);
    };
    Ok((slot, Base::Backing(backing)))
}

/// Writes the image. Tells what could not be read.
fn image(
    output: &Path,
    devices: &[PathBuf],
    found: &Salvage,
    base: &Base<'_>,
    keys: &[Bkey],
    out: &mut Out,
) -> Result<Vec<(u64, u64)>> {
    let name = || output.display().to_string();
    let partial = match Output::create(output, devices, Readers::All, out)? {
        Output::File(partial) => partial,
        Output::Stream(file) => return stream(found, base, keys, &mut Stream(file)).with_context(name),
        Output::Standard(out) => {
            let lost = stream(found, base, keys, &mut Stream(&mut *out)).with_context(name)?;
            finish_standard(out).with_context(name)?;
            return Ok(lost);
        }
    };
    let mut bad = Vec::new();
    let mut offset = Sectors(0);
    match base {
        Base::Backing(backing) => {
            let content = Content::backing_alone(backing);
            offset = backing.fields.data_offset;
            partial.file().set_len(content.bytes).with_context(name)?;
            let bar = progress(&backing.name, content.bytes);
            bad = copy_around(&content, &mut Sparse(partial.file()), &bar).with_context(name)?;
            bar.finish_and_clear();
        }
        Base::Zeros(sectors) => partial.file().set_len(sectors.bytes()).with_context(name)?,
    }
    let target = Writable::new(name(), partial.file().try_clone()?);
    // What is laid over a place that could not be read is there.
    let covered = |(from, to): &(u64, u64)| {
        keys.iter().any(|key| key.start() <= from + offset.0 && to + offset.0 <= key.offset())
    };
    bad.retain(|place| !covered(place));
    let mut lost: Vec<_> = bad.into_iter().map(|(from, to)| (from + offset.0, to + offset.0)).collect();
    lost.extend(lay(found, keys, offset, base, &target)?);
    partial.finish().with_context(name)?;
    Ok(lost)
}

/// The same from front to back, for what takes nothing else.
fn stream(found: &Salvage, base: &Base<'_>, keys: &[Bkey], sink: &mut dyn Sink) -> Result<Vec<(u64, u64)>> {
    let (start, end) = base.range();
    let outside = |key: &&Bkey| key.start() < start || key.offset() > end;
    let mut lost: Vec<(u64, u64)> =
        keys.iter().filter(outside).map(|key| (key.start(), key.offset())).collect();
    let inside: Vec<&Bkey> = keys.iter().filter(|key| !outside(key)).collect();
    let step = CHUNK / SECTOR_SIZE;
    let (mut content, mut data) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let bar = progress(&base.name(0), Sectors(end - start).bytes());
    for at in (start..end).step_by(step as usize) {
        let until = (at + step).min(end);
        let place =
            |from: u64, to: u64| Sectors(from - at).bytes() as usize..Sectors(to - at).bytes() as usize;
        let part = &mut content[place(at, until)];
        part.fill(0);
        let mut bad = BTreeSet::new();
        if let Base::Backing(backing) = base {
            bad.extend(read_sectors(&backing.device, at, part));
        }
        let first = inside.partition_point(|key| key.offset() <= at);
        for key in inside[first..].iter().take_while(|key| key.start() < until) {
            let (from, to) = (key.start().max(at), key.offset().min(until));
            let part = &mut data[place(from, to)];
            let source = data_byte(key) / SECTOR_SIZE + (from - key.start());
            let unread: BTreeSet<u64> = read_sectors(&found.cache.device, source, part)
                .map(|sector| sector - source + from)
                .collect();
            for sector in from..to {
                if !unread.contains(&sector) {
                    content[place(sector, sector + 1)].copy_from_slice(&data[place(sector, sector + 1)]);
                    bad.remove(&sector);
                }
            }
            bad.extend(unread);
        }
        for sector in bad {
            match lost.last_mut().filter(|(_, to)| *to == sector) {
                Some((_, to)) => *to += 1,
                None => lost.push((sector, sector + 1)),
            }
        }
        sink.data(Sectors(at - start).bytes(), &content[place(at, until)])?;
        bar.inc(Sectors(until - at).bytes());
    }
    bar.finish_and_clear();
    Ok(lost)
}

/// Reads what starts at a sector; tells those that cannot be read, which are zeros then.
fn read_sectors<'b>(device: &Device, at: u64, bytes: &'b mut [u8]) -> impl Iterator<Item = u64> + use<'b> {
    let mut bad = Vec::new();
    if device.read_at(Sectors(at).bytes(), bytes).is_err() {
        for (sector, bytes) in (at..).zip(bytes.chunks_mut(SECTOR_SIZE as usize)) {
            if device.read_at(Sectors(sector).bytes(), bytes).is_err() {
                bytes.fill(0);
                bad.push(sector);
            }
        }
    }
    bad.into_iter()
}

/// Copies the extents' data to where it belongs, `offset` before its place on the backing device, around what cannot be
/// read or written. Tells those sectors, and what is outside the device.
fn lay(
    found: &Salvage,
    keys: &[Bkey],
    offset: Sectors,
    base: &Base<'_>,
    target: &Writable,
) -> Result<Vec<(u64, u64)>> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut lost: Vec<(u64, u64)> = Vec::new();
    let (start, end) = base.range();
    for key in keys {
        if key.start() < start || key.offset() > end {
            lost.push((key.start(), key.offset()));
            continue;
        }
        let (from, to) = (data_byte(key), Sectors(key.start() - offset.0).bytes());
        let bytes = Sectors(key.size()).bytes();
        let mut done = 0;
        while done < bytes {
            let part = &mut buffer[..CHUNK.min(bytes - done) as usize];
            let copied = found.cache.device.read_at(from + done, part).is_ok()
                && target.write_at(to + done, part).is_ok();
            if !copied {
                // A sector at a time: all but the bad ones are saved.
                for at in (done..done + part.len() as u64).step_by(SECTOR_SIZE as usize) {
                    let sector = &mut buffer[..SECTOR_SIZE as usize];
                    let copied = found.cache.device.read_at(from + at, sector).is_ok()
                        && target.write_at(to + at, sector).is_ok();
                    let place = key.start() + at / SECTOR_SIZE;
                    match lost.last_mut().filter(|(_, to)| *to == place) {
                        Some((_, to)) if !copied => *to += 1,
                        _ if !copied => lost.push((place, place + 1)),
                        _ => {}
                    }
                }
            }
            done += CHUNK.min(bytes - done);
        }
    }
    target.flush()?;
    Ok(lost)
}

/// Tells what was saved. False when something is lost or was left out.
fn report(
    args: &Args,
    found: &Salvage,
    slot: u32,
    base: &Base<'_>,
    keys: &[(Bkey, Belief)],
    lost: &[(u64, u64)],
    out: &mut dyn Write,
) -> Result<bool> {
    let name = base.name(slot);
    let (offset, end) = base.range();
    let mut ranges: Vec<(&str, u64, u64)> = Vec::new();
    for (key, belief) in keys {
        let word = if *belief == Belief::Sure { "sure" } else { "doubtful" };
        ranges.push((word, key.start(), key.offset()));
    }
    // Where nobody knows whether there was dirty data, and what.
    for (from, to) in found.lost.iter().filter(|(from, to)| from.inode <= slot && slot <= to.inode) {
        let from = if from.inode < slot { 0 } else { from.offset };
        let to = if to.inode > slot { end } else { to.offset.min(end) };
        if from.max(offset) < to {
            ranges.push(("uncovered", from.max(offset), to));
        }
    }
    ranges.extend(lost.iter().map(|(from, to)| ("lost", *from, *to)));
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (word, from, to) in ranges {
        *sums.entry(word).or_default() += to - from;
        let (from, to) = (from.saturating_sub(offset), to.saturating_sub(offset));
        let told = if word == "uncovered" { "not known, or not in its newest state" } else { word };
        if args.json {
            let value = json!({"kind": "range", "belief": word, "of": name, "from": from, "to": to});
            writeln!(out, "{value}")?;
        } else if word != "sure" {
            writeln!(out, "{told}: sectors {from}..{to} of {name}")?;
        }
    }
    let sum = |word: &str| sums.get(word).copied().unwrap_or(0);
    let (sure, doubtful, uncovered, lost) = (sum("sure"), sum("doubtful"), sum("uncovered"), sum("lost"));
    let complete = uncovered == 0 && lost == 0 && doubtful == 0;
    let (leaves, used) = found.leaves;
    if args.json {
        let value = json!({"kind": "summary", "sure": sure, "doubtful": doubtful, "lost": lost,
                           "uncovered": uncovered, "leaves": leaves, "in_use": used, "prios": found.prios,
                           "journal_entries": found.entries});
        writeln!(out, "{value}")?;
        return Ok(complete);
    }
    writeln!(out, "{leaves} leaves found, {used} of them in use; {} journal entries", found.entries)?;
    if found.entries == 0 {
        writeln!(
            out,
            "the journal is gone, and with it the newest writes: sure data may be older than they were"
        )?;
    }
    let size = |sectors: u64| bytesize::ByteSize::b(sectors * SECTOR_SIZE).display().iec().to_string();
    write!(out, "dirty data: {} sure, {} doubtful, {} lost", size(sure), size(doubtful), size(lost))?;
    if uncovered > 0 {
        write!(out, "; of {} nothing says whether it was dirty", size(uncovered))?;
    }
    writeln!(out)?;
    Ok(complete)
}
