//! `cargo man`: writes the manual pages into `man/`.

use anyhow::{Context, Result};
use bcache_tests::{man, paths};

fn main() -> Result<()> {
    let dir = paths::repository().join("man");
    for (name, text) in man::pages()? {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
