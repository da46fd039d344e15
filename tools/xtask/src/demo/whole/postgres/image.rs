//! A disk with Debian's PostgreSQL on it, made without installing or mounting anything.
//!
//! apt resolves against an empty list of installed packages, so that all of a system's files come, and keeps what it
//! fetches in `.work/debian`; they are unpacked into a tree there. In that tree, by chroot, the packages' own programs make
//! the database; `mke2fs -d` makes a file system of it. The clients' programs run from the same tree.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::contents::{COMPILE, DATA, SERVE, compile_script, schema, serve_script, settings};
use crate::checkout::{Checkout, tool};
use crate::stop::minutes;
use crate::{packages, process, ui};

/// What makes a system of it: a shell and the files that every system has. Debian's maintainers say which PostgreSQL.
const PACKAGES: [&str; 13] = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "gcc",
    "grep",
    "libc-bin",
    "libc6-dev",
    "postgresql",
    "sed",
    "util-linux",
];
/// The user `postgres` in the guest: nobody at the host, which the tree's files belong to meanwhile.
pub(super) const USER: u32 = 26_547;
/// Room for the system, the database and what some minutes write.
const DISK: &str = "1G";

/// The same for clients as for the guest.
#[derive(Debug, Clone)]
pub(super) struct Debian {
    /// Raw; copied for each host.
    pub(super) image: PathBuf,
    tree: PathBuf,
    /// PostgreSQL's programs in the tree.
    programs: String,
    /// As it calls itself.
    pub(super) version: String,
}

impl Debian {
    /// A program of the server's package or the client's, from the tree.
    pub(super) fn program(&self, name: &str) -> Command {
        let mut command = tool("chroot");
        command
            .arg(&self.tree)
            .arg(format!("{}/{name}", self.programs));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C");
        command
    }

    /// As the user that the database belongs to.
    fn owners_program(&self, name: &str) -> Command {
        let mut command = tool("chroot");
        command.arg(format!("--userspec={USER}:{USER}"));
        command
            .arg(&self.tree)
            .arg(format!("{}/{name}", self.programs));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C");
        command
    }

    fn find(dir: &Path) -> Result<Self> {
        let tree = dir.join("tree");
        let releases = tree.join("usr/lib/postgresql");
        let list = fs::read_dir(&releases);
        let list = list.with_context(|| format!("{} holds no server", releases.display()))?;
        let names = list.flatten().map(|entry| entry.file_name());
        let name = names.filter_map(|name| name.into_string().ok()).max();
        let name = name.with_context(|| format!("{} is empty", releases.display()))?;
        let mut debian = Self {
            image: dir.join("image"),
            tree,
            programs: format!("/usr/lib/postgresql/{name}/bin"),
            version: String::new(),
        };
        let said = process::ask(debian.program("postgres").arg("--version"))?;
        // "postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        debian.version = said.split(' ').nth(2).unwrap_or("?").trim().to_owned();
        Ok(debian)
    }
}

/// Makes it, if it was not made before as it would be now.
pub(super) fn provide(checkout: &Checkout) -> Result<Debian> {
    let dir = checkout.work().join("debian");
    let recipe = recipe();
    let stamp = dir.join("recipe");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) {
        return Debian::find(&dir);
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let log = dir.join("make.log");
    for old in ["tree", "image"].map(|name| dir.join(name)) {
        let gone = if old.is_dir() {
            fs::remove_dir_all(&old)
        } else {
            fs::remove_file(&old)
        };
        if old.exists() {
            gone.with_context(|| format!("remove {}", old.display()))?;
        }
    }
    fetch(&dir, &log)?;
    unpack(&dir, &log)?;
    let debian = Debian::find(&dir)?;
    let step = ui::step("making the database and the guest's disk");
    complete(&debian.tree, &debian.programs)?;
    make_database(&debian, &log)?;
    make_image(&debian, &log)?;
    // It comes last: what has it is whole.
    fs::write(&stamp, &recipe).with_context(|| format!("write {}", stamp.display()))?;
    step.done(&debian.version);
    Ok(debian)
}

/// All that decides what is made, but what Debian has.
fn recipe() -> String {
    let scripts = [serve_script("BIN"), compile_script()].concat();
    format!(
        "{PACKAGES:?}\n{USER} {DISK}\n{}\n{}\n{scripts}",
        schema(),
        settings()
    )
}

fn fetch(dir: &Path, log: &Path) -> Result<()> {
    let step = ui::step("fetching a Debian system with PostgreSQL (about 140 MB, not installed)");
    let (status, cache) = (dir.join("status"), dir.join("cache"));
    fs::write(&status, "")?;
    fs::create_dir_all(cache.join("archives/partial"))?;
    let fetch = || {
        let mut apt = tool("apt-get");
        for (name, value) in [
            ("Dir::State::status", status.as_path()),
            ("Dir::Cache", cache.as_path()),
        ] {
            apt.arg("-o").arg(format!("{name}={}", value.display()));
        }
        // Nothing of the system's is touched, so nothing of it is locked.
        for word in [
            "Debug::NoLocking=1",
            "Acquire::Retries=2",
            "APT::Sandbox::User=root",
        ] {
            apt.args(["-o", word]);
        }
        apt.args([
            "install",
            "--yes",
            "--download-only",
            "--no-install-recommends",
        ]);
        apt.args(PACKAGES).env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut apt, log, minutes(15))?.success("apt-get install --download-only")
    };
    if fetch().is_err() {
        // Package lists age: the usual failure is a file that the mirror has replaced.
        packages::update(log)?;
        fetch()?;
    }
    step.done("");
    Ok(())
}

