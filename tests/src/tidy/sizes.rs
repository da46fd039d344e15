//! How large files and functions get.

use super::source::code_only;
use super::{Finding, TextFile};

/// Lines a file may have without a reason.
pub const FILE_LINES_MAX: usize = 400;
/// Lines a file may have with one.
pub const FILE_LINES_HARD: usize = 800;
/// Lines a function may have without a reason.
pub const FUNCTION_LINES_MAX: usize = 70;

/// Something larger than the rule, and why.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// File, or file and function: `a/b.rs` or `a/b.rs::name`.
    pub of: &'static str,
    /// Lines it may have.
    pub lines_max: usize,
    /// Why it is not split.
    pub why: &'static str,
}

fn judge(
    of: &str,
    (path, line): (&str, usize),
    lines: usize,
    limit: usize,
    exceptions: &[Exception],
) -> Option<Finding> {
    let exception = exceptions.iter().find(|e| e.of == of);
    match exception {
        None if lines > limit => Some(Finding::new(
            path,
            line,
            format!("{of}: {lines} lines, {limit} are the rule"),
        )),
        Some(e) if lines > e.lines_max => Some(Finding::new(
            path,
            line,
            format!("{of}: {lines} lines, its exception says {}", e.lines_max),
        )),
        Some(_) if lines <= limit => Some(Finding::new(
            path,
            line,
            format!("{of}: {lines} lines need no exception"),
        )),
        _ => None,
    }
}

/// Files above the limit without a reason, and reasons without a file above the limit.
#[must_use]
pub fn large_files(files: &[TextFile], exceptions: &[Exception]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = files
        .iter()
        .filter_map(|file| {
            let lines = file.text.lines().count();
            judge(
                &file.path,
                (&file.path, 0),
                lines,
                FILE_LINES_MAX,
                exceptions,
            )
        })
        .collect();
    for exception in exceptions {
        if !files.iter().any(|file| file.path == exception.of) {
            findings.push(Finding::new(exception.of, 0, "an exception for no file"));
        }
    }
    findings
}

/// A function and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Name without its path.
    pub name: String,
    /// First line, from 1.
    pub line: usize,
    /// Lines from the first to the closing brace.
    pub lines: usize,
}

/// Every function of a file that has a body.
#[must_use]
pub fn functions(text: &str) -> Vec<Function> {
    let code = code_only(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let starts_word = code[..at]
            .chars()
            .next_back()
            .is_none_or(|c| c.is_whitespace());
        let name: String = code[at + 3..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if !starts_word || name.is_empty() {
            continue;
        }
        let Some(end) = body_end(&code[at..]) else {
            continue;
        };
        let line = code[..at].matches('\n').count() + 1;
        let lines = code[at..at + end].matches('\n').count() + 1;
        found.push(Function { name, line, lines });
    }
    found
}

/// Where the body ends that follows; `None` for a declaration without one.
fn body_end(code: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut brackets = 0isize;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if depth == 0 && brackets == 0 => return None,
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Functions above the limit without a reason, and reasons without such a function.
#[must_use]
pub fn large_functions(files: &[TextFile], exceptions: &[Exception]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for file in files {
        for function in functions(&file.text) {
            let of = format!("{}::{}", file.path, function.name);
            let large = function.lines > FUNCTION_LINES_MAX;
            // A small namesake does not make an exception superfluous.
            if large {
                let place = (file.path.as_str(), function.line);
                findings.extend(judge(
                    &of,
                    place,
                    function.lines,
                    FUNCTION_LINES_MAX,
                    exceptions,
                ));
                seen.push(of);
            }
        }
    }
    for exception in exceptions {
        if !seen.iter().any(|of| of == exception.of) {
            findings.push(Finding::new(
                exception.of,
                0,
                "an exception for no large function",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, lines: usize) -> TextFile {
        TextFile {
            path: path.to_owned(),
            text: "x\n".repeat(lines),
        }
    }

    /// A limit that everybody may pass, or that keeps old exceptions, is none.
    #[test]
    fn planted_large_files_are_found() {
        let why = "a reason";
        let exception = Exception {
            of: "a.rs",
            lines_max: 500,
            why,
        };
        assert_eq!(large_files(&[file("a.rs", 400)], &[]), []);
        assert_eq!(large_files(&[file("a.rs", 401)], &[]).len(), 1);
        assert_eq!(large_files(&[file("a.rs", 500)], &[exception]), []);
        assert_eq!(large_files(&[file("a.rs", 501)], &[exception]).len(), 1);
        assert_eq!(large_files(&[file("a.rs", 300)], &[exception]).len(), 1);
        assert_eq!(large_files(&[file("b.rs", 300)], &[exception]).len(), 1);
    }

    /// Braces in strings and nested functions must not hide a long one.
    #[test]
    fn planted_large_functions_are_found() {
        let body = "    let s = \"}\";\n".repeat(80);
        let text =
            format!("impl A {{\n  fn long(x: [u8; 2]) -> u8 {{\n{body}  }}\n}}\nfn short();\n");
        let long = functions(&text);
        assert_eq!(
            long,
            [Function {
                name: "long".to_owned(),
                line: 2,
                lines: 82
            }]
        );
        let files = [TextFile {
            path: "a.rs".to_owned(),
            text,
        }];
        assert_eq!(large_functions(&files, &[]).len(), 1);
        let exception = Exception {
            of: "a.rs::long",
            lines_max: 82,
            why: "a reason",
        };
        assert_eq!(large_functions(&files, &[exception]), []);
        let stale = Exception {
            of: "a.rs::gone",
            lines_max: 82,
            why: "a reason",
        };
        assert_eq!(large_functions(&files, &[exception, stale]).len(), 1);
    }
}
