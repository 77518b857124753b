//! The `tessera` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tessera::cli::run()
}
