//! `cargo man`: writes the manual pages into `man/`, and what shells complete into `completions/`.

use std::path::Path;

use anyhow::{Context, Result};
use bcache_tests::{completions, man, paths};

fn main() -> Result<()> {
    let top = paths::repository();
    for (name, text) in man::pages()? {
        write(&top.join("man").join(name), &text)?;
    }
    for (name, text) in completions::scripts()? {
        write(&top.join("completions").join(name), &text)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())
}
