//! What the guest's ledger needs of the guest's `system.rs`, for tests of it outside a guest.

pub(crate) type Outcome<T> = Result<T, String>;
