//! A store that refuses, lies, breaks off or says nothing, at every one of the program's requests.

use crate::host::{Host, PATH, in_namespace};
use crate::server::Wrong;

const WRONG: [Wrong; 9] = [
    Wrong::Refuses("EACCES"),
    Wrong::Refuses("EQUOTA"),
    Wrong::Closes,
    Wrong::HalfAHeader,
    Wrong::HalfAPayload,
    Wrong::OtherType,
    Wrong::UnknownType,
    Wrong::NotText,
    Wrong::EmptyError,
];
/// Requests of a teardown: a READ, three RM, then a DIRECTORY and a RM for each of three directories.
const REQUESTS: usize = 10;

/// Answers of RM are not looked into: one whose type is right is right.
fn is_read(request: u32) -> bool {
    [1, 2].contains(&request)
}

#[test]
fn every_wrong_answer_is_a_failure_in_one_line() {
    in_namespace(|| {
        let mut host = Host::new();
        let before = host.kernel();
        for wrong in WRONG {
            for at in 0..REQUESTS {
                host.store.put(&format!("{PATH}/ifb"), "netbuf-ffff");
                host.store.answers_wrong(at, wrong);
                let ended = host.tear_down();
                let asked = host.store.asked();
                if wrong == Wrong::NotText && !is_read(asked[at.min(asked.len() - 1)].0) {
                    // What follows is read, or nothing is: then it was done.
                    assert!([0, 1].contains(&ended.code), "{wrong:?} {at}: {ended:?}");
                } else {
                    let text = ended.bad(1);
                    assert!(text.starts_with("xenstore: "), "{wrong:?} {at}: {text}");
                    assert_eq!(
                        asked.len(),
                        at + 1,
                        "{wrong:?}: a store that failed is asked no more"
                    );
                }
            }
        }
        // And the right ones do it, whatever came before.
        host.store.answers_right();
        host.tear_down().good();
        assert_eq!(host.store.asked().len(), REQUESTS);
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
        assert_eq!(host.kernel(), before);
    });
}

/// libxl ends a script after 40 s, and would not know why.
#[test]
fn a_store_that_says_nothing_is_waited_for_a_bounded_time() {
    in_namespace(|| {
        let mut host = Host::new();
        let before = host.kernel();
        for wrong in [Wrong::Silent, Wrong::Endless] {
            host.store.answers_wrong(0, wrong);
            let ended = host.set_up();
            let text = ended.bad(1);
            assert!(text.contains("no answer within"), "{text}");
            assert_eq!(host.store.asked().len(), 1, "it is not waited for again");
            assert_eq!(host.kernel(), before);
        }
    });
}

/// A key that is not there is none, and no failure: teardown may come twice, and before any set-up.
#[test]
fn what_is_not_there_is_no_failure() {
    in_namespace(|| {
        let host = Host::new();
        host.tear_down().good();
        host.tear_down().good();
        assert_eq!(host.store.paths(), [] as [&str; 0]);
    });
}
