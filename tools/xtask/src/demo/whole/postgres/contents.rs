//! What stands on the guest's disk besides Debian's packages: tables, settings, and what the guest runs.

use super::super::stage::GUEST;

const ACCOUNTS: u32 = 100_000;
const TELLERS: u32 = 10;
/// The database's directory, in the guest.
pub(super) const DATA: &str = "/var/lib/postgresql/data";
/// What the guest runs.
pub(super) const SERVE: &str = "/srv/serve";
pub(super) const COMPILE: &str = "/srv/compile";

/// What differs from Debian's settings: fsync and full_page_writes are not among it.
pub(super) fn settings() -> String {
    format!("listen_addresses = '{GUEST}'\nshared_buffers = 64MB\n")
}

/// The tables of pgbench at scale 1, and the ledger; one statement a line.
pub(super) fn schema() -> String {
    format!(
        "CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));\n\
         CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));\n\
         CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));\n\
         CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));\n\
         CREATE TABLE ledger (client int, txid int, delta int NOT NULL, PRIMARY KEY (client, txid));\n\
         INSERT INTO pgbench_branches VALUES (1, 0, '');\n\
         INSERT INTO pgbench_tellers SELECT t, 1, 0, '' FROM generate_series(1, {TELLERS}) t;\n\
         INSERT INTO pgbench_accounts SELECT a, 1, 0, '' FROM generate_series(1, {ACCOUNTS}) a;\n\
         VACUUM ANALYZE;\n\
         CREATE EXTENSION IF NOT EXISTS amcheck;\n"
    )
}

/// A transaction of pgbench with a line of the ledger, in one message: `None` of it counts without all of it.
pub(super) fn transaction(
    client: u32,
    txid: u32,
    delta: i32,
    random: &mut fastrand::Rng,
) -> String {
    let (aid, tid) = (random.u32(1..=ACCOUNTS), random.u32(1..=TELLERS));
    [
        "BEGIN".to_owned(),
        format!("UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid}"),
        format!("SELECT abalance FROM pgbench_accounts WHERE aid = {aid}"),
        format!("UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid}"),
        format!("UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = 1"),
        format!("INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ({tid}, 1, {aid}, {delta}, now())"),
        format!("INSERT INTO ledger VALUES ({client}, {txid}, {delta})"),
        "COMMIT;\n".to_owned(),
    ]
    .join("\\; ")
}

pub(super) fn serve_script(programs: &str) -> String {
    format!(
        "#!/bin/sh\n\
         {programs}/postgres -D {DATA} &\n\
         until {programs}/pg_isready -q -h {GUEST}; do kill -0 $! || exit 1; sleep 0.2; done\n\
         echo LEDGER-READY\n\
         wait $!\n"
    )
}

/// Compiles a file of some thousand lines again and again, optimised, on the disk; each time it must come out the same.
pub(super) fn compile_script() -> String {
    "#!/bin/sh\n\
     cd /srv/work || exit 1\n\
     i=0\n\
     while [ $i -lt 400 ]; do\n\
     \x20 echo \"int f$i(int *a, int n) { int s = $i; for (int j = 0; j < n; j++) {\"\n\
     \x20 echo \"  if (a[j] % ($i + 2)) s += a[j] * $i;\"\n\
     \x20 echo \"  else s ^= a[j] >> ($i % 7);\"\n\
     \x20 echo \"  a[j] = s; } return s; }\"\n\
     \x20 i=$((i + 1))\n\
     done > many.c\n\
     echo LEDGER-READY\n\
     n=0\n\
     while gcc -O2 -c many.c -o many.o; do\n\
     \x20 [ -e first.o ] || cp many.o first.o\n\
     \x20 cmp many.o first.o || exit 1\n\
     \x20 n=$((n + 1)); echo \"COMPILED $n\"\n\
     done\n\
     exit 1\n"
        .to_owned()
}

#[cfg(test)]
mod tests {
    //! Statements that are not one message would be several transactions where one of them is lost.

    use super::*;

    #[test]
    fn a_transaction_is_one_line_and_repeats_by_its_random_numbers() {
        let line = || transaction(2, 7, -5, &mut fastrand::Rng::with_seed(1));
        assert_eq!(line(), line());
        assert!(line().starts_with("BEGIN\\; UPDATE") && line().ends_with("\\; COMMIT;\n"));
        assert_eq!(line().matches('\n').count(), 1);
        assert_eq!(line().matches(';').count(), 8);
        assert!(line().contains("INSERT INTO ledger VALUES (2, 7, -5)"));
    }
}
