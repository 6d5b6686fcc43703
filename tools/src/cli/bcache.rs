//! The `bcache` program: a subcommand for everything.

use clap::{Parser, Subcommand};

use super::{
    Out, Outcome, attach, backup, completions, doctor, dump, export, flush, fsck, image, make, map, metrics,
    overview, register, salvage, serve, settings, show, status, stop, undo, upgrade,
};

/// Format, inspect and read bcache devices, without the kernel's bcache
#[derive(Debug, Parser)]
#[command(name = "bcache", version, arg_required_else_help = true)]
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
        Command::Completions(args) => completions::run(args, out),
    }
}
