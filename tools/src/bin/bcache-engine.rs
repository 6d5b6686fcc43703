//! `bcache-engine`: serves one cache set.

fn main() -> std::process::ExitCode {
    bcache_tools::cli::main(bcache_tools::cli::engine::run)
}
