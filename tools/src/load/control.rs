//! Asking a daemon for cuts.

/// Why a cut gave no epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutError {
    /// The daemon answered that it will not; the run goes on.
    Refused(String),
    /// Nobody answers any more.
    Lost(String),
}

/// Something that can cut an epoch now. Called on a thread of its own, one cut at a time; it may block, but not
/// for ever.
pub trait Cutter: Send {
    /// Cuts and returns the number of the epoch that ended: everything acknowledged before the call is in
    /// it or earlier, nothing submitted after the return is.
    fn cut(&mut self) -> Result<u64, CutError>;
}
