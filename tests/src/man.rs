//! The manual pages: generated from the command lines' own descriptions, so that they say the same. Three are written by
//! hand: [`BY_HAND`], bcache-format(5) and bcache.conf(5).

use anyhow::{Context as _, Result};
use bcache_engine::set::LEFT_OUT;
use bcache_engine::settings::{DeviceSettings, SetSettings};
use clap::{Arg, ArgAction, Command};

mod sections;

/// One page: its file name, `bcache-export.8`, and its text.
pub type Page = (String, String);

/// When what the pages say was last looked through as a whole. The day of a build would make each build another.
pub const DATE: &str = "2026-11-28";

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
    pages.retain(|(name, _)| name != BY_HAND);
    for (_, text) in &mut pages {
        *text = filled(&titled(text));
    }
    // The name under which fsck(8) calls it. A page that only refers to the other could be read where it is installed,
    // and nowhere else.
    let fsck = pages.iter().find(|(name, _)| name == "bcache-fsck.8").context("bcache-fsck.8")?;
    let text = fsck.1.replacen(".TH BCACHE-FSCK ", ".TH FSCK.BCACHE ", 1).replacen(
        "bcache\\-fsck \\- ",
        "fsck.bcache, bcache\\-fsck \\- ",
        1,
    );
    pages.push(("fsck.bcache.8".to_owned(), filled(&text)));
    pages.sort();
    Ok(pages)
}

