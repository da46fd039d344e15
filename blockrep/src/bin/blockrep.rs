//! `blockrep`: see `blockrep --help`.

use blockrep::cli::{self, ExitCode, Start};
use blockrep::daemon;

fn main() -> ExitCode {
    if let Err(why) = blockrep::mutants::plant_from_env() {
        eprintln!("blockrep: {why}");
        return ExitCode::Usage;
    }
    match cli::primary(std::env::args_os()) {
        Ok(Start::Run(config)) => match daemon::run_primary(&config) {
            Ok(()) => ExitCode::Ok,
            Err(error) => {
                eprintln!("blockrep: {error}");
                error.code
            }
        },
        Ok(Start::Print(text)) => cli::print(&text),
        Err(error) => error.print("blockrep"),
    }
}
