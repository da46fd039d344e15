//! What a guest says is held until the epoch in which it said it is safe at the backup.
//!
//! ```text
//!   guest ── vif/tap ──ingress: redirect of everything──► IFB ── root: plug ──► on, after RELEASE n
//!   guest ── tap ──► relay (this process): frames by epoch ──► bridge port, after RELEASE n
//! ```
//!
//! CUT n closes the output of epoch n, RELEASE n lets it go. Frames keep their order, none is let go
//! early, and what is held is bounded. What comes in is never held.
//!
//! [`hold`] is what a daemon keeps of a guest. [`gate`] decides, [`install`] makes what it drives by the messages of [`netlink`], [`announce`] builds
//! the frames that tell where a guest now is, [`relay`] holds frames where the
//! kernel has no plug. [`script`] is what `xl remus` starts in the place of a daemon. `netbuf/NETBUF.md` has the whole of it.

pub mod announce;
pub mod cli;
pub mod daemon;
pub mod gate;
pub mod hold;
pub mod install;
pub mod netlink;
pub mod relay;
pub mod script;
