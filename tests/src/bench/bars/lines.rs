//! Which lines there are, and what their bars are.

use super::super::MIB;
use super::super::plan::{Family, StackKind};
use super::super::point::{Cost, Point};
use super::super::replica::Replica;
use super::super::stats::Middle;
use super::super::workload::Workload;
use super::{Bar, Limit, Round};
use crate::bench::load::JOURNALS_MIN;

use Workload as W;

/// Memory of a daemon that has nothing to do, in MiB.
const IDLE_MIB_MAX: f64 = 64.0;

/// Adds the lines of a family.
pub(super) fn of(family: Family, rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    match family {
        Family::Burst => burst(rounds, bars),
        Family::Sustained => sustained(rounds, bars),
        Family::Ack => ack(rounds, bars),
        Family::Sequential => {
            let text = "1M sequential write, sustained / three-stream ceiling";
            let (stack, base) = (StackKind::SUSTAINED, [StackKind::ThreeStreams]);
            let bar = ratio(rounds, text, W::SEQUENTIAL, stack, &base, 0.9);
            bars.push(flat(rounds, bar, W::SEQUENTIAL));
            let text = "1M sequential write, burst / qemu-nbd beside a journal";
            bars.push(beside_journal(rounds, text, W::SEQUENTIAL));
        }
        Family::Read => {
            for (text, workload) in [
                ("4K random read QD1 / qemu-nbd", W::READ_1),
                ("4K random read QD32 / qemu-nbd", W::READ_32),
            ] {
                let base = [StackKind::QemuNbd];
                bars.push(ratio(rounds, text, workload, StackKind::BURST, &base, 1.1));
            }
        }
        Family::Vhost => {
            for (text, workload, least) in [
                ("vhost-user 4K random read QD32 / our NBD", W::READ_32, 1.3),
                (
                    "vhost-user 4K random write QD32 / our NBD",
                    W::WRITE_32,
                    1.0,
                ),
            ] {
                let (stack, base) = (StackKind::VHOST, [StackKind::BURST]);
                bars.push(ratio(rounds, text, workload, stack, &base, least));
            }
        }
        Family::Cut => cut(rounds, bars),
        Family::Commit => commit(rounds, bars),
        Family::Epochs => epochs(rounds, bars),
        Family::Bytes => bytes(rounds, bars),
        Family::Memory => memory(rounds, bars),
        Family::Extra => {}
    }
}

fn values(rounds: &[Round<'_>], of: impl Fn(&Round<'_>) -> Option<f64>) -> Vec<f64> {
    rounds.iter().filter_map(of).collect()
}

fn median(rounds: &[Round<'_>], of: impl Fn(&Round<'_>) -> Option<f64>) -> Option<f64> {
    Middle::of(&values(rounds, of)).map(|m| m.median)
}

