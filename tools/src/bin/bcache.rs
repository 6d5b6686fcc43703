//! `bcache`: every tool as a subcommand.

fn main() -> std::process::ExitCode {
    bcache_tools::cli::main(bcache_tools::cli::bcache::run)
}
