//! The manual pages: generated from the command lines' own descriptions, so that they say the same.

use anyhow::Result;
use clap::Command;

/// One page: its file name, `bcache-export.8`, and its text.
pub type Page = (String, String);

/// A page for each program and each subcommand, sorted by name.
pub fn pages() -> Result<Vec<Page>> {
    let mut pages = Vec::new();
    for program in bcache_tools::cli::programs() {
        let mut program = without_help(program);
        // Only a built command knows the full names of its subcommands.
        program.build();
        let name = program.get_name().to_owned();
        add(&mut pages, program, name)?;
    }
    pages.push(("bcache-findings.7".to_owned(), findings()));
    pages.sort();
    Ok(pages)
}

/// The page of everything that `bcache fsck` can find.
fn findings() -> String {
    let mut page = String::from(
        ".TH bcache-findings 7 \"\" ubcache\n.SH NAME\nbcache\\-findings \\- what bcache\\-fsck(8) finds, and what it does about it\n\
         .SH DESCRIPTION\nEvery finding has a name that never changes, and a severity: \\fIharmless\\fR is normal after a \
         crash;\n\\fIlossless\\fR can be put right without losing anything; \\fIloss\\fR means that data is lost, or may be;\n\
         \\fIfatal\\fR cannot be repaired. \\-p repairs the first two, \\-y the first three. Whatever its kind, a finding that\n\
         names lost sectors is a loss.\n.SH FINDINGS\n",
    );
    for kind in bcache_engine::fsck::Kind::ALL {
        let text = |text: &str| text.replace('-', "\\-").replace('\'', "\\(aq");
        page += &format!(
            ".TP\n\\fB{}\\fR ({})\n{}\n.br\nRepair: {}\n",
            text(kind.id()),
            kind.severity(),
            text(kind.means()),
            text(kind.repair()),
        );
    }
    page + ".SH SEE ALSO\nbcache-fsck(8)\n"
}

/// A page that lists `bcache help` would lead to a page that says nothing.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

fn add(pages: &mut Vec<Page>, command: Command, name: String) -> Result<()> {
    for child in command.get_subcommands() {
        add(pages, child.clone(), format!("{name}-{}", child.get_name()))?;
    }
    let mut page = Vec::new();
    let command = command.name(name.clone());
    clap_mangen::Man::new(command).section("8").date("").source("ubcache").render(&mut page)?;
    // An empty date must be quoted, or the source takes its place.
    let page = String::from_utf8(page)?
        .replacen(&format!(".TH {name} 8  ubcache "), &format!(".TH {name} 8 \"\" ubcache"), 1)
        .replacen(".SH EXTRA", ".SH NOTES", 1);
    pages.push((format!("{name}.8"), page));
    Ok(())
}
