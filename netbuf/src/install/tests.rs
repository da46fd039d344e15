//! Real interfaces in a network namespace that has no name and ends with its thread.

mod lan;
mod paths;
mod steps;

use super::*;

#[test]
fn names_are_ours_or_not() {
    assert_eq!(ifb_name(u32::MAX), "netbuf-ffffffff");
    assert_eq!(ifb_name(31), "netbuf-1f");
    assert_eq!(vif_of("netbuf-1f"), Some(31));
    for other in [
        "netbuf-",
        "netbuf-0",
        "netbuf-01",
        "netbuf-1F",
        "netbuf-+1",
        "netbuf-x",
        "netbuf1",
        "ifb0",
        "netbuf-100000000",
    ] {
        assert_eq!(vif_of(other), None, "{other}");
    }
}
