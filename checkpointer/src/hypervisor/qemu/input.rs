//! Bytes of a stream, cut into lines; and waiting for more.

use rustix::event::{PollFd, Timespec, poll};
use std::io::{self, Read};
use std::time::Duration;

/// Bytes asked for at once.
const READ_BYTES: usize = 16 << 10;
/// Bytes kept allocated between lines.
const KEPT_BYTES: usize = 1 << 20;
/// Longest single wait.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What was read and not yet taken.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Those before `begin` are taken; those from there to `seen` have no end of line.
    bytes: Vec<u8>,
    begin: usize,
    seen: usize,
}

impl Input {
    /// Reads once; how many bytes came.
    ///
    /// # Errors
    /// Of reading.
    pub(super) fn read_from(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        self.bytes.drain(..self.begin);
        self.seen -= self.begin;
        self.begin = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEPT_BYTES);
        }
        let had = self.bytes.len();
        self.bytes.resize(had + READ_BYTES, 0);
        let read = stream.read(&mut self.bytes[had..]);
        let came = read.as_ref().map_or(0, |bytes| *bytes);
        self.bytes.truncate(had + came);
        read
    }

    /// The next whole line, without its end.
    pub(super) fn line(&mut self) -> Option<Vec<u8>> {
        let Some(length) = self.bytes[self.seen..].iter().position(|b| *b == b'\n') else {
            self.seen = self.bytes.len();
            return None;
        };
        let end = self.seen + length;
        let line = self.bytes[self.begin..end].to_vec();
        (self.begin, self.seen) = (end + 1, end + 1);
        Some(line)
    }

    /// Bytes of a line that has not ended.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.begin
    }
}

/// Waits until one is ready, the time is over or a signal comes; how many are ready.
pub(super) fn wait_on(polled: &mut [PollFd<'_>], wait: Duration) -> io::Result<usize> {
    let wait = Timespec::try_from(wait.min(WAIT_MAX)).map_err(io::Error::other)?;
    match poll(polled, Some(&wait)) {
        Ok(ready) => Ok(ready),
        Err(rustix::io::Errno::INTR) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    //! An answer that is cut in two by the socket must be one answer.
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let text = b"one\n\nthree and more\nrest";
        for step in 1..text.len() {
            let (mut input, mut lines) = (Input::default(), Vec::new());
            for mut part in text.chunks(step) {
                let all = part.len();
                assert_eq!(input.read_from(&mut part).expect("from memory"), all);
                lines.extend(std::iter::from_fn(|| input.line()));
            }
            assert_eq!(
                lines,
                [&b"one"[..], b"", b"three and more"],
                "in steps of {step}"
            );
            assert_eq!(input.len(), 4);
        }
    }
}
