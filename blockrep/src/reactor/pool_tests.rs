use super::*;
use crate::reactor::Buf;
use proptest::prelude::*;

/// Would show as a guest's data in another guest's request: recycled pages with two owners.
#[test]
fn buffers_are_aligned_exact_and_come_back() {
    let pool = Pool::new(16 * PAGE_BYTES, 8 * PAGE_BYTES).unwrap();
    let mut a = pool.alloc(5000).unwrap();
    assert_eq!((a.len(), a.capacity()), (5000, 8192));
    assert_eq!(a.as_ptr() as usize % PAGE_BYTES, 0);
    a.fill(7);
    let frozen = a.freeze();
    let tail = frozen.slice(4096..);
    assert_eq!(tail.len(), 904);
    drop(frozen);
    assert_eq!(
        pool.stats().pages_used,
        2,
        "a slice keeps the whole allocation"
    );
    assert!(tail.iter().all(|&b| b == 7));
    drop(tail);
    assert_eq!(pool.stats().pages_used, 0);
    assert_eq!(pool.stats().pages_used_max, 2);
}

/// A waiting front end would hang forever, or the daemon outgrow its bound.
#[test]
fn exhaustion_is_counted_and_ends_when_a_buffer_returns() {
    let pool = Pool::new(4 * PAGE_BYTES, 2 * PAGE_BYTES).unwrap();
    let a = pool.alloc(8192).unwrap();
    let b = pool.alloc(8192).unwrap();
    assert!(pool.alloc(1).is_none());
    assert_eq!(pool.stats().failures, 1);
    drop(a);
    let c = pool.alloc(8192).unwrap();
    drop((b, c));
    assert_eq!(pool.stats().pages_used, 0);
}

/// The arena unmapped under a live buffer would be a crash or a leak of another thread's memory.
#[test]
fn a_buffer_outlives_its_pool_handle() {
    let pool = Pool::new(PAGE_BYTES, PAGE_BYTES).unwrap();
    let mut buf = pool.alloc(4096).unwrap();
    drop(pool);
    buf.fill(9);
    assert_eq!(buf.freeze().slice(10..11)[0], 9);
}

/// A length that can never be granted must not look like back-pressure.
#[test]
#[should_panic(expected = "larger than the pool's stated maximum")]
fn an_allocation_beyond_the_maximum_is_a_bug_of_the_caller() {
    Pool::new(4 * PAGE_BYTES, PAGE_BYTES)
        .unwrap()
        .alloc(PAGE_BYTES + 1);
}

#[test]
fn senseless_sizes_are_refused() {
    // A configured size of zero would otherwise stall every request.
    for (size, max) in [
        (0, 1),
        (PAGE_BYTES, 0),
        (PAGE_BYTES, 2 * PAGE_BYTES),
        (2 << 30, 1),
    ] {
        assert!(Pool::new(size, max).is_err(), "{size} {max}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Alloc(usize),
    Freeze(usize),
    Share(usize, usize, usize),
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..9 * PAGE_BYTES).prop_map(Step::Alloc),
        1 => any::<usize>().prop_map(Step::Freeze),
        1 => any::<(usize, usize, usize)>().prop_map(|(a, b, c)| Step::Share(a, b, c)),
        4 => any::<usize>().prop_map(Step::Drop),
    ];
    proptest::collection::vec(step, 0..300)
}

enum Handle {
    Unique(BufMut),
    Shared(Buf),
}

/// A handle, its tag byte and the pages of its allocation.
struct Held {
    handle: Handle,
    tag: u8,
    allocation: usize,
}

impl Held {
    fn bytes(&self) -> &[u8] {
        match &self.handle {
            Handle::Unique(buf) => buf,
            Handle::Shared(buf) => buf,
        }
    }
}

fn has_run(used: &[bool], span: usize) -> bool {
    used.windows(span)
        .any(|run| run.iter().all(|&taken| !taken))
}

proptest! {
    /// Overlapping buffers corrupt disks; leaked pages stop the volume; a refusal while there is
    /// room stalls it. Checked against a plain table of pages.
    #[test]
    fn pool_behaves_like_a_table_of_pages(pages in 9usize..200, steps in steps()) {
        let pool = Pool::new(pages * PAGE_BYTES, 9 * PAGE_BYTES).unwrap();
        let base = pool.region().0 as usize;
        let mut held: Vec<Held> = Vec::new();
        // Per allocation: pages and live handles.
        let mut allocations: Vec<(std::ops::Range<usize>, usize)> = Vec::new();
        let mut tag = 0u8;
        for step in steps {
            let mut used = vec![false; pages];
            for (range, _) in allocations.iter().filter(|(_, refs)| *refs > 0) {
                for page in range.clone() {
                    prop_assert!(!used[page], "page {} has two owners", page);
                    used[page] = true;
                }
            }
            prop_assert_eq!(
                pool.stats().pages_used as usize,
                used.iter().filter(|&&taken| taken).count()
            );
            match step {
                Step::Alloc(len) => {
                    let span = len.max(1).div_ceil(PAGE_BYTES);
                    match pool.alloc(len) {
                        None => prop_assert!(!has_run(&used, span), "refused with room left"),
                        Some(mut buf) => {
                            prop_assert_eq!(buf.len(), len);
                            let first = (buf.as_ptr() as usize - base) / PAGE_BYTES;
                            tag = tag.wrapping_add(1);
                            buf.fill(tag);
                            allocations.push((first..first + span, 1));
                            let allocation = allocations.len() - 1;
                            held.push(Held { handle: Handle::Unique(buf), tag, allocation });
                        }
                    }
                }
                Step::Freeze(at) if !held.is_empty() => {
                    let at = at % held.len();
                    let Held { handle, tag, allocation } = held.swap_remove(at);
                    let handle = match handle {
                        Handle::Unique(buf) => Handle::Shared(buf.freeze()),
                        shared => shared,
                    };
                    held.push(Held { handle, tag, allocation });
                }
                Step::Share(at, begin, len) if !held.is_empty() => {
                    let at = at % held.len();
                    if let Handle::Shared(buf) = &held[at].handle {
                        let begin = begin % (buf.len() + 1);
                        let len = len % (buf.len() - begin + 1);
                        let view = buf.slice(begin..begin + len);
                        let Held { tag, allocation, .. } = held[at];
                        allocations[allocation].1 += 1;
                        held.push(Held { handle: Handle::Shared(view), tag, allocation });
                    }
                }
                Step::Drop(at) if !held.is_empty() => {
                    let at = at % held.len();
                    let gone = held.swap_remove(at);
                    allocations[gone.allocation].1 -= 1;
                }
                _ => {}
            }
            for item in &held {
                prop_assert!(item.bytes().iter().all(|&b| b == item.tag));
            }
        }
        drop(held);
        prop_assert_eq!(pool.stats().pages_used, 0);
    }
}
