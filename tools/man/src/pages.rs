//! Man pages: one for each program and each of its commands.
//!
//! What the generator would put under "EXTRA" is the table of exit codes; here it stands as EXIT
//! STATUS, on the pages of commands, too.

use std::io;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::Output;
use crate::programs::Program;

/// Every page.
///
/// # Errors
/// None in practice: pages are written to memory.
pub(crate) fn all(programs: &[Program]) -> io::Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for program in programs {
        let others = programs
            .iter()
            .filter(|other| named(other) != named(program));
        let others: Vec<(String, &str)> = others
            .map(|other| (named(other).to_owned(), other.section))
            .collect();
        for command in with_subcommands(program) {
            outputs.push(page(program, &command, &others)?);
        }
    }
    Ok(outputs)
}

fn named(program: &Program) -> &str {
    program.command.get_name()
}

/// The program and every command of it, each with the flags that stand before commands.
fn with_subcommands(program: &Program) -> Vec<Command> {
    // `help` repeats what the pages say.
    let mut root = program.command.clone().disable_help_subcommand(true);
    root.build();
    let mut found = vec![root];
    let mut at = 0;
    while let Some(command) = found.get(at) {
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let below: Vec<Command> = shown.cloned().collect();
        found.extend(below);
        at += 1;
    }
    found
}

/// "blockrepctl-journal-dump" for `blockrepctl journal dump`.
fn page_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(program: &Program, command: &Command, others: &[(String, &str)]) -> io::Result<Output> {
    let section = program.section;
    let version = program.command.get_version().unwrap_or_default();
    let man = Man::new(command.clone())
        .section(section)
        .source(format!("{} {version}", named(program)))
        .manual("blockrep")
        // A page that says nothing here would have its source taken for the date.
        .date(" ");
    let mut bytes = Vec::new();
    man.render_title(&mut bytes)?;
    man.render_name_section(&mut bytes)?;
    synopsis(command).to_writer(&mut bytes)?;
    man.render_description_section(&mut bytes)?;
    man.render_options_section(&mut bytes)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut bytes)?;
    }
    exit_status(program).to_writer(&mut bytes)?;
    see_also(program, command, others).to_writer(&mut bytes)?;
    let path = format!("man/man{section}/{}.{section}", page_name(command));
    Ok(Output {
        path: PathBuf::from(path),
        bytes,
    })
}

/// What to type. The generator's own leaves out that a flag takes a value, and which.
fn synopsis(command: &Command) -> Roff {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let mut words = vec![bold(name)];
    let shown = |arg: &&Arg| !arg.is_hide_set();
    for arg in command.get_opts().chain(flags(command)).filter(shown) {
        let (open, close) = if arg.is_required_set() {
            ("", "")
        } else {
            ("[", "]")
        };
        words.push(roman(format!(" {open}")));
        let spelled = match (arg.get_short(), arg.get_long()) {
            (_, Some(long)) => format!("--{long}"),
            (Some(short), None) => format!("-{short}"),
            (None, None) => continue,
        };
        words.push(bold(spelled));
        if arg.get_action().takes_values() {
            words.push(roman(" "));
            words.push(italic(value_of(arg)));
        }
        words.push(roman(close));
        if matches!(arg.get_action(), ArgAction::Append) {
            words.push(roman("..."));
        }
    }
    for arg in command.get_positionals().filter(shown) {
        words.push(roman(" "));
        words.push(italic(value_of(arg)));
    }
    if command.has_subcommands() {
        words.push(roman(" "));
        words.push(italic("COMMAND"));
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text(words);
    roff
}

/// Options without a value.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let takes = |arg: &&Arg| !arg.get_action().takes_values() && !arg.is_positional();
    command.get_arguments().filter(takes)
}

fn value_of(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    names.join(" ")
}

fn exit_status(program: &Program) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in &program.exit_codes {
        roff.control("TP", []);
        roff.text([bold(code.to_string())]);
        roff.text([roman(*meaning)]);
    }
    roff
}

