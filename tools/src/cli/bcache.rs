//! The `bcache` program: a subcommand for everything.

use std::fmt::Write as _;

use clap::{Parser, Subcommand};

use super::{
    Out, Outcome, attach, backup, completions, doctor, dump, export, flush, fsck, image, make, map, metrics,
    overview, register, salvage, serve, settings, show, status, stop, undo, upgrade,
};

/// Commands as help lists them, in the groups of bcache(8).
pub const GROUPS: [(&str, &[&str]); 4] = [
    (
        "To make and use sets",
        &[
            "make",
            "register",
            "status",
            "metrics",
            "set",
            "get",
            "reload",
            "attach",
            "detach",
            "set-cachemode",
            "set-label",
            "tree",
            "version",
            "volume",
            "resize",
            "upgrade",
            "stop",
            "unregister",
            "forget",
            "serve",
        ],
    ),
    ("To look into sets that do not run", &["doctor", "show", "dump", "map", "export", "image"]),
    ("To check and repair", &["fsck", "undo", "flush", "salvage", "backup", "restore"]),
    ("For shells", &["completions"]),
];
/// Width of help. Who calls it knows the terminal's, and this text stands before that.
const WIDTH: usize = 90;

/// What `bcache --help` says: clap lists commands in one group only. Nothing where the command line names a command at once:
/// all commands would be described once more, which takes longer than the check of a small set.
fn help() -> String {
    let mut words = std::env::args_os();
    let is_it =
        words.next().is_some_and(|path| std::path::Path::new(&path).file_name() == Some("bcache".as_ref()));
    let is_command = |word: std::ffi::OsString| word != "help" && !word.as_encoded_bytes().starts_with(b"-");
    if is_it && words.next().is_some_and(is_command) {
        return String::new();
    }
    let header = clap::builder::Styles::styled().get_header().to_owned();
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    let commands = Command::augment_subcommands(clap::Command::new("bcache"));
    // Writing to a string does not fail.
    for (title, names) in GROUPS {
        let _ = writeln!(text, "\n{header}{title}:{header:#}");
        for name in names {
            let about = commands.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let mut line = format!("  {name:<13} ");
            for word in about.split(' ') {
                if line.len() + word.len() > WIDTH {
                    let _ = writeln!(text, "{}", line.trim_end());
                    line = format!("  {:<13} ", "");
                }
                line += word;
                line.push(' ');
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    let _ = write!(text, "\n{header}Options:{header:#}\n{{options}}{{after-help}}");
    text
}

/// Make, run, check, repair and rescue bcache devices, without the kernel's bcache
#[derive(Debug, Parser)]
#[command(
    name = "bcache",
    version,
    arg_required_else_help = true,
    help_template = help(),
    after_help = "`bcache COMMAND --help` has examples; bcache(8) has the whole picture."
)]
pub struct Bcache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Attach(attach::AttachArgs),
    Detach(attach::DetachArgs),
    Get(settings::GetArgs),
    Make(make::Args),
    Metrics(metrics::Args),
    Set(settings::SetArgs),
    SetCachemode(attach::SetCachemodeArgs),
    SetLabel(attach::SetLabelArgs),
    Status(status::Args),
    Unregister(stop::UnregisterArgs),
    Upgrade(upgrade::Args),
    Forget(stop::ForgetArgs),
    #[command(subcommand)]
    Volume(attach::VolumeCommand),
    #[command(visible_alias = "show-super")]
    Show(show::Args),
    Backup(backup::BackupArgs),
    Doctor(doctor::Args),
    Dump(dump::Args),
    Export(export::Args),
    Flush(flush::Args),
    Fsck(fsck::Args),
    Image(image::Args),
    Map(map::Args),
    Register(register::Args),
    Reload(settings::ReloadArgs),
    Resize(attach::ResizeArgs),
    Restore(backup::RestoreArgs),
    Salvage(salvage::Args),
    Serve(serve::Args),
    Stop(stop::Args),
    Tree(overview::TreeArgs),
    Undo(undo::Args),
    Version(overview::VersionArgs),
    Completions(completions::Args),
}

/// Runs the subcommand that the command line names.
pub fn run(bcache: Bcache, out: &mut Out) -> Outcome {
    match bcache.command {
        Command::Attach(args) => attach::run_attach(args, out),
        Command::Detach(args) => attach::run_detach(args, out),
        Command::Get(args) => settings::run_get(args, out),
        Command::Metrics(args) => metrics::run(args, out),
        Command::Set(args) => settings::run_set(args, out),
        Command::SetCachemode(args) => attach::run_set_cachemode(args, out),
        Command::SetLabel(args) => attach::run_set_label(args, out),
        Command::Status(args) => status::run(args, out),
        Command::Unregister(args) => stop::run_unregister(args, out),
        Command::Upgrade(args) => upgrade::run(args, out),
        Command::Forget(args) => stop::run_forget(args, out),
        Command::Volume(command) => attach::run_volume(command, out),
        Command::Make(args) => make::run(args, out),
        Command::Show(args) => show::run(args, out),
        Command::Backup(args) => backup::backup(args, out),
        Command::Doctor(args) => doctor::run(args, out),
        Command::Dump(args) => dump::run(args, out),
        Command::Export(args) => export::run(args, out),
        Command::Flush(args) => flush::run(args, out),
        Command::Fsck(args) => fsck::run(args, out),
        Command::Image(args) => image::run(args, out),
        Command::Map(args) => map::run(args, out),
        Command::Register(args) => register::run(args, out),
        Command::Reload(args) => settings::run_reload(args, out),
        Command::Resize(args) => attach::run_resize(args, out),
        Command::Restore(args) => backup::restore(args, out),
        Command::Salvage(args) => salvage::run(args, out),
        Command::Serve(args) => serve::run(args, out),
        Command::Stop(args) => stop::run(args, out),
        Command::Tree(args) => overview::run_tree(args, out),
        Command::Version(args) => overview::run_version(args, out),
        Command::Undo(args) => undo::run(args, out),
        Command::Completions(args) => {
            completions::run(args, <Bcache as clap::CommandFactory>::command(), out)
        }
    }
}
