//! `bcache-super-show`: prints superblocks.

fn main() -> std::process::ExitCode {
    bcache_tools::cli::main(bcache_tools::cli::show::run_program)
}
