//! Whether documents say what the code does: constants, offset tables, the recovery table, names.

use super::{Finding, TextFile};
use std::collections::BTreeSet;

/// Rows of every table whose first header cell is `first`, with the line they stand on.
#[must_use]
pub fn tables<'a>(text: &'a str, first: &str) -> Vec<Vec<(usize, Vec<&'a str>)>> {
    let mut tables = Vec::new();
    let mut rows: Option<Vec<(usize, Vec<&str>)>> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let Some(cells) = cells(line) else {
            tables.extend(rows.take());
            continue;
        };
        match &mut rows {
            Some(rows) if !cells[0].chars().all(|c| matches!(c, '-' | ':')) => {
                rows.push((number, cells));
            }
            Some(_) => {}
            None if cells[0] == first => rows = Some(Vec::new()),
            None => {}
        }
    }
    tables.extend(rows);
    tables
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inside = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(
        inside
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect(),
    )
}

/// Constants of a document against those of the code, both ways.
#[must_use]
pub fn constants(path: &str, text: &str, code: &[(&str, String)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (line, row) in tables(text, "constant").into_iter().flatten() {
        let (name, value) = (
            row[0],
            row.get(1).copied().unwrap_or_default().trim_matches('"'),
        );
        seen.insert(name);
        match code.iter().find(|(of, _)| *of == name) {
            None => findings.push(Finding::new(path, line, format!("{name} is no constant"))),
            Some((_, real)) if real != value => {
                findings.push(Finding::new(
                    path,
                    line,
                    format!("{name} is {real}, not {value}"),
                ));
            }
            Some(_) => {}
        }
    }
    for (name, _) in code {
        if !seen.contains(name) {
            findings.push(Finding::new(
                path,
                0,
                format!("{name} is not in the document"),
            ));
        }
    }
    findings
}

/// An offset table against encoded bytes: `fields` gives what each field holds there. Rows have no
/// gap between them; from the first row's offset to the end of the bytes.
#[must_use]
pub fn offsets(
    path: &str,
    rows: &[(usize, Vec<&str>)],
    bytes: &[u8],
    fields: &[(&str, Vec<u8>)],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut next = None;
    for (line, row) in rows {
        let mut bad = |what: String| findings.push(Finding::new(path, *line, what));
        let number = |at: usize| row.get(at).and_then(|cell| cell.parse::<usize>().ok());
        let (Some(at), Some(length), Some(name)) = (number(0), number(1), row.get(2)) else {
            bad("no offset, length and field".to_owned());
            continue;
        };
        if next.is_some_and(|next| next != at) {
            bad(format!(
                "{name} begins at {at}, the row before ends elsewhere"
            ));
        }
        next = Some(at + length);
        let Some(there) = bytes.get(at..at + length) else {
            bad(format!("{name} ends behind the structure"));
            continue;
        };
        if *name == "reserved" {
            if there.iter().any(|b| *b != 0) {
                bad("reserved bytes are in use".to_owned());
            }
            continue;
        }
        match fields.iter().find(|(field, _)| field == name) {
            None => bad(format!("{name} is no field")),
            Some((_, real)) if real != there => bad(format!("{name} is not at {at}")),
            Some(_) => {}
        }
    }
    if next != Some(bytes.len()) {
        findings.push(Finding::new(
            path,
            0,
            format!("a table ends at {next:?} of {}", bytes.len()),
        ));
    }
    for (field, _) in fields {
        if !rows.iter().any(|(_, row)| row.get(2) == Some(field)) {
            findings.push(Finding::new(path, 0, format!("{field} is in no table")));
        }
    }
    findings
}

/// Paths in backticks and links of a document that are not there.
#[must_use]
pub fn missing_paths(file: &TextFile, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for (number, line) in (1..).zip(file.text.lines()) {
        let spans = line.split('`').skip(1).step_by(2);
        for span in spans.filter(|span| is_repo_path(span)) {
            if !exists(span.trim_end_matches('/')) && !exists(&format!("{folder}/{span}")) {
                findings.push(Finding::new(
                    &file.path,
                    number,
                    format!("{span} is not there"),
                ));
            }
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', '#']).next().unwrap_or_default();
            let beside = if folder.is_empty() {
                target.to_owned()
            } else {
                format!("{folder}/{target}")
            };
            if !target.is_empty() && !target.contains("://") && !exists(&beside) {
                findings.push(Finding::new(
                    &file.path,
                    number,
                    format!("{target} is not there"),
                ));
            }
        }
    }
    findings
}

/// Looks like a path of the repository, not of a host or a build.
fn is_repo_path(span: &str) -> bool {
    let plain = span
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let built = span.starts_with("target/") || span.starts_with('/');
    let source = [".rs", ".md", ".toml"]
        .iter()
        .any(|end| span.ends_with(end));
    plain
        && !built
        && !span.starts_with('.')
        && ((span.contains('/') && !span.contains("//")) && (source || !span.contains(".")))
}

/// Long options a document names that no source knows, neither as text nor as a field of clap.
#[must_use]
pub fn unknown_options(file: &TextFile, sources: &[TextFile], foreign: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        for (at, _) in line.match_indices("--") {
            let name: String = line[at + 2..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-' || c.is_ascii_digit())
                .collect();
            let begins = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
            if name.is_empty() || !begins || foreign.contains(&name.as_str()) {
                continue;
            }
            let field = name.replace('-', "_");
            let known = |source: &TextFile| {
                source.text.contains(&format!("\"{name}\""))
                    || source.text.contains(&format!("{field}:"))
                    || source.text.contains(&format!("--{name}"))
            };
            if !sources.iter().any(known) {
                findings.push(Finding::new(
                    &file.path,
                    number,
                    format!("--{name} is no option"),
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
| constant | value |
|---|---:|
| `A_MAX` | 64 |
| `MAGIC` | \"BR\" |

| at | bytes | field | |
|---:|---:|---|---|
| 0 | 2 | magic | `MAGIC` |
| 2 | 1 | kind | |
| 3 | 1 | reserved | |
";

    fn code(max: u64) -> Vec<(&'static str, String)> {
        vec![("A_MAX", max.to_string()), ("MAGIC", "BR".to_owned())]
    }

    /// Whoever programs against a document believes its numbers.
    #[test]
    fn planted_constants_are_found() {
        assert_eq!(constants("d", DOCUMENT, &code(64)), []);
        assert_eq!(constants("d", DOCUMENT, &code(65)).len(), 1);
        assert_eq!(constants("d", DOCUMENT, &code(64)[..1]).len(), 1);
        let more = [code(64), vec![("B", "1".to_owned())]].concat();
        assert_eq!(constants("d", DOCUMENT, &more).len(), 1);
    }

    /// A field one byte further is another format.
    #[test]
    fn planted_offsets_are_found() {
        let table = &tables(DOCUMENT, "at")[0];
        let fields = [("magic", b"BR".to_vec()), ("kind", vec![7])];
        assert_eq!(offsets("d", table, b"BR\x07\0", &fields), []);
        assert!(
            !offsets("d", table, b"BR\x07\x01", &fields).is_empty(),
            "reserved in use"
        );
        assert!(
            !offsets("d", table, b"BRx\0", &fields).is_empty(),
            "another value"
        );
        assert!(
            !offsets("d", table, b"BR\x07\0\0", &fields).is_empty(),
            "too short"
        );
        assert!(
            !offsets("d", table, b"BR\x07\0", &fields[..1]).is_empty(),
            "unknown field"
        );
        let mut gap = table.clone();
        gap.remove(1);
        assert!(
            !offsets("d", &gap, b"BR\x07\0", &fields).is_empty(),
            "a gap"
        );
    }

    /// A guide to things that are gone costs its reader an hour.
    #[test]
    fn planted_paths_and_options_are_found() {
        let file = |text: &str| TextFile {
            path: "docs/a.md".to_owned(),
            text: text.to_owned(),
        };
        let exists = |path: &str| path == "src/b.rs" || path == "src" || path == "docs/c.md";
        assert_eq!(
            missing_paths(
                &file("`src/b.rs` `src/` [c](c.md) `/run/x` `a|b/c` `target/x`"),
                exists
            ),
            []
        );
        assert_eq!(missing_paths(&file("`src/gone.rs`"), exists).len(), 1);
        assert_eq!(missing_paths(&file("`gone/`"), exists).len(), 1);
        assert_eq!(missing_paths(&file("[c](gone.md)"), exists).len(), 1);
        let source = [TextFile {
            path: "x.rs".to_owned(),
            text: "on_loss: Policy, // --ack".to_owned(),
        }];
        assert_eq!(
            unknown_options(&file("--on-loss x --ack --serial"), &source, &["serial"]),
            []
        );
        assert_eq!(unknown_options(&file("`--on-los`"), &source, &[]).len(), 1);
    }
}
