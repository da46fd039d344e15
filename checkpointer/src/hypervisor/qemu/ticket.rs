//! A command of the monitor between its sending and its answer.

/// A command on its way.
#[derive(Debug)]
#[must_use = "its answer is to be waited for"]
pub struct Ticket {
    pub(super) id: u64,
    pub(super) command: &'static str,
}

impl Ticket {
    /// What it is of.
    #[must_use]
    pub fn command(&self) -> &'static str {
        self.command
    }
}
