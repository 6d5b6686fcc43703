//! The Debian package, made as the README says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, paths};

/// Blocks of commands below a heading of the README.
fn commands(heading: &str) -> Result<Vec<Vec<String>>> {
    let readme = fs::read_to_string(paths::repository().join("README.md")).context("README.md")?;
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).with_context(|| heading.to_owned())?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let (mut blocks, mut block) = (Vec::new(), Vec::new());
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(command) => block.push(command.to_owned()),
            None => blocks.push(std::mem::take(&mut block)),
        }
    }
    blocks.push(block);
    blocks.retain(|block| !block.is_empty());
    Ok(blocks)
}

/// The README's three blocks: what builds the package, what installs it, and what uses it.
///
/// # Errors
/// The README has other blocks.
pub fn installing() -> Result<[Vec<String>; 3]> {
    match commands("Installing")?.try_into() {
        Ok(blocks) => Ok(blocks),
        Err(blocks) => bail!("{} blocks of commands, not 3", blocks.len()),
    }
}

/// Makes the package in a directory, by the README's command, of the programs that are built already. Its path.
///
/// # Errors
/// cargo-deb is not there, or refuses.
pub fn make(dir: &Path) -> Result<PathBuf> {
    let [build, ..] = installing()?;
    let command = build.iter().find(|command| command.starts_with("cargo deb")).context("no cargo deb")?;
    // cargo-deb looks for programs where cargo puts those of a release.
    let programs = programs()?;
    let target = dir.join("target");
    fs::create_dir(&target)?;
    symlink(programs, target.join("release"))?;
    let mut cargo = Command::new("sh");
    cargo.arg("-c").arg(format!("{command} --no-build --fast"));
    cargo.current_dir(paths::repository()).env("CARGO_TARGET_DIR", &target);
    Ok(PathBuf::from(cmd::done(&mut cargo)?.trim()))
}

/// Where the programs are that are built already.
///
/// # Errors
/// They cannot be built.
pub fn programs() -> Result<PathBuf> {
    let program = paths::program("bcache")?;
    Ok(program.parent().context("no directory of programs")?.to_path_buf())
}
