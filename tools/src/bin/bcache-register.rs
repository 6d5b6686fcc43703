//! `bcache-register`: what udev calls for each part of a cache set.

fn main() -> std::process::ExitCode {
    bcache_tools::cli::main(bcache_tools::cli::register::run_program)
}
