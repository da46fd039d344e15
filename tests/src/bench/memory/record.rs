//! Written pages of processes that run here, epoch by epoch: an approximation of what the same work writes in a
//! guest. What a process maps privately counts by its address, what it shares by its file; the pages of a process that has ended
//! are given to who asks next, as a kernel does. The kernel's own pages are missing, and pages that were
//! written with what was there before.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// Most of one mapping that is looked at.
const MAPPING_BYTES_MAX: u64 = 1 << 30;
/// For a process to stand still.
const STOP_MAX: Duration = Duration::from_secs(2);
/// In a word of /proc/PID/pagemap: the page is there, or swapped.
const PRESENT: u64 = 3 << 62;

/// The pages of one epoch, each once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    pub(crate) pages: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// Where a page is: of a process or a shared file, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Own(i32, u64),
    Shared(u64, u64),
}

/// A page as it was last.
#[derive(Debug)]
struct Known {
    frame: u64,
    bytes: Box<[u8]>,
    seen: u64,
}

/// Follows processes.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    known: HashMap<Place, Known>,
    free: Vec<u64>,
    frames: u64,
    round: u64,
}

impl Recorder {
    /// What these processes have written since the last time. They stand still meanwhile; who has ended is left out.
    pub(crate) fn look(&mut self, pids: &[i32]) -> Written {
        self.round += 1;
        let mut written = Vec::new();
        for pid in pids {
            // It may end at any moment.
            if stop(*pid).is_ok() {
                let _ = self.look_at(*pid, &mut written);
            }
        }
        for pid in pids {
            signal(*pid, libc::SIGCONT);
        }
        let round = self.round;
        let free = &mut self.free;
        self.known.retain(|_, page| {
            let is_there = page.seen == round;
            if !is_there {
                free.push(page.frame);
            }
            is_there
        });
        written.sort_unstable_by_key(|(frame, _)| *frame);
        let mut all = Written::default();
        for (frame, place) in written {
            if let Some(page) = self.known.get(&place) {
                all.pages.push(frame);
                all.bytes.extend_from_slice(&page.bytes);
            }
        }
        all
    }

    fn look_at(&mut self, pid: i32, written: &mut Vec<(u64, Place)>) -> Result<()> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        for line in maps.lines() {
            let Some(mapping) = Mapping::read(line) else {
                continue;
            };
            let count = usize::try_from(mapping.bytes / PAGE as u64)?;
            let mut words = vec![0; count * 8];
            if pagemap
                .read_exact_at(&mut words, mapping.begin / PAGE as u64 * 8)
                .is_err()
            {
                continue;
            }
            let mut page = [0; PAGE];
            for (index, word) in words.chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
                let at = (index * PAGE) as u64;
                let is_there = word & PRESENT != 0;
                if is_there && memory.read_exact_at(&mut page, mapping.begin + at).is_ok() {
                    self.seen(mapping.place(pid, at), &page, written);
                }
            }
        }
        Ok(())
    }

    fn seen(&mut self, place: Place, bytes: &[u8; PAGE], written: &mut Vec<(u64, Place)>) {
        let round = self.round;
        if let Some(known) = self.known.get_mut(&place) {
            let is_first = known.seen != round;
            known.seen = round;
            if is_first && *known.bytes != *bytes {
                known.bytes.copy_from_slice(bytes);
                written.push((known.frame, place));
            }
            return;
        }
        let frame = self.free.pop().unwrap_or_else(|| {
            self.frames += 1;
            self.frames - 1
        });
        let known = Known {
            frame,
            bytes: bytes.as_slice().into(),
            seen: round,
        };
        self.known.insert(place, known);
        written.push((frame, place));
    }
}

/// A line of /proc/PID/maps that can be written to.
#[derive(Debug)]
struct Mapping {
    begin: u64,
    bytes: u64,
    offset: u64,
    inode: u64,
    is_shared: bool,
}

impl Mapping {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (begin, end) = words.next()?.split_once('-')?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let (begin, end) = (number(begin)?, number(end)?);
        let rights = words.next()?;
        let offset = number(words.next()?)?;
        let inode = words.nth(1)?.parse().ok()?;
        let is_special = line.contains("[v");
        let bytes = end.checked_sub(begin)?;
        (rights.starts_with("rw") && !is_special && bytes <= MAPPING_BYTES_MAX).then_some(Self {
            begin,
            bytes,
            offset,
            inode,
            is_shared: rights.ends_with('s'),
        })
    }

    fn place(&self, pid: i32, at: u64) -> Place {
        if self.is_shared {
            Place::Shared(self.inode, self.offset + at)
        } else {
            Place::Own(pid, self.begin + at)
        }
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: no memory involved.
    unsafe { libc::kill(pid, signal) };
}

/// Stops it, and waits until it stands.
fn stop(pid: i32) -> Result<()> {
    signal(pid, libc::SIGSTOP);
    let until = Instant::now() + STOP_MAX;
    while Instant::now() < until {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let behind = stat.rsplit(") ").next().context("stat")?;
        match behind.as_bytes().first() {
            Some(b'T' | b't') => return Ok(()),
            Some(b'Z' | b'X') => anyhow::bail!("it has ended"),
            _ => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    anyhow::bail!("it does not stand still")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A mapping that is left out is memory that seems never to be written.
    #[test]
    fn mappings_that_can_be_written_count() {
        let own = Mapping::read("7f00-9f00 rw-p 00001000 00:00 0 ").expect("counts");
        assert_eq!(own.place(7, 16), Place::Own(7, 0x7f10));
        let shared = Mapping::read("1000-3000 rw-s 00002000 00:05 99 /dev/zero").expect("counts");
        assert_eq!(shared.place(7, 4096), Place::Shared(99, 0x3000));
        assert!(Mapping::read("1000-3000 r--p 00000000 00:05 99 /bin/x").is_none());
        assert!(Mapping::read("1000-3000 rw-p 00000000 00:00 0 [vvar]").is_none());
    }

    /// All of a process is new at first, and nothing of one that sleeps after that; its pages go to the next.
    #[test]
    fn pages_are_told_once() {
        let sleep = || {
            let mut command = Command::new("sleep");
            command
                .arg("60")
                .stdin(Stdio::null())
                .spawn()
                .expect("sleep")
        };
        let mut recorder = Recorder::default();
        let mut child = sleep();
        std::thread::sleep(Duration::from_millis(300));
        let pid = i32::try_from(child.id()).expect("small");
        let first = recorder.look(&[pid]);
        assert!(!first.pages.is_empty() && first.bytes.len() == first.pages.len() * PAGE);
        let again = recorder.look(&[pid]);
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(
            again.pages.len() < first.pages.len() / 2,
            "{}",
            again.pages.len()
        );
        recorder.look(&[]);
        let mut next = sleep();
        let reused = recorder.look(&[i32::try_from(next.id()).expect("small")]);
        next.kill().expect("killed");
        next.wait().expect("ended");
        assert!(reused.pages.iter().any(|page| first.pages.contains(page)));
    }
}