fn unpack(dir: &Path, log: &Path) -> Result<()> {
    let archives = dir.join("cache/archives");
    let list = fs::read_dir(&archives).with_context(|| format!("read {}", archives.display()))?;
    let mut debs: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    debs.retain(|path| path.extension().is_some_and(|kind| kind == "deb"));
    debs.sort();
    let step = ui::step(format!("unpacking {}", ui::count(debs.len(), "package")));
    let tree = dir.join("tree");
    for deb in &debs {
        let mut extract = tool("dpkg-deb");
        extract.arg("-x").arg(deb).arg(&tree);
        process::run(&mut extract, log, minutes(2))?.success("dpkg-deb -x")?;
    }
    // As many bytes again, which nobody needs any more.
    fs::remove_dir_all(&archives)?;
    step.done("");
    Ok(())
}

/// What packages' scripts would have done, as far as it is needed here.
fn complete(tree: &Path, programs: &str) -> Result<()> {
    for (file, line) in [
        (
            "passwd",
            format!("postgres:x:{USER}:{USER}::/var/lib/postgresql:/bin/sh\n"),
        ),
        ("group", format!("postgres:x:{USER}:\n")),
    ] {
        let master = tree.join(format!("usr/share/base-passwd/{file}.master"));
        let text = fs::read_to_string(&master);
        let text = text.with_context(|| format!("read {}", master.display()))?;
        fs::write(tree.join("etc").join(file), text + &line)?;
    }
    for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
        device(&tree.join("dev").join(name), minor)?;
    }
    directory(&tree.join("dev/shm"), 0o1777, 0)?;
    directory(&tree.join("var/run/postgresql"), 0o755, USER)?;
    directory(&tree.join("var/lib/postgresql"), 0o755, USER)?;
    directory(&tree.join("srv/work"), 0o755, USER)?;
    for (name, text) in [(SERVE, serve_script(programs)), (COMPILE, compile_script())] {
        let path = tree.join(name.trim_start_matches('/'));
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn directory(path: &Path, mode: u32, owner: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    chown(path, Some(owner), Some(owner)).with_context(|| format!("own {}", path.display()))
}

/// One of the kernel's memory devices, major number 1.
fn device(path: &Path, minor: u32) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a NUL-terminated string that outlives the call.
    let made = unsafe {
        libc::mknod(
            name.as_ptr(),
            libc::S_IFCHR | 0o666,
            libc::makedev(1, minor),
        )
    };
    if made != 0 {
        let error = std::io::Error::last_os_error();
        bail!("make the device {}: {error}", path.display());
    }
    // Whatever the mask of this process took away.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(())
}

fn make_database(debian: &Debian, log: &Path) -> Result<()> {
    let mut initdb = debian.owners_program("initdb");
    // The image is a file: what of it is on this machine's disk does not matter.
    initdb.args([
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    ]);
    initdb.args(["--data-checksums", "-D", DATA]);
    process::run(&mut initdb, log, minutes(5))?.success("initdb")?;
    let data = debian.tree.join(DATA.trim_start_matches('/'));
    append(&data.join("postgresql.conf"), &settings())?;
    append(
        &data.join("pg_hba.conf"),
        "host all all 10.78.0.0/24 trust\n",
    )?;
    for (database, text) in [
        ("template1", "CREATE EXTENSION amcheck;\n".to_owned()),
        ("postgres", schema()),
    ] {
        let script = data.with_file_name("script.sql");
        fs::write(&script, text)?;
        // Without a network or a second process, a line at a time, and it ends in order.
        let mut single = Command::new("sh");
        let inner = debian.owners_program("postgres");
        let words = inner
            .get_args()
            .map(|word| word.to_string_lossy().into_owned());
        let words: Vec<String> = words.collect();
        single
            .arg("-c")
            .arg("exec \"$0\" \"$@\" < \"$SCRIPT\"")
            .arg(inner.get_program());
        single.args(words).args(["--single", "-D", DATA, database]);
        single.env("SCRIPT", &script).env("LC_ALL", "C");
        let said = process::run(&mut single, log, minutes(5))?.success("postgres --single")?;
        if let Some(line) = said.lines().find(|line| line.contains("ERROR:")) {
            bail!("making the database {database}: {line}");
        }
        fs::remove_file(&script)?;
    }
    Ok(())
}

fn append(path: &Path, text: &str) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    fs::write(path, old + text).with_context(|| format!("write {}", path.display()))
}

fn make_image(debian: &Debian, log: &Path) -> Result<()> {
    let mut mke2fs = tool("mke2fs");
    // Nothing left for the guest to do later.
    mke2fs.args(["-q", "-t", "ext4", "-m", "0"]);
    mke2fs.args(["-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]);
    mke2fs.arg(&debian.tree).arg(&debian.image).arg(DISK);
    process::run(&mut mke2fs, log, minutes(5))?.success("mke2fs")?;
    Ok(())
}
