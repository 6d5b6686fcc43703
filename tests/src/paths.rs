//! Where the repository, the build and the scratch space are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The top of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Cargo's target directory: the one the running executable was built into.
pub fn target() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("where this program is")?;
    // Cargo keeps what it knows of the compiler at the top of its target directory; nothing else marks that.
    let top = exe.ancestors().find(|dir| dir.join(".rustc_info.json").is_file());
    top.map(Path::to_path_buf).with_context(|| format!("{}: not inside a target directory", exe.display()))
}

/// A directory for what tests keep between runs, below the target directory; `cargo clean` removes it.
pub fn kept(name: &str) -> Result<PathBuf> {
    let dir = target()?.join("tmp").join(name);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// A directory for one test's files, removed when dropped. It lies on the target directory's file system because
/// `/tmp` is often a small tmpfs, and some of the tests' sparse files are big.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::TempDir::new_in(kept("scratch")?).context("scratch directory")
}

/// The path of one of the project's programs, such as `make-bcache`.
///
/// Cargo builds a package's programs for its own tests only, so the first call in a process asks cargo for them;
/// `UBCACHE_BIN_DIR` names a directory where they already are.
pub fn program(name: &str) -> Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = DIR.get_or_init(|| build_programs().map_err(|error| format!("{error:#}")));
    let path = match dir {
        Ok(dir) => dir.join(name),
        Err(error) => bail!("building the programs: {error}"),
    };
    if !path.is_file() {
        bail!("{}: no such program", path.display());
    }
    Ok(path)
}

fn build_programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("UBCACHE_BIN_DIR") {
        return Ok(dir.into());
    }
    let target = target()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "bcache-tools", "--package", "bcache-tests", "--bins"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(repository())
        .status()
        .context("cargo")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(target.join("debug"))
}
