//! The database's clients, in the clients' network: Debian's `psql`, told and heard through pipes.
//!
//! Each keeps one connection from the first transaction to the last, and none may be made anew: psql ends where its
//! connection does. What was acknowledged is written down when COMMIT's own answer has come, and not before.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::stage::{GUEST, Stage};
use super::contents;
use super::image::Debian;
use super::judge::{Entry, Told};
use crate::lab::Place;
use crate::process::{self, Process};
use crate::stop::{self, minutes};

pub(super) const CONNECTIONS: u32 = 4;
/// The first answers, of a guest that emulates its processor.
const BEGIN_LIMIT: Duration = minutes(2);
/// The last answer of each.
const END_LIMIT: Duration = minutes(2);
/// One question to the promoted guest.
const ASK_LIMIT: Duration = minutes(5);
/// Who serves a connection: another process there would be another connection.
const WHO: &str = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid();\n";
const LARGEST: i32 = 5_000;

/// All clients of a round.
#[derive(Debug)]
pub(super) struct Clients {
    connections: Vec<Connection>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Connection {
    process: Process,
    told: Arc<Mutex<Told>>,
    thread: JoinHandle<()>,
    log: PathBuf,
}

/// A command in the clients' network.
pub(super) fn command(stage: &Stage, debian: &Debian, name: &str) -> Command {
    let mut command = debian.program(name);
    command.env("PGCONNECT_TIMEOUT", "60");
    command.args(["-h", &GUEST.to_string(), "-U", "postgres"]);
    stage.client.place(&mut command);
    command
}

impl Clients {
    /// Connects them all; returns when each has had an answer to a transaction.
    pub(super) fn start(
        stage: &Stage,
        debian: &Debian,
        place: &Place,
        kept: &Path,
        seed: u64,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut connections = Vec::new();
        for number in 1..=CONNECTIONS {
            let log = place.log(&format!("client-{number}"));
            let mut psql = command(stage, debian, "psql");
            psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
            let (process, stdin, stdout) = Process::spawn_talking(&mut psql, "psql", &log)?;
            let path = kept.join(format!("acknowledged-{number}"));
            let book = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            let told = Arc::new(Mutex::new(Told::default()));
            let mut talk = Talk {
                number,
                stdin,
                lines: BufReader::new(stdout),
                book,
                told: Arc::clone(&told),
                random: fastrand::Rng::with_seed(seed.wrapping_add(u64::from(number))),
            };
            let asked = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                if let Err(why) = talk.until(&asked) {
                    locked(&talk.told).ended = Some(why);
                }
            });
            connections.push(Connection {
                process,
                told,
                thread,
                log,
            });
        }
        let clients = Self { connections, stop };
        stop::wait_for("each client's first answer", BEGIN_LIMIT, || {
            clients.must_go_on()?;
            Ok((clients.least() > 0).then_some(()))
        })?;
        Ok(clients)
    }

    /// Fails where a connection has ended, with what its psql said.
    fn must_go_on(&self) -> Result<()> {
        for one in &self.connections {
            if let Some(why) = &locked(&one.told).ended {
                anyhow::bail!("{why}{}", process::tail_of(&one.log));
            }
        }
        Ok(())
    }

    /// False when one has lost its connection.
    pub(super) fn go_on(&self) -> bool {
        self.must_go_on().is_ok()
    }

    /// Transactions that were acknowledged, of all.
    pub(super) fn acknowledged(&self) -> usize {
        self.counts().sum()
    }

    /// Of the connection that has the fewest.
    pub(super) fn least(&self) -> usize {
        self.counts().min().unwrap_or(0)
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = usize> {
        self.connections
            .iter()
            .map(|one| locked(&one.told).acknowledged.len())
    }

    /// Lets each have its last answer, and gives what they have seen. One without an answer is ended.
    pub(super) fn finish(self) -> Result<Vec<Told>> {
        self.stop.store(true, Ordering::Relaxed);
        let end = Instant::now() + END_LIMIT;
        while Instant::now() < end && self.connections.iter().any(|one| !one.thread.is_finished()) {
            stop::sleep(Duration::from_millis(50))?;
        }
        let mut all = Vec::new();
        for mut one in self.connections {
            let late = !one.thread.is_finished();
            // Its pipes end with it, and then the thread does.
            one.process.kill();
            // A panic was printed, and what it had told counts.
            let _ = one.thread.join();
            let mut told = std::mem::take(&mut *locked(&one.told));
            if late {
                told.ended = Some(format!("no answer in {} s", END_LIMIT.as_secs()));
            } else if let Some(why) = &mut told.ended {
                why.push_str(&process::tail_of(&one.log));
            }
            all.push(told);
        }
        Ok(all)
    }
}

/// One connection, as its thread has it.
struct Talk {
    number: u32,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
    book: File,
    told: Arc<Mutex<Told>>,
    random: fastrand::Rng,
}

impl Talk {
    fn until(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let before = self.ask(WHO)?;
        locked(&self.told).server = before.clone();
        for txid in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let entry = Entry {
                client: self.number,
                txid,
                delta: self.random.i32(-LARGEST..=LARGEST),
            };
            locked(&self.told).pending = Some(entry);
            let line = contents::transaction(self.number, txid, entry.delta, &mut self.random);
            self.say(&line)?;
            while self.hear()? != "COMMIT" {}
            let mut told = locked(&self.told);
            told.pending = None;
            told.acknowledged.push((entry, Instant::now()));
            drop(told);
            writeln!(self.book, "{txid} {}", entry.delta).map_err(|e| format!("its book: {e}"))?;
        }
        let after = self.ask(WHO)?;
        match before == after {
            true => Ok(()),
            false => Err(format!(
                "served by {before} at first and by {after} at last"
            )),
        }
    }

    fn ask(&mut self, question: &str) -> Result<String, String> {
        self.say(question)?;
        self.hear()
    }

    fn say(&mut self, line: &str) -> Result<(), String> {
        let said = self.stdin.write_all(line.as_bytes());
        said.map_err(|e| format!("psql takes no more: {e}"))
    }

    fn hear(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        read.map_err(|e| format!("psql is not heard: {e}"))?;
        match line.trim_end() {
            "" => Err("psql ended: its connection or a statement failed".to_owned()),
            "ROLLBACK" => Err("a transaction was rolled back".to_owned()),
            line => Ok(line.to_owned()),
        }
    }
}

/// Returns when the server has answered somebody. Held output may come later than the clients' kernel waits for the
/// guest's hardware address, so one attempt says nothing.
pub(super) fn wait_until_served(stage: &Stage, debian: &Debian, place: &Place) -> Result<()> {
    let log = place.log("first");
    stop::wait_for("the server to answer", BEGIN_LIMIT, || {
        match ask_anew(stage, debian, &log, "SELECT 1") {
            Err(error) if error.is::<stop::Interrupted>() => Err(error),
            answer => Ok(answer.ok()),
        }
    })?;
    Ok(())
}

/// The answer of a client that connects only now, one row a line.
pub(super) fn ask_anew(stage: &Stage, debian: &Debian, log: &Path, sql: &str) -> Result<String> {
    let mut psql = command(stage, debian, "psql");
    psql.args([
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        "postgres",
        "-c",
        sql,
    ]);
    process::run(&mut psql, log, ASK_LIMIT)?.success("psql")
}

fn locked(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    // What was told before a panic is true all the same.
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
