//! What shells complete, as files: generated from the command lines, and installed by the package.

use anyhow::Result;
use bcache_tools::cli::{self, completions};
use clap_complete::{Generator, Shell};

/// The shells, and the directory of each below `completions/`.
const SHELLS: [(Shell, &str); 3] = [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")];

/// One script: its path below `completions/`, `zsh/_bcache`, and its text.
pub type Script = (String, String);

/// A script for each program and shell.
pub fn scripts() -> Result<Vec<Script>> {
    let mut scripts = Vec::new();
    for program in cli::typed_programs() {
        for (shell, dir) in SHELLS {
            let name = match shell {
                // bash looks for the program's own name.
                Shell::Bash => program.get_name().to_owned(),
                other => other.file_name(program.get_name()),
            };
            let text = String::from_utf8(completions::script(program.clone(), shell))?;
            scripts.push((format!("{dir}/{name}"), text));
        }
    }
    Ok(scripts)
}
