//! `netbuf`: see `netbuf --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    netbuf::cli::main()
}
