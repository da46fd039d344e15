//! What failed, in few lines: of each failed test its name and the message of its panic. It is printed
//! below the table, because of a long run often only the end is kept.
//!
//! Read from the log of a part, as nextest or the test programs themselves write it; of a part without
//! tests, or with a log that is not understood, the last lines are taken.

/// Lines for all failures together.
const LINES_MAX: usize = 44;
/// Lines for one failure, its name included.
const LINES_EACH_MAX: usize = 10;
/// Characters of one line.
const LINE_CHARS_MAX: usize = 160;

/// One part, or one test of it.
#[derive(Debug)]
pub(super) struct Failure {
    name: String,
    /// What it said, most important line first.
    words: Vec<String>,
}

/// The failures of a part that ended in a wrong way, by its log: the part itself and its tests.
pub(super) fn of_part(part: &str, how: &str, log: &str) -> Vec<Failure> {
    let mut found = vec![Failure {
        name: format!("{part}: {how}"),
        words: Vec::new(),
    }];
    for (test, said) in sections(log) {
        let name = format!("{part}: {test}");
        // Shown again at the end, or only listed there.
        if found.iter().all(|failure| failure.name != name) {
            let words = panic_of(test, &said).unwrap_or_else(|| last_words(&said));
            found.push(Failure { name, words });
        }
    }
    if let [whole] = &mut found[..] {
        let lines: Vec<&str> = log.lines().collect();
        whole.words = last_words(&lines);
    }
    found
}

/// All failures within [`LINES_MAX`] lines: every name first of all, as far as there is room, then as
/// much as possible of what each said.
pub(super) fn digest(failures: &[&Failure]) -> Vec<String> {
    // One line says how many are left out.
    let named = match failures.len() {
        count if count > LINES_MAX => LINES_MAX - 1,
        count => count,
    };
    let each = (LINES_MAX / named.max(1)).clamp(1, LINES_EACH_MAX);
    let mut lines = Vec::new();
    for failure in failures.iter().take(named) {
        lines.push(cut(&format!("FAILED {}", failure.name)));
        let words = shortened(&failure.words, each - 1);
        lines.extend(words.map(|line| cut(&format!("    {line}"))));
    }
    if named < failures.len() {
        lines.push(format!("and {} more", failures.len() - named));
    }
    lines
}

/// At most `lines_max` lines: where that is not all, the beginning and the end, because a message often
/// begins with what was tried and ends with why it failed.
fn shortened(words: &[String], lines_max: usize) -> impl Iterator<Item = &str> {
    let left_out = words.len() > lines_max && lines_max > 1;
    let head = match left_out {
        true => lines_max / 2,
        false => lines_max.min(words.len()),
    };
    // One line says that there is more.
    let tail = match left_out {
        true => words.len() - (lines_max - head - 1),
        false => words.len(),
    };
    let head = words[..head].iter().map(String::as_str);
    let gap = left_out.then_some("…");
    head.chain(gap)
        .chain(words[tail..].iter().map(String::as_str))
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// Each failed test of a log with the lines that are its own.
fn sections(log: &str) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut open = false;
    for line in log.lines() {
        if let Some(test) = failed_in_nextest(line).or_else(|| failed_in_libtest(line)) {
            found.push((test, Vec::new()));
            open = true;
        } else if ends_section(line) {
            open = false;
        } else if open && let Some((_, said)) = found.last_mut() {
            said.push(line.trim());
        }
    }
    found
}

/// "FAIL [   0.310s] (6/6) package::binary path::of::test", or with SIGABRT, TIMEOUT and the like.
fn failed_in_nextest(line: &str) -> Option<&str> {
    let (status, test) = status_line(line)?;
    let well = ["PASS", "SLOW", "LEAK", "SKIP"].contains(&status);
    (!well).then_some(test)
}

fn status_line(line: &str) -> Option<(&str, &str)> {
    let (status, rest) = line.trim_start().split_once(" [")?;
    let upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    if status.is_empty() || !status.bytes().all(upper) {
        return None;
    }
    let (time, test) = rest.split_once("] ")?;
    // "> 60.000s" only says that it still runs.
    time.trim().strip_suffix('s')?.parse::<f64>().ok()?;
    let test = test.trim_start();
    let counted = test
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(") "));
    Some((status, counted.map_or(test, |(_, test)| test).trim()))
}

