//! Hints in texts: commands that can be copied into a shell as they stand.

/// Commands that are sent to a daemon, as hints name them.
const COMMANDS: [&str; 5] = ["status", "watch", "events", "cut", "promote"];

/// A text in which every hint is a command for one daemon: `target` is the option that names it.
#[must_use]
pub fn aimed(text: &str, target: &str) -> String {
    let hint = |text: String, command: &&str| {
        let with = format!("blockrepctl {target} {command}");
        text.replace(&format!("blockrepctl {command}"), &with)
    };
    COMMANDS.iter().fold(text.to_owned(), hint)
}

/// As a shell takes it as one word.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
