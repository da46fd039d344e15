//! `/init` of a guest that runs one test program of this project on its own kernel, which has what the
//! kernel underneath has not.
//!
//! The kernel's command line names it and its words: `program=/PATH arguments=a,b,c env=KEY=VALUE,…`. What
//! the program prints goes to the serial line; `LEDGER-READY` comes before it, `LEDGER-DONE` after it if it
//! ended with 0, else `LEDGER-FAIL why`.

#[allow(dead_code)] // Shared with the ledger, which uses the rest.
mod system;

use std::process::Command;

use system::{CommandLine, Outcome, attach_kernel_trees, load_modules};

fn main() {
    if let Err(why) = run() {
        println!("LEDGER-FAIL {}", why.replace('\n', " "));
    }
    system::power_off();
}

fn run() -> Outcome<()> {
    attach_kernel_trees()?;
    system::attach("tmpfs", "/dev/shm", "tmpfs", "")?;
    // In memory as everything here. Nothing is mounted there: the program may lie below one of them.
    for place in ["/tmp", "/run"] {
        std::fs::create_dir_all(place).map_err(|e| format!("{place}: {e}"))?;
    }
    let line = CommandLine::read()?;
    if line.word("role=") == Some("probe") {
        println!("PROBE ok");
        return Ok(());
    }
    load_modules()?;
    let program = line.word("program=").ok_or("program= is missing")?;
    let words = |key| {
        line.word(key)
            .into_iter()
            .flat_map(|words| words.split(','))
    };
    let mut command = Command::new(program);
    command.args(words("arguments=")).env("PATH", "/bin");
    for pair in words("env=") {
        let (key, value) = pair.split_once('=').ok_or("env= wants KEY=VALUE")?;
        command.env(key, value);
    }
    println!("LEDGER-READY");
    let status = command.status().map_err(|e| format!("{program}: {e}"))?;
    if !status.success() {
        return Err(format!("{program} ended with {status}"));
    }
    println!("LEDGER-DONE");
    Ok(())
}
