//! `blockrep-backup`: see `blockrep-backup --help`.

use blockrep::cli::{self, ExitCode, Start};
use blockrep::daemon;

fn main() -> ExitCode {
    match cli::backup(std::env::args_os()) {
        Ok(Start::Run(config)) => match daemon::run_backup(&config) {
            Ok(()) => ExitCode::Ok,
            Err(error) => {
                eprintln!("blockrep-backup: {error}");
                error.code
            }
        },
        Ok(Start::Print(text)) => cli::print(&text),
        Err(error) => error.print("blockrep-backup"),
    }
}
