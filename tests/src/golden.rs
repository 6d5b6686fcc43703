//! The golden sets: caches and backing devices written by Linux's own bcache, packed in `tests/golden/sets`.
//!
//! `manifest.json` beside them says how each was made and what a reader of its cached devices must see. A set is
//! unpacked once, sparsely, below the target directory, and shared by all tests: what wants to change a device
//! takes a private copy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;

use crate::{paths, sparse, stamp};

/// What the manifest says of one set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// In words, how the set was made and in what state it was left.
    pub made: String,
    /// The release of the kernel that wrote it.
    pub kernel: String,
    /// The device images, by file name.
    pub files: Vec<String>,
    /// What each cached device or flash volume of the set must read as.
    #[serde(default)]
    pub content: Vec<Content>,
    /// For a set whose machine was reset mid-load: the writes it was under.
    pub stamp: Option<Stamped>,
}

/// The content of one cached device or flash volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The kernel's name for it when the content was recorded.
    pub device: String,
    /// The backing device's file name, or `flash volume N`.
    pub of: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 of all of it, in lower case hex.
    pub sha256: String,
}

/// A stamped load and how much of it was acknowledged as durable.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamped {
    /// The kernel's name for the written device.
    pub device: String,
    /// The backing device's file name.
    pub of: String,
    /// Writes `0..acked` were followed by a successful flush.
    pub acked: u64,
    /// Sectors of 512 bytes in each write.
    pub block_sectors: u64,
    /// Sectors of the device that the writes went to, from sector 0 on.
    pub range_sectors: u64,
    /// Writes in the whole load.
    pub count: u64,
    /// Seed of their places.
    pub seed: u64,
    /// Order of their places.
    pub mode: stamp::Mode,
}

impl Stamped {
    /// The load, as the checker takes it.
    pub fn load(&self) -> stamp::Load {
        stamp::Load {
            block_sectors: self.block_sectors,
            range_sectors: self.range_sectors,
            count: self.count,
            seed: self.seed,
            mode: self.mode,
        }
    }
}

/// All sets of the manifest, by name.
pub fn manifest() -> Result<BTreeMap<String, Entry>> {
    let path = packed().join("manifest.json");
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    serde_json::from_reader(BufReader::new(file)).with_context(|| path.display().to_string())
}

/// One set, unpacked.
#[derive(Debug, Clone)]
pub struct Set {
    /// Its name in the manifest.
    pub name: String,
    /// What the manifest says of it.
    pub entry: Entry,
    dir: PathBuf,
}

impl Set {
    /// Unpacks the set called `name` unless that was done before. The files are shared: only read them.
    pub fn open(name: &str) -> Result<Set> {
        let entry = manifest()?.remove(name).with_context(|| format!("no golden set is called {name}"))?;
        let dir = unpacked(name)?;
        Ok(Set { name: name.to_owned(), entry, dir })
    }

    /// Every set of the manifest.
    pub fn all() -> Result<Vec<Set>> {
        manifest()?.keys().map(|name| Set::open(name)).collect()
    }

    /// The path of one image, to read from.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The paths of all images, to read from, in the manifest's order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.entry.files.iter().map(|file| self.path(file)).collect()
    }

    /// Copies all images into `dir` under their own names, for changing them, and tells where they are.
    pub fn copy_to(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut copies = Vec::new();
        for file in &self.entry.files {
            let copy = dir.join(file);
            sparse::copy(&self.path(file), &copy).with_context(|| copy.display().to_string())?;
            copies.push(copy);
        }
        Ok(copies)
    }
}

fn packed() -> PathBuf {
    paths::repository().join("tests/golden/sets")
}

/// Unpacks one set below the target directory, in a folder named after the packed file's hash, so that a changed
/// set is unpacked afresh and a half unpacked one is never seen.
fn unpacked(name: &str) -> Result<PathBuf> {
    let archive = packed().join(format!("{name}.tar.zst"));
    let context = || archive.display().to_string();
    let (hash, _) = sparse::sha256(File::open(&archive).with_context(context)?)?;
    let store = paths::kept("golden")?;
    let dir = store.join(format!("{name}-{}", &hash[..16]));
    if dir.is_dir() {
        return Ok(dir);
    }
    let lock = File::create(store.join(format!("{name}.lock")))?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("golden lock")?;
    if dir.is_dir() {
        return Ok(dir); // another process unpacked it while this one waited
    }
    let fresh = tempfile::TempDir::new_in(&store)?;
    unpack(&archive, fresh.path()).with_context(context)?;
    fs::rename(fresh.path(), &dir)?;
    Ok(dir)
}

/// The tar crate seeks over the holes that a GNU sparse entry lists, so they are never written.
fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    let stream = BufReader::new(File::open(archive)?);
    let decoder = ruzstd::decoding::StreamingDecoder::new(stream)?;
    let mut tar = tar::Archive::new(decoder);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let (Some(name), 1) = (path.file_name(), path.components().count()) else {
            bail!("{}: a golden archive holds plain files only", path.display());
        };
        let to = dir.join(name);
        entry.unpack(&to)?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o444))?;
    }
    Ok(())
}
