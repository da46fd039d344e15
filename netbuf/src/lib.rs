//! What a guest says is held until the epoch in which it said it is safe at the backup.
//!
//! ```text
//!   guest ── vif/tap ──ingress: redirect of everything──► IFB ── root: plug ──► on, after RELEASE n
//!   guest ── tap ──► relay (this process): frames by epoch ──► bridge port, after RELEASE n
//! ```
//!
//! CUT n closes the output of epoch n, RELEASE n lets it go. Frames keep their order, none is let go
//! early, and what is held is bounded. What comes in is never held.
