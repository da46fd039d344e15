//! `blockrepctl`: see `blockrepctl --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    blockrep_tools::ctl::main()
}