fn see_also(program: &Program, command: &Command, others: &[(String, &str)]) -> Roff {
    let own = (named(program) != page_name(command))
        .then(|| (named(program).to_owned(), program.section));
    let mut words: Vec<Inline> = Vec::new();
    for (name, section) in own.iter().chain(others) {
        if !words.is_empty() {
            words.push(roman(", "));
        }
        words.push(bold(name));
        words.push(roman(format!("({section})")));
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text(words);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs;

    /// Roff's own spelling of hyphens and apostrophes and its changes of font undone.
    fn plain(page: &Output) -> String {
        let text = String::from_utf8(page.bytes.clone()).unwrap();
        let mut text = text.replace("\\-", "-").replace("\\*(Aq", "'");
        for font in ["\\fB", "\\fI", "\\fR"] {
            text = text.replace(font, "");
        }
        text
    }

    fn has_flag(text: &str, flag: &str) -> bool {
        let wanted = format!("--{flag}");
        text.match_indices(&wanted).any(|(at, _)| {
            let rest = &text[at + wanted.len()..];
            !rest.starts_with(|next: char| next == '-' || next.is_ascii_alphanumeric())
        })
    }

    // A flag that is missing from the manual is looked for in vain in an emergency.
    #[test]
    fn every_page_names_every_flag_and_command() {
        for program in programs::all() {
            for command in with_subcommands(&program) {
                let text = plain(&page(&program, &command, &[]).unwrap());
                let options = text
                    .split_once(".SH OPTIONS")
                    .expect("every command has some")
                    .1;
                let flags: Vec<&str> = command
                    .get_arguments()
                    .filter_map(clap::Arg::get_long)
                    .collect();
                assert!(flags.contains(&"help"));
                for flag in flags {
                    assert!(has_flag(options, flag), "{}: --{flag}", page_name(&command));
                }
                for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                    let name = format!("{}({})", page_name(sub), program.section);
                    assert!(text.contains(&name), "{name}");
                }
            }
        }
    }

    // Scripts and cluster agents are written by the manual: a code that is not in it is not handled.
    #[test]
    fn every_page_explains_every_exit_code() {
        for program in programs::all() {
            for command in with_subcommands(&program) {
                let text = plain(&page(&program, &command, &[]).unwrap());
                let status = text
                    .split_once(".SH \"EXIT STATUS\"")
                    .expect("there is one")
                    .1;
                for (code, meaning) in &program.exit_codes {
                    let entry = format!(".TP\n{code}\n{meaning}\n");
                    assert!(status.contains(&entry), "{}: {entry}", page_name(&command));
                }
            }
        }
    }

    // The daemons' codes are documented twice, by their help and here; both come from one table.
    #[test]
    fn help_and_manual_have_the_same_exit_codes() {
        for program in programs::all() {
            let help = program.command.clone().render_long_help().to_string();
            for (code, meaning) in &program.exit_codes {
                let entry = format!("  {code}  {meaning}");
                assert!(help.contains(&entry), "{}: {entry}", named(&program));
            }
        }
    }

    // A flag shown bare is typed bare.
    #[test]
    fn the_synopsis_says_what_takes_a_value() {
        let pages = all(&programs::all()).unwrap();
        let of = |name: &str| {
            let found = pages.iter().find(|page| page.path.ends_with(name));
            let text = plain(found.expect("this page"));
            let (_, rest) = text.split_once(".SH SYNOPSIS").expect("there is one");
            rest.split_once(".SH").expect("more follows").0.to_owned()
        };
        let backup = of("blockrep-backup.8");
        for words in ["[--listen ADDR]...", "[--state DIR]", "[--same-image]"] {
            assert!(backup.contains(words), "{backup}");
        }
        let verify = of("blockrepctl-journal-verify.1");
        for words in ["blockrepctl journal verify", "[--journal DIR]", " DIR\n"] {
            assert!(verify.contains(words), "{verify}");
        }
        assert!(of("blockrepctl.1").contains(" COMMAND"));
    }

    // A page about commands that links nowhere leaves its reader there.
    #[test]
    fn pages_lead_to_each_other() {
        let pages = all(&programs::all()).unwrap();
        let of = |name: &str| {
            let found = pages.iter().find(|page| page.path.ends_with(name));
            plain(found.expect("this page"))
        };
        assert!(of("blockrepctl-cut.1").ends_with(
            "blockrepctl(1), blockrep(8), blockrep-backup(8), netbuf(8), remus-netbuf-setup(8), \
             checkpointer(8), blockrep-load(1)\n"
        ));
        assert!(
            of("blockrep.8")
                .ends_with("blockrep-backup(8), netbuf(8), remus-netbuf-setup(8), checkpointer(8), blockrepctl(1), blockrep-load(1)\n")
        );
    }
}
