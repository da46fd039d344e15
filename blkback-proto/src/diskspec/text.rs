//! Foreign text in messages for people: quoted, on one line, of bounded length, and the known
//! word nearest to a mistyped one.
//!
//! Everything printed here may come from a peer, a file or a command line. A line break in it
//! must not forge a second log line, and a control sequence must not reach a terminal.

/// Characters of foreign text that [`quoted`] shows before it cuts.
pub const QUOTED_CHARS_MAX: usize = 160;

/// Longest word, in characters, that [`nearest`] compares; longer ones resemble nothing.
const WORD_CHARS_MAX: usize = 32;

/// `text` in single quotes, one line, control and direction characters shown as `U+FFFD`, cut
/// after [`QUOTED_CHARS_MAX`] characters.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("'");
    let mut chars = text.chars();
    out.extend(chars.by_ref().take(QUOTED_CHARS_MAX).map(visible));
    if chars.next().is_some() {
        out.push('…');
    }
    out.push('\'');
    out
}

/// `c`, or `U+FFFD` where showing it would move the cursor, break the line or turn the direction.
pub fn visible(c: char) -> char {
    let turns_or_hides = matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    if c.is_control() || turns_or_hides {
        '\u{fffd}'
    } else {
        c
    }
}

/// The entry of `known` that `typed` was most likely meant to be, or none when nothing is near:
/// at most a third of the longer word, rounded up, may differ.
///
/// ```
/// use blkback_proto::diskspec::text::nearest;
/// assert_eq!(nearest("jornal-size", ["journal", "journal-size"]), Some("journal-size"));
/// assert_eq!(nearest("colour", ["journal", "journal-size"]), None);
/// ```
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed: Vec<char> = typed.chars().take(WORD_CHARS_MAX + 1).collect();
    if typed.len() > WORD_CHARS_MAX {
        return None;
    }
    known
        .into_iter()
        .map(|word| {
            let chars: Vec<char> = word.chars().collect();
            (distance(&typed, &chars), typed.len().max(chars.len()), word)
        })
        .filter(|&(edits, longer, _)| edits < longer && edits <= longer.div_ceil(3))
        .min_by_key(|&(edits, _, _)| edits)
        .map(|(_, _, word)| word)
}

/// Edits (insert, delete, replace, swap of two neighbours) that turn `a` into `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    // Rows of the usual table: two back, one back, current.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    // A wrong hint sends an operator to the wrong option in the middle of an outage.
    #[test]
    fn nearest_finds_slips_and_not_strangers() {
        let drivers = ["aio", "file", "phy", "remus", "tap"];
        for (typed, want) in [
            ("iao", Some("aio")),
            ("remsu", Some("remus")),
            ("rmus", Some("remus")),
            ("fil", Some("file")),
            ("xyz", None),
            ("oai", None),
            ("", None),
            ("nothinglike", None),
        ] {
            assert_eq!(nearest(typed, drivers), want, "typed {typed}");
        }
        assert_eq!(nearest(&"a".repeat(1 << 20), ["aio"]), None);
    }

    // A host name with a line break in it would forge a second line in the log.
    #[test]
    fn quoted_text_is_one_bounded_line() {
        assert_eq!(
            quoted("a\nb\u{1b}[2J\u{202e}"),
            "'a\u{fffd}b\u{fffd}[2J\u{fffd}'"
        );
        let long = quoted(&"x".repeat(10_000));
        assert_eq!(long.chars().count(), QUOTED_CHARS_MAX + 3);
        assert!(long.ends_with("…'"));
    }
}
