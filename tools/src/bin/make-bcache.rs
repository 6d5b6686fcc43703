//! `make-bcache`: formats devices.

fn main() -> std::process::ExitCode {
    bcache_tools::cli::main(bcache_tools::cli::make::run_program)
}
