//! Completions for bash, zsh and fish, under the names by which the shells find them.

use std::path::PathBuf;

use clap_complete::Shell;

use crate::Output;
use crate::programs::Program;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// One file for each program and shell.
pub(crate) fn all(programs: &[Program]) -> Vec<Output> {
    programs
        .iter()
        .flat_map(|program| SHELLS.map(|shell| completion(program, shell)))
        .collect()
}

fn completion(program: &Program, shell: Shell) -> Output {
    let mut command = program.command.clone();
    let name = command.get_name().to_owned();
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut command, &name, &mut bytes);
    let path = match shell {
        Shell::Zsh => format!("zsh/site-functions/_{name}"),
        Shell::Fish => format!("fish/vendor_completions.d/{name}.fish"),
        _ => format!("bash-completion/completions/{name}"),
    };
    Output {
        path: PathBuf::from(path),
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs;

    // A flag that a shell does not offer is a flag that nobody finds in an emergency.
    #[test]
    fn every_shell_offers_every_command_and_flag() {
        for program in programs::all() {
            for shell in SHELLS {
                let text = String::from_utf8(completion(&program, shell).bytes).unwrap();
                let mut command = program.command.clone();
                command.build();
                offered(&command, &text, shell);
            }
        }
    }

    fn offered(command: &clap::Command, text: &str, shell: Shell) {
        for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
            let wanted = match shell {
                Shell::Fish => format!("-l {flag}"),
                _ => format!("--{flag}"),
            };
            assert!(text.contains(&wanted), "{shell}: {wanted}");
        }
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(text.contains(sub.get_name()), "{shell}: {}", sub.get_name());
            offered(sub, text, shell);
        }
    }
}
