//! `checkpointer`: see `checkpointer --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checkpointer::cli::main()
}
