//! Man pages and shell completions of the programs, generated from their command lines.
//!
//! A package of its own, so that neither the daemons nor `cargo xtask` carry the generators. What is
//! written has the layout of `/usr/share`: a packager, or `--out /usr/local/share`, installs it as it
//! is.
//!
//! Exit codes: 0 written; 1 not written; 2 wrong usage.

mod completions;
mod pages;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueHint};

/// Write man pages and shell completions.
#[derive(Debug, Parser)]
#[command(name = "blockrep-man", version)]
struct Cli {
    /// Directory laid out like /usr/share; files that are there already are replaced
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,
}

/// One file to be written.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    /// Below the directory that was asked for.
    path: PathBuf,
    bytes: Vec<u8>,
}

fn main() -> ExitCode {
    match write_all(&Cli::parse().out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blockrep-man: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(out: &Path) -> Result<()> {
    let programs = programs::all();
    let mut outputs = pages::all(&programs)?;
    let page_count = outputs.len();
    outputs.extend(completions::all(&programs));
    for output in &outputs {
        let path = out.join(&output.path);
        let dir = path.parent().unwrap_or(out);
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        fs::write(&path, &output.bytes).with_context(|| format!("write {}", path.display()))?;
    }
    println!(
        "{page_count} man pages and {} completions in {}",
        outputs.len() - page_count,
        out.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // A package that lacks a page or a completion is noticed by users only.
    #[test]
    fn every_program_gets_its_files_where_they_are_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path()).unwrap();
        for file in [
            "man/man8/blockrep.8",
            "man/man8/blockrep-backup.8",
            "man/man8/remus-netbuf-setup.8",
            "man/man8/checkpointer.8",
            "man/man8/checkpointer-receive.8",
            "man/man1/blockrepctl-guest-promote.1",
            "man/man1/blockrepctl.1",
            "man/man1/blockrepctl-promote.1",
            "man/man1/blockrepctl-journal-verify.1",
            "man/man1/blockrep-load.1",
            "bash-completion/completions/blockrep",
            "zsh/site-functions/_blockrep-backup",
            "zsh/site-functions/_checkpointer",
            "fish/vendor_completions.d/blockrepctl.fish",
        ] {
            let length = fs::metadata(dir.path().join(file)).map(|found| found.len());
            assert!(length.is_ok_and(|length| length > 0), "{file}");
        }
    }
}