/// "---- path::of::test stdout ----"
fn failed_in_libtest(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

fn ends_section(line: &str) -> bool {
    line == "failures:" || line.starts_with("────") || status_line(line).is_some()
}

/// The place and message of the panic that ended `test`. With several, as of a property that was made
/// smaller, it is the last of the test's own thread.
fn panic_of(test: &str, said: &[&str]) -> Option<Vec<String>> {
    let path = test.rsplit(' ').next().unwrap_or(test);
    let own = format!("thread '{path}'");
    let panics = |at: &usize| said[*at].contains("panicked at ");
    let at = (0..said.len()).rev().filter(panics);
    let at = at
        .clone()
        .find(|at| said[*at].starts_with(&own))
        .or(at.clone().next())?;
    let (_, place) = said[at].split_once("panicked at ")?;
    let message = said[at + 1..].iter().take_while(|line| {
        let trace = line.starts_with("stack backtrace:") || line.starts_with("note: ");
        !trace && !line.contains("panicked at ")
    });
    let message = message.filter(|line| !line.is_empty());
    let mut words: Vec<String> = message.map(|line| (*line).to_owned()).collect();
    words.insert(0, format!("at {}", place.trim_end_matches(':')));
    Some(words)
}

/// The end of what was said, without what the test program says of itself.
fn last_words(said: &[&str]) -> Vec<String> {
    let own = |line: &&&str| !line.trim().is_empty() && !line.starts_with("test result:");
    let lines: Vec<&&str> = said.iter().filter(own).collect();
    let tail = &lines[lines.len().saturating_sub(LINES_EACH_MAX - 1)..];
    tail.iter().map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXTEST: &str = "\
        PASS [   0.028s] (1/4) p::bin/p a::good
        FAIL [   0.310s] (2/4) p::tidy files_are_small
  stdout ───

    running 1 test
    test files_are_small ... FAILED

  stderr ───

    thread 'files_are_small' (31832) panicked at tests/tidy/main.rs:128:5:

    a.rs: 404 lines, 400 are the rule
    stack backtrace:
       0: core::panicking::panic_fmt

        SLOW [> 60.000s] p::bin/p a::slow
     SIGABRT [   1.000s] (3/4) p::bin/p a::dies
  stderr ───
    out of memory
  Cancelling due to test failure
────────────
     Summary [   1.312s] 4 tests run: 2 passed, 2 failed, 0 skipped
        FAIL [   0.310s] (2/4) p::tidy files_are_small
     SIGABRT [   1.000s] (3/4) p::bin/p a::dies
";

    fn shown(part: &str, log: &str) -> Vec<String> {
        digest(&of_part(part, "exit code 1", log).iter().collect::<Vec<_>>())
    }

    // Where only the end of a run is kept, a name without its message costs another run.
    #[test]
    fn each_failed_test_of_nextest_has_its_name_and_message_once() {
        let wanted = [
            "FAILED tests: exit code 1",
            "FAILED tests: p::tidy files_are_small",
            "    at tests/tidy/main.rs:128:5",
            "    a.rs: 404 lines, 400 are the rule",
            "FAILED tests: p::bin/p a::dies",
            "    stderr ───",
            "    out of memory",
            "    Cancelling due to test failure",
        ];
        assert_eq!(shown("tests", NEXTEST), wanted);
    }

    // The same on a machine without nextest.
    #[test]
    fn each_failed_test_of_a_test_program_has_its_name_and_message() {
        let log = "test a::b ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n\n\
            thread 'a::b' panicked at src/x.rs:1:2:\nassertion `left == right` failed\n  left: 1\n \
            right: 2\nnote: run with `RUST_BACKTRACE=1`\n\n---- a::c stdout ----\nError: \"broken\"\n\n\n\
            failures:\n    a::b\n    a::c\n\ntest result: FAILED. 0 passed; 2 failed\n";
        let wanted = [
            "FAILED tests: exit code 1",
            "FAILED tests: a::b",
            "    at src/x.rs:1:2",
            "    assertion `left == right` failed",
            "    left: 1",
            "    right: 2",
            "FAILED tests: a::c",
            "    Error: \"broken\"",
        ];
        assert_eq!(shown("tests", log), wanted);
    }

    // Of a property that was made smaller, the first panics are steps on the way.
    #[test]
    fn the_last_panic_of_the_tests_own_thread_counts() {
        let log = "        FAIL [   0.1s] (1/1) p m::t\n\
            thread 'm::t' (1) panicked at a:1:1:\nfirst\nthread 'm::t' (1) panicked at a:2:2:\n\
            Test failed: minimal\nthread 'other' (2) panicked at a:3:3:\nbeside\n";
        let wanted = [
            "FAILED t: exit code 1",
            "FAILED t: p m::t",
            "    at a:2:2",
            "    Test failed: minimal",
        ];
        assert_eq!(shown("t", log), wanted);
    }

    // Lints and labs fail, too, and their reasons stand at the end of what they say.
    #[test]
    fn parts_without_tests_show_their_end() {
        let log: String = (0..100).map(|line| format!("line {line}\n\n")).collect();
        let lines = shown("clippy", &log);
        assert_eq!(lines.len(), LINES_EACH_MAX);
        assert_eq!(
            (lines[0].as_str(), lines[9].trim()),
            ("FAILED clippy: exit code 1", "line 99")
        );
        assert_eq!(shown("clippy", ""), ["FAILED clippy: exit code 1"]);
    }

    // What a daemon said last, below all that it said before, is why its test failed.
    #[test]
    fn long_messages_keep_their_beginning_and_their_end() {
        let words: Vec<String> = (0..20).map(|line| line.to_string()).collect();
        let shown = |lines| shortened(&words, lines).collect::<Vec<_>>();
        assert_eq!(shown(5), ["0", "1", "…", "18", "19"]);
        assert_eq!(shown(4), ["0", "1", "…", "19"]);
        assert_eq!(shown(2), ["0", "…"]);
        assert_eq!(shown(1), ["0"]);
        assert_eq!(shown(0), [""; 0]);
        assert_eq!(shown(20).len(), 20);
    }

    // A flood of failures must not push the names, or the result, out of what is kept.
    #[test]
    fn many_failures_stay_within_bounds() {
        for count in [1, 3, LINES_MAX - 1, LINES_MAX, LINES_MAX + 1, 1000] {
            let failures: Vec<Failure> = (0..count)
                .map(|number| Failure {
                    name: number.to_string(),
                    words: vec!["ä".repeat(1000); 100],
                })
                .collect();
            let lines = digest(&failures.iter().collect::<Vec<_>>());
            assert!(lines.len() <= LINES_MAX, "{count}: {}", lines.len());
            assert!(
                lines
                    .iter()
                    .all(|line| line.chars().count() <= LINE_CHARS_MAX + 1)
            );
            let names = lines
                .iter()
                .filter(|line| line.starts_with("FAILED"))
                .count();
            let left: usize = lines
                .last()
                .and_then(|line| {
                    line.strip_prefix("and ")?
                        .strip_suffix(" more")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            assert_eq!(names + left, count);
        }
    }
}
