//! Text for people that travels in messages: always one line, always bounded.

/// Longest text of one field after [`one_line`].
pub const TEXT_BYTES_MAX: usize = 1000;

/// Makes a text one harmless line: control characters (terminal escapes and line ends among them)
/// become spaces, and it is cut at a character border to [`TEXT_BYTES_MAX`] bytes.
pub fn one_line(text: &str) -> String {
    bounded_line(text, TEXT_BYTES_MAX)
}

pub(crate) fn bounded_line(text: &str, bytes_max: usize) -> String {
    text.char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= bytes_max)
        .map(|(_, c)| if c.is_control() { ' ' } else { c })
        .collect()
}
