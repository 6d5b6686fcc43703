//! The manual pages: generated from the command lines' own descriptions, so that they say the same. Two are written by
//! hand: [`BY_HAND`] and bcache-format(5).

use anyhow::Result;
use bcache_engine::set::LEFT_OUT;
use bcache_engine::settings::{DeviceSettings, SetSettings};
use clap::Command;

/// One page: its file name, `bcache-export.8`, and its text.
pub type Page = (String, String);

/// The page that stands above all the others.
pub const BY_HAND: &str = "bcache.8";

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
    pages.push(("bcache-settings.7".to_owned(), settings()));
    // The name under which fsck(8) calls it.
    pages.push(("fsck.bcache.8".to_owned(), ".so man8/bcache-fsck.8\n".to_owned()));
    pages.retain(|(name, _)| name != BY_HAND);
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

/// The page of everything that `bcache set` can change, with defaults, and what of the kernel's names is not there.
fn settings() -> String {
    let text = |text: &str| text.trim().replace('-', "\\-").replace('\'', "\\(aq");
    let mut page = String::from(
        ".TH bcache-settings 7 \"\" ubcache\n.SH NAME\nbcache\\-settings \\- settings of cache sets and devices, by the \
         kernel\\(aqs sysfs names\n.SH DESCRIPTION\nThey are changed with bcache\\-set(8), read with bcache\\-get(8), and given \
         to bcache\\-serve(8)\nwith \\-\\-set. Defaults are the kernel\\(aqs. Sizes may end in k, M or G.\nA number \
         beyond the bounds of its setting, which are the kernel\\(aqs, becomes the bound, and the log says so.\n",
    );
    let (set, device) = (SetSettings::default(), DeviceSettings::default());
    for (title, help, bounds, defaults) in [
        ("SETTINGS OF A SET", SetSettings::HELP, SetSettings::BOUNDS, set.list()),
        ("SETTINGS OF A DEVICE", DeviceSettings::HELP, DeviceSettings::BOUNDS, device.list()),
    ] {
        page += &format!(".SH {title}\n");
        for ((name, means), shown) in help.iter().zip(defaults) {
            let bounds = bounds.iter().find(|(bounded, ..)| bounded == name);
            let bounds = bounds.map_or_else(String::new, |(_, least, most)| format!(", {least} to {most}"));
            page +=
                &format!(".TP\n\\fB{name}\\fR (default {}{bounds})\n{}\n", text(&shown.value), text(means));
        }
    }
    page += ".SH LEFT OUT\nNames of the kernel\\(aqs documentation that are not there:\n";
    for (name, why) in LEFT_OUT {
        page += &format!(".TP\n\\fB{}\\fR\n{}\n", text(name), text(why));
    }
    page + ".SH SEE ALSO\nbcache-set(8), bcache-get(8), bcache-serve(8)\n"
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
