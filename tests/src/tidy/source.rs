//! Rules about source text: purity, leftover markers, machine paths.

use super::Finding;

/// Rust source with comments and the insides of literals blanked out, line by line the same.
#[must_use]
pub fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skip = match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            b'r' if is_raw_string(bytes, at) => raw_string_length(rest),
            b'"' => string_length(rest),
            b'\'' => char_length(rest),
            _ => 0,
        };
        if skip == 0 {
            let c = rest.chars().next().expect("not at the end");
            out.push(c);
            at += c.len_utf8();
        } else {
            out.extend(
                rest[..skip]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            at += skip;
        }
    }
    out
}

fn is_raw_string(bytes: &[u8], at: usize) -> bool {
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    let byte_string = at > 0 && bytes[at - 1] == b'b';
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    (!word_before || byte_string) && bytes.get(at + 1 + hashes) == Some(&b'"')
}

fn raw_string_length(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|b| *b == b'#').count();
    let end = format!("\"{}", "#".repeat(hashes));
    let body = hashes + 2;
    rest[body..]
        .find(&end)
        .map_or(rest.len(), |at| body + at + end.len())
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a character literal; 0 for a lifetime.
fn char_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[2..].find('\'').map_or(0, |at| {
            // '\'' ends at the quote after the escaped one.
            if at == 0 { 4.min(rest.len()) } else { at + 3 }
        }),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// Production code of a file: what stands before its tests.
#[must_use]
pub fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod ")
        .map_or(code, |at| &code[..at])
}

/// Types that are values and do nothing by themselves.
const VALUES: [&str; 8] = [
    "time::Duration",
    "net::IpAddr",
    "net::Ipv4Addr",
    "net::Ipv6Addr",
    "net::SocketAddr",
    "net::SocketAddrV4",
    "net::SocketAddrV6",
    "net::AddrParseError",
];

/// A pure module does no I/O, has no clock, no threads and no randomness.
#[must_use]
pub fn impurities(path: &str, text: &str) -> Vec<Finding> {
    let code = code_only(text);
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(without_tests(&code).lines()) {
        for found in impure_names(line) {
            findings.push(Finding::new(
                path,
                number,
                format!("{found} in a pure module"),
            ));
        }
    }
    findings
}

fn impure_names(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for module in ["fs", "net", "time", "thread", "process", "os", "env"] {
        for (at, _) in line.match_indices(&format!("std::{module}")) {
            let after = &line[at + 5..];
            let ends = after[module.len()..].chars().next();
            if ends.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            if !only_values(after) {
                found.push(format!("std::{module}"));
            }
        }
    }
    for name in [
        "rand::",
        "fastrand::",
        "getrandom::",
        "io_uring::",
        "SystemTime",
        "Instant",
    ] {
        if line.contains(name) {
            found.push(name.to_owned());
        }
    }
    for (at, _) in line.match_indices("libc::") {
        let name: String = line[at + 6..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let errno = name.starts_with('E')
            && name
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
        if !errno {
            found.push(format!("libc::{name}"));
        }
    }
    found
}

/// `net::IpAddr`, `time::Duration;`, `net::{IpAddr, Ipv4Addr};`
fn only_values(path: &str) -> bool {
    let Some((module, names)) = path.split_once("::") else {
        return false;
    };
    let names = names.strip_prefix('{').map_or_else(
        || {
            vec![
                names
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or(""),
            ]
        },
        |list| {
            list.split('}')
                .next()
                .unwrap_or("")
                .split(',')
                .map(str::trim)
                .collect()
        },
    );
    names
        .iter()
        .all(|name| VALUES.contains(&format!("{module}::{name}").as_str()))
}

/// Markers people leave for later, and macros that stand for missing code.
#[must_use]
pub fn leftovers(path: &str, text: &str) -> Vec<Finding> {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("HA", "CK"),
        concat!("todo", "!("),
        concat!("unimple", "mented!("),
        concat!("dbg", "!("),
    ];
    find_words(path, text, &words, "left over")
}

/// Paths of the machine somebody worked on.
#[must_use]
pub fn machine_paths(path: &str, text: &str) -> Vec<Finding> {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
    ];
    find_words(path, text, &words, "a path of one machine")
}

fn find_words(path: &str, text: &str, words: &[&str], what: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for word in words {
            let inside_word = |at: usize| {
                let before = line[..at].chars().next_back();
                let after = line[at + word.len()..].chars().next();
                let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                word.chars().all(char::is_alphabetic) && (joins(before) || joins(after))
            };
            if line.match_indices(word).any(|(at, _)| !inside_word(at)) {
                findings.push(Finding::new(path, number, format!("{word}: {what}")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word in a comment or a string is no code; code behind it still is.
    #[test]
    fn comments_and_literals_are_blanked() {
        let text = "a(\"std::fs \\\" x\"); // std::net\nb('\"', '\\'', r#\"std::\"fs\"#); /* y */ c::<'a>()";
        let code = code_only(text);
        assert!(
            !code.contains("std") && !code.contains('x') && !code.contains('y'),
            "{code}"
        );
        assert!(
            code.contains("a(") && code.contains("b(") && code.contains("c::<'a>()"),
            "{code}"
        );
        assert_eq!(code.lines().count(), text.lines().count());
    }

    /// The simulator is worth nothing if the engine asks the real clock or disk.
    #[test]
    fn planted_impurities_are_found() {
        for line in [
            "use std::fs::File;",
            "use std::{fmt}; let t = std::time::Instant::now();",
            "let t = Instant::now();",
            "std::thread::sleep(x)",
            "use std::net::{IpAddr, TcpStream};",
            "getrandom::fill(&mut b)",
            "libc::pread(fd)",
        ] {
            assert!(!impurities("x.rs", line).is_empty(), "{line}");
        }
        for line in [
            "use std::time::Duration;",
            "use std::net::{IpAddr, Ipv6Addr};",
            "IoError { errno: libc::EIO }",
            "// std::fs is not used",
            "std::format!()",
            "#[cfg(test)]\nmod tests { use std::fs; }",
        ] {
            assert_eq!(impurities("x.rs", line), [], "{line}");
        }
    }

    /// What was meant for later is read by nobody later.
    #[test]
    fn planted_leftovers_are_found() {
        let marker = ["TO", "DO"].concat();
        assert_eq!(leftovers("x", &format!("a\n// {marker}: b")).len(), 1);
        assert_eq!(leftovers("x", &["todo", "!()"].concat()).len(), 1);
        assert_eq!(leftovers("x", &format!("METHOD{marker}S")), []);
        let path = ["/wo", "rk/x"].concat();
        assert_eq!(machine_paths("x", &path).len(), 1);
        assert_eq!(machine_paths("x", "network/x").len(), 0);
    }
}