/// Requests per second against the slowest of `bases`, all of one round.
fn ratio(
    rounds: &[Round<'_>],
    text: &str,
    workload: Workload,
    stack: StackKind,
    bases: &[StackKind],
    least: f64,
) -> Bar {
    let values = ratios(rounds, workload, stack, bases);
    Bar::new(text, "x", &values, Limit::AtLeast(least), None)
}

fn ratios(
    rounds: &[Round<'_>],
    workload: Workload,
    stack: StackKind,
    bases: &[StackKind],
) -> Vec<f64> {
    values(rounds, |round| {
        let bases: Option<Vec<f64>> = bases.iter().map(|b| round.iops(workload, *b)).collect();
        let slowest = bases?.into_iter().reduce(f64::min)?;
        Some(round.iops(workload, stack)? / slowest)
    })
}

fn replica(
    workload: Workload,
    stack: StackKind,
    of: impl Fn(&Replica) -> Option<f64>,
) -> impl Fn(&Round<'_>) -> Option<f64> {
    move |round| of(round.point(workload, stack)?.replica.as_ref()?)
}

fn burst(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    for (text, workload) in [
        ("4K random write QD1, burst / qemu-nbd", W::WRITE_1),
        ("4K random write QD32, burst / qemu-nbd", W::WRITE_32),
    ] {
        let (stack, base) = (StackKind::BURST, [StackKind::QemuNbd]);
        let mut bar = ratio(rounds, text, workload, stack, &base, 1.0);
        let drain = replica(workload, stack, |r| Some(r.drain_ms as f64 / 1000.0));
        if let Some(drain) = median(rounds, drain) {
            bar.remark = format!("what was not applied drains in {drain:.1} s");
        }
        bars.push(bar);
    }
    for (text, workload) in [
        (
            "4K random write QD1, burst / qemu-nbd beside a journal",
            W::WRITE_1,
        ),
        (
            "4K random write QD32, burst / qemu-nbd beside a journal",
            W::WRITE_32,
        ),
    ] {
        bars.push(beside_journal(rounds, text, workload));
    }
}

/// Against one copy on a disk that has to take a synced journal as well: what is left to us.
fn beside_journal(rounds: &[Round<'_>], text: &str, workload: Workload) -> Bar {
    let beside = StackKind::BesideJournal;
    let values = ratios(rounds, workload, StackKind::BURST, &[beside]);
    let alone = ratios(rounds, workload, beside, &[StackKind::QemuNbd]);
    let remark = Middle::of(&alone).map(|m| format!("which is {:.2} x qemu-nbd", m.median));
    Bar::new(text, "x", &values, Limit::None, remark)
}

fn sustained(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    for (text, workload) in [
        (
            "4K random write QD1, sustained / lower of qemu-nbd and ceiling",
            W::WRITE_1,
        ),
        (
            "4K random write QD32, sustained / lower of qemu-nbd and ceiling",
            W::WRITE_32,
        ),
    ] {
        let bases = [StackKind::QemuNbd, StackKind::ThreeStreams];
        let bar = ratio(rounds, text, workload, StackKind::SUSTAINED, &bases, 0.9);
        bars.push(flat(rounds, bar, workload));
    }
}

/// Tells of what is not applied, and lets no figure count that was bought by putting apply off.
fn flat(rounds: &[Round<'_>], mut bar: Bar, workload: Workload) -> Bar {
    let stack = StackKind::SUSTAINED;
    let mib = |bytes: u64| Some(bytes as f64 / MIB as f64);
    let half = median(rounds, replica(workload, stack, |r| mib(r.lag_half_bytes)));
    let end = median(rounds, replica(workload, stack, |r| mib(r.lag_end_bytes)));
    let journals = median(rounds, |round| round.point(workload, stack)?.journals());
    let (Some(half), Some(end), Some(journals)) = (half, end, journals) else {
        return bar;
    };
    bar.remark =
        format!("{journals:.1} journals; unapplied {half:.0} MiB half way, {end:.0} at the end");
    let all = |wanted: fn(&Replica) -> bool| {
        let of = replica(workload, stack, |r| Some(f64::from(wanted(r))));
        median(rounds, of) == Some(1.0)
    };
    let unsound = if journals < JOURNALS_MIN as f64 {
        Some("too little was written")
    } else if all(Replica::is_flat) {
        None
    } else {
        Some("what is not applied still grows")
    };
    bar.unless(unsound)
}

fn ack(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    let (write, local) = (StackKind::WRITE, StackKind::BURST);
    let (one, many) = (W::WRITE_1, W::WRITE_32);
    // Ours answers when the write would survive at the backup: so must the mirror's copy.
    let synced = StackKind::BLOCKING_SYNCED;
    for (text, workload, least) in [
        (
            "ack write QD1 / mirror write-blocking, copy synced",
            one,
            1.5,
        ),
        (
            "ack write QD32 / mirror write-blocking, copy synced",
            many,
            20.0,
        ),
    ] {
        bars.push(ratio(rounds, text, workload, write, &[synced], least));
    }
    for (text, workload) in [
        (
            "ack write QD1 / mirror write-blocking, copy not synced",
            one,
        ),
        (
            "ack write QD32 / mirror write-blocking, copy not synced",
            many,
        ),
    ] {
        let values = ratios(rounds, workload, write, &[StackKind::BLOCKING]);
        bars.push(Bar::new(text, "x", &values, Limit::None, None));
    }
    for (text, workload, least) in [
        ("ack local QD1 / mirror background", one, 1.0),
        ("ack local QD32 / mirror background", many, 1.2),
    ] {
        let base = [StackKind::BACKGROUND];
        bars.push(ratio(rounds, text, workload, local, &base, least));
    }
}

fn cut(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    let (workload, stack) = (W::WRITE_32, StackKind::BURST);
    let ms = |us: Option<u64>| us.map(|us| us as f64 / 1000.0);
    let p99 = values(rounds, replica(workload, stack, |r| ms(r.hold.p99_us)));
    let half = median(rounds, replica(workload, stack, |r| ms(r.hold.p50_us)));
    let remark = half.map(|half| format!("p50 {half:.2} ms"));
    let text = "a cut holds the guest's I/O, QD32, p99";
    bars.push(Bar::new(text, "ms", &p99, Limit::AtMost(0.5), remark));
}

fn commit(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    let ms = |us: Option<u64>| us.map(|us| us as f64 / 1000.0);
    let ours = replica(W::OFFERED, StackKind::BURST, |r| ms(r.commit.p50_us));
    let bare = |round: &Round<'_>| {
        let point = round.point(W::OFFERED, StackKind::Append)?;
        Some(point.load.p50_us / 1000.0)
    };
    let ratios = values(rounds, |round| Some(ours(round)? / bare(round)?));
    let remark = median(rounds, &ours)
        .zip(median(rounds, bare))
        .map(|(ours, bare)| format!("{ours:.2} ms against {bare:.2} ms"));
    let text = "cut to DURABLE p50, 25 ms epochs at 100 MB/s / append + fdatasync of the same";
    bars.push(Bar::new(text, "x", &ratios, Limit::AtMost(1.2), remark));
    let slow = replica(W::OFFERED, StackKind::SLOW_SYNC, |r| ms(r.commit.p50_us));
    let remark = median(
        rounds,
        replica(W::OFFERED, StackKind::SLOW_SYNC, |r| ms(r.commit.p99_us)),
    );
    let remark = remark.map(|p99| format!("p99 {p99:.2} ms"));
    let text = "cut to DURABLE p50, every sync of the journal 5 ms longer";
    let slow = values(rounds, slow);
    bars.push(Bar::new(text, "ms", &slow, Limit::None, remark));
}

fn epochs(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    let workload = W::WRITE_32;
    let [ten, forty, hundred, second] = StackKind::EPOCHS;
    let against = |stack| {
        values(rounds, |round| {
            Some(round.iops(workload, stack)? / round.iops(workload, second)?)
        })
    };
    // Long epochs are applied later: within a few seconds that alone makes them faster.
    let settled = |stack| {
        median(rounds, |round| {
            let ours = round.point(workload, stack)?.settled_iops()?;
            Some(ours / round.point(workload, second)?.settled_iops()?)
        })
        .map(|ratio| format!("{ratio:.2} x with the drain counted"))
    };
    for (text, stack, limit) in [
        (
            "40 epochs/s / 1 epoch/s, 4K random write QD32",
            forty,
            Limit::AtLeast(0.95),
        ),
        (
            "epochs of 10 ms / 1000 ms, 4K random write QD32",
            ten,
            Limit::None,
        ),
        (
            "epochs of 100 ms / 1000 ms, 4K random write QD32",
            hundred,
            Limit::None,
        ),
    ] {
        let remark = settled(stack);
        bars.push(Bar::new(text, "x", &against(stack), limit, remark));
    }
}

fn bytes(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    for (text, workload, stack, most) in [
        (
            "backup writes per byte, QD32, no block twice",
            W::ONCE,
            StackKind::BURST,
            2.1,
        ),
        (
            "backup writes per byte, QD32, 90 % overwrites within an epoch of 100 ms",
            W::TEN_TIMES,
            StackKind::OVERWRITTEN,
            1.3,
        ),
    ] {
        let ratio = values(rounds, replica(workload, stack, |r| Some(r.written_ratio)));
        bars.push(Bar::new(text, "", &ratio, Limit::AtMost(most), None));
    }
}

fn memory(rounds: &[Round<'_>], bars: &mut Vec<Bar>) {
    let resident = |side: fn(&Point) -> Option<Cost>| {
        values(rounds, |round| {
            let cost = side(round.point(W::IDLE, StackKind::HUGE)?)?;
            Some(cost.resident_bytes as f64 / MIB as f64)
        })
    };
    let front = resident(|p| p.front);
    let text = "resident, primary of 1 TiB, idle";
    bars.push(Bar::new(
        text,
        "MiB",
        &front,
        Limit::AtMost(IDLE_MIB_MAX),
        None,
    ));
    let window = replica(W::IDLE, StackKind::HUGE, |r| {
        Some(r.window_bytes as f64 / MIB as f64)
    });
    let window = median(rounds, window);
    let remark = window.map(|window| format!("64 MiB and the stated window of {window:.0} MiB"));
    let limit = Limit::AtMost(IDLE_MIB_MAX + window.unwrap_or(0.0));
    let text = "resident, backup of 1 TiB, idle";
    bars.push(Bar::new(text, "MiB", &resident(|p| p.back), limit, remark));
}
