//! `bcache-fsck`, which can also be installed as `fsck.bcache`: checks and repairs cache sets.

fn main() -> std::process::ExitCode {
    bcache_tools::cli::main(bcache_tools::cli::fsck::run_program)
}