/// Titles are in capitals, which is what readers of a page's head and foot are used to.
fn titled(page: &str) -> String {
    let title = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (macro_, name, rest) = (words.next()?, words.next()?, words.next()?);
        (macro_ == ".TH").then(|| format!("{macro_} {} {rest}", name.to_uppercase()))
    };
    page.lines().map(|line| title(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

/// Breaks lines of text at 80 bytes, as people who edit pages do, but for those that stand as they are.
fn filled(page: &str) -> String {
    const WIDTH: usize = 80;
    let (mut out, mut as_it_is) = (String::new(), false);
    for line in page.lines() {
        match line {
            ".nf" => as_it_is = true,
            ".fi" => as_it_is = false,
            _ => {}
        }
        if as_it_is || line.starts_with('.') {
            out += line;
            out.push('\n');
            continue;
        }
        let mut column = 0;
        // A space behind a backslash is no place to break a line.
        for word in line.replace("\\ ", "\\\u{0}").split(' ') {
            let word = word.replace('\u{0}', " ");
            let fits = column + 1 + word.len() <= WIDTH;
            // At the beginning of a line these are commands.
            if column > 0 && (fits || word.starts_with(['.', '\''])) {
                out.push(' ');
                column += 1;
            } else if column > 0 {
                out.push('\n');
                column = 0;
            }
            out += &word;
            column += word.len();
        }
        out.push('\n');
    }
    out
}

/// The page of everything that `bcache fsck` can find.
fn findings() -> String {
    let mut page = format!(".TH bcache-findings 7 {DATE} ubcache ubcache\n");
    page += "\
        .SH NAME\nbcache\\-findings \\- what bcache\\-fsck(8) finds, and what it does about it\n\
         .SH DESCRIPTION\nEvery finding has a name that never changes, and a severity: \\fIharmless\\fR is normal after a \
         crash;\n\\fIlossless\\fR can be put right without losing anything; \\fIloss\\fR means that data is lost, or may be;\n\
         \\fIfatal\\fR cannot be repaired. \\-p repairs the first two, \\-y the first three. Whatever its kind, a finding that\n\
         names lost sectors is a loss.\n.SH FINDINGS\n";
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
    page += ".SH EXAMPLES\n.nf\nbcache fsck \\-\\-explain bset\\-checksum\n\
        bcache fsck \\-n \\-\\-json /dev/sdb /dev/nvme0n1 | jq \\-r \\(aqselect(.kind == \"finding\").id\\(aq\n.fi\n";
    page + ".SH \"SEE ALSO\"\nbcache\\-fsck(8), bcache\\-doctor(8), bcache\\-format(5)\n"
}

/// The page of everything that `bcache set` can change, with defaults, and what of the kernel's names is not there.
fn settings() -> String {
    let text = |text: &str| text.trim().replace('-', "\\-").replace('\'', "\\(aq");
    let mut page = format!(".TH bcache-settings 7 {DATE} ubcache ubcache\n");
    page += "\
        .SH NAME\nbcache\\-settings \\- settings of cache sets and devices, by the \
         kernel\\(aqs sysfs names\n.SH DESCRIPTION\nThey are changed with bcache\\-set(8), read with bcache\\-get(8), and given \
         to bcache\\-serve(8)\nwith \\-\\-set. Defaults are the kernel\\(aqs. Sizes may end in k, M or G.\nA number \
         beyond the bounds of its setting, which are the kernel\\(aqs, becomes the bound, and the log says so.\n";
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
    page += ".SH EXAMPLES\n.nf\nbcache set cache_mode=writeback\nbcache get \\-\\-device bcache0 cache_mode\n.fi\n\
        .SH FILES\n.TP\n\\fI/etc/bcache/bcache.conf\\fR\nsettings that last; see bcache.conf(5)\n";
    page + ".SH \"SEE ALSO\"\nbcache\\-set(8), bcache\\-get(8), bcache\\-serve(8), bcache.conf(5)\n"
}

/// A page that lists `bcache help` would lead to a page that says nothing.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

fn add(pages: &mut Vec<Page>, command: Command, name: String) -> Result<()> {
    for child in command.get_subcommands() {
        add(pages, child.clone(), format!("{name}-{}", child.get_name()))?;
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let synopsis = synopsis(&command);
    let has_subcommands = command.has_subcommands();
    let command = command.name(name.clone());
    let man = clap_mangen::Man::new(command).section("8").date(DATE).source("ubcache").manual("ubcache");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend(synopsis.into_bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    let mut page = tidy(&String::from_utf8(page)?);
    page += &sections::behind(&name, &help);
    pages.push((format!("{name}.8"), page));
    Ok(())
}

/// How a command is typed, with the names of what its options take.
fn synopsis(command: &Command) -> String {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut page = format!(".SH SYNOPSIS\n.HP\n\\fB{}\\fR\n", escaped(name));
    let shown = || command.get_arguments().filter(|arg| !arg.is_hide_set());
    let help =
        |arg: &&Arg| matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong | ArgAction::Version);
    let (options, operands): (Vec<&Arg>, Vec<&Arg>) =
        shown().filter(|arg| !help(arg)).partition(|arg| !arg.is_positional());
    for arg in options.into_iter().chain(operands) {
        page += &argument(arg);
    }
    if command.has_subcommands() {
        page += "\\fICOMMAND\\fR\n";
    }
    page
}

/// One option or operand, in brackets if it may be left out.
fn argument(arg: &Arg) -> String {
    let bold = |text: String| format!("\\fB{}\\fR", escaped(&text));
    let named = match (arg.get_short(), arg.get_long()) {
        (_, Some(long)) => bold(format!("--{long}")),
        (Some(short), None) => bold(format!("-{short}")),
        (None, None) => String::new(),
    };
    let takes = arg.is_positional() || arg.get_action().takes_values();
    let names = arg.get_value_names().filter(|_| takes).unwrap_or_default();
    let values: Vec<String> = names.iter().map(|name| format!("\\fI{}\\fR", escaped(name))).collect();
    let optional =
        arg.get_num_args().is_some_and(|count| takes && !arg.is_positional() && count.min_values() == 0);
    let value = if optional { format!("[{}]", values.join(" ")) } else { values.join(" ") };
    let again = arg.get_num_args().is_some_and(|count| count.max_values() > names.len().max(1))
        || matches!(arg.get_action(), ArgAction::Append | ArgAction::Count);
    let text = [named, value].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let dots = if again { "\\ ..." } else { "" };
    if arg.is_required_set() { format!("{text}{dots}\n") } else { format!("[{text}]{dots}\n") }
}

fn escaped(text: &str) -> String {
    text.replace('-', "\\-")
}

/// Takes out what clap_mangen writes that a checker of pages complains of: the definition of an apostrophe before each
/// section, and breaks around empty lines, which are `.sp` to the checker.
fn tidy(page: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in page.lines() {
        let defines = line.starts_with(".ie ") || line.starts_with(".el ");
        let again = defines && lines.contains(&line);
        let empty =
            line.is_empty() || (line == ".br" && lines.last().is_some_and(|before| before.is_empty()));
        if again || empty {
            continue;
        }
        lines.push(line);
    }
    // Of two breaks one is enough.
    lines.dedup_by(|a, b| *a == ".br" && *b == ".br");
    lines.join("\n") + "\n"
}
