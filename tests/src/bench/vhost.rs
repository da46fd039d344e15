//! A guest's disk driver as load: vhost-user-blk, one queue, a fixed number of requests in flight.
//!
//! Rings and buffers stand in shared memory of this process, as a guest's would; nothing is read of
//! a buffer. A ring that has nothing sleeps, as a guest does; it never spins.

use super::fio::{Extent, Outcome};
use super::workload::Workload;
use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use memmap2::MmapMut;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

/// Load before the first request that counts.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long a disk may answer nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often an idle ring looks whether it is to end.
const LOOK_MS: i32 = 50;
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u32 = 3;

/// What to load, and how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) socket: PathBuf,
    pub(super) size_bytes: u64,
    pub(super) workload: Workload,
    pub(super) extent: Extent,
    pub(super) seed: u64,
}

/// One request in flight: its buffer, and when it began.
type Asked = (usize, Instant);

/// A disk under load.
struct Load<'a> {
    plan: &'a Plan,
    queue: VirtioBlkQueue<'a, Asked>,
    notifier: Box<dyn QueueNotifier>,
    completion: Arc<EventFd>,
    buffers: MmapMut,
    random: fastrand::Rng,
    in_flight: u32,
    asked: u64,
    latencies_ns: Histogram<u64>,
    /// Since when requests count.
    from: Instant,
}

/// Runs until the extent is over or `stop` is set.
///
/// # Errors
/// Nobody serves there, an answer is an error, or none comes.
pub(super) fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    let socket = plan.socket.to_str().context("a path that is text")?;
    let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let features = features.bits() | VirtioBlkFeatureFlags::FLUSH.bits();
    let vhost = VhostUser::new(socket, features).context("connecting by vhost-user")?;
    let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
    let entries = (plan.workload.depth * DESCRIPTORS).next_power_of_two();
    let entries = u16::try_from(entries).context("too many requests in flight")?;
    let mut queues = VirtioBlkQueue::setup_queues(transport.as_mut(), 1, entries)?;
    let bytes = plan.workload.block_bytes * u64::from(plan.workload.depth);
    let (file, buffers) = shared_memory(bytes)?;
    let (address, length) = (buffers.as_ptr() as usize, buffers.len());
    transport.map_mem_region(address, length, file.as_raw_fd(), 0)?;
    let mut load = Load {
        plan,
        queue: queues.pop().context("one queue")?,
        notifier: transport.get_submission_notifier(0),
        completion: transport.get_completion_fd(0),
        buffers,
        random: fastrand::Rng::with_seed(plan.seed),
        in_flight: 0,
        asked: 0,
        latencies_ns: Histogram::new(3)?,
        from: Instant::now() + WARM_UP,
    };
    let outcome = load.run(stop);
    // The queue lives in memory of the transport.
    drop(load);
    drop(transport);
    outcome
}

/// Memory that another process can map.
fn shared_memory(bytes: u64) -> Result<(File, MmapMut)> {
    // SAFETY: a constant name; the result is looked at.
    let fd = unsafe { libc::memfd_create(c"load".as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    // SAFETY: the file keeps its length; what the other side writes into it is never read here.
    let memory = unsafe { MmapMut::map_mut(&file) }?;
    Ok((file, memory))
}

impl Load<'_> {
    fn run(&mut self, stop: &AtomicBool) -> Result<Outcome> {
        let begin = Instant::now();
        let end = begin + WARM_UP + Duration::from_secs(self.plan.extent.seconds);
        let asked_max = self.plan.extent.bytes.map_or(u64::MAX, |bytes| {
            (bytes / self.plan.workload.block_bytes).max(1)
        });
        let mut heard = begin;
        for slot in 0..self.plan.workload.depth as usize {
            self.ask(slot, begin)?;
        }
        self.kick()?;
        while self.in_flight > 0 {
            let done: Vec<_> = self.queue.completions().collect();
            let now = Instant::now();
            if done.is_empty() {
                ensure!(
                    now < heard + SILENCE_MAX,
                    "the disk answers nothing for {} s",
                    SILENCE_MAX.as_secs()
                );
                self.sleep()?;
                continue;
            }
            heard = now;
            let more = now < end && !stop.load(Ordering::Relaxed);
            for completion in done {
                self.in_flight -= 1;
                let (slot, since) = completion.context;
                ensure!(completion.ret == 0, "the disk gives {}", completion.ret);
                if since >= self.from {
                    let ns = (now - since).as_nanos();
                    self.latencies_ns.record(u64::try_from(ns)?)?;
                }
                if more && self.asked < asked_max {
                    self.ask(slot, now)?;
                }
            }
            self.kick()?;
        }
        self.outcome(heard)
    }

    /// Puts a request into the ring.
    fn ask(&mut self, slot: usize, now: Instant) -> Result<()> {
        let block = self.plan.workload.block_bytes;
        let offset = self.random.u64(0..self.plan.size_bytes / block) * block;
        let length = usize::try_from(block)?;
        let at = slot * length;
        let buffer = self.buffers[at..at + length].as_mut_ptr();
        let context = (slot, now);
        // SAFETY: a buffer of this slot, which has no other request; it outlives the queue.
        unsafe {
            if self.plan.workload.writes() {
                self.queue.write_raw(offset, buffer, length, context)
            } else {
                self.queue.read_raw(offset, buffer, length, context)
            }
        }
        .context("a request")?;
        self.in_flight += 1;
        self.asked += 1;
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        if self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }

    /// Waits for a call, a little while.
    fn sleep(&mut self) -> Result<()> {
        self.queue.set_used_notif_enabled(true);
        if !self.queue.completions().has_next() {
            let mut poll = libc::pollfd {
                fd: self.completion.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one live entry.
            let ready = unsafe { libc::poll(&raw mut poll, 1, LOOK_MS) };
            if ready > 0 {
                self.completion.read()?;
            }
        }
        self.queue.set_used_notif_enabled(false);
        Ok(())
    }

    fn outcome(&self, end: Instant) -> Result<Outcome> {
        let counted = self.latencies_ns.len();
        ensure!(counted > 0, "the load ended before it began");
        let runtime = end.saturating_duration_since(self.from);
        let at = |part| self.latencies_ns.value_at_quantile(part) as f64 / 1000.0;
        Ok(Outcome {
            iops: counted as f64 / runtime.as_secs_f64().max(1e-3),
            requests: self.asked,
            bytes: self.asked * self.plan.workload.block_bytes,
            runtime_ms: u64::try_from(runtime.as_millis())?,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        })
    }
}
