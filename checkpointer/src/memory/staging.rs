//! The copy that is made in the pause.
