//! Packages unpacked under `.work/packages` instead of installed.
//!
//! For systems where apt could install only by removing something the user has: nothing of theirs is
//! touched, the programs run from where they were unpacked. apt still checks every download.
//!
//! A tree beside the root has two things wrong with it: its absolute links lead into the system, and its
//! libraries are not where the loader looks. So links are made relative, and every program gets a starter in
//! [`starters`], which stands at the end of the PATH of whatever this program starts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checkout::{Checkout, tool};
use crate::stop::minutes;
use crate::{packages, process, ui};

/// What apt would do to install some packages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Packages that are not there yet: the wanted ones and what they need.
    pub(crate) install: Vec<String>,
    /// Packages that would have to go.
    pub(crate) remove: Vec<String>,
}

impl Plan {
    /// Asks apt; changes nothing and needs no privileges.
    pub(crate) fn make(names: &[&str]) -> Result<Self> {
        let mut command = tool("apt-get");
        command
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(names);
        let output = process::ask(command.env("LC_ALL", "C"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "apt-get install --simulate {}: {}",
                names.join(" "),
                said.trim()
            );
        }
        Ok(Self::read(&String::from_utf8_lossy(&output.stdout)))
    }

    fn read(text: &str) -> Self {
        let mut plan = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Inst"), Some(name)) => plan.install.push(name.to_owned()),
                (Some("Remv"), Some(name)) => plan.remove.push(name.to_owned()),
                _ => {}
            }
        }
        plan
    }
}

/// Where unpacked packages are.
pub(crate) fn tree() -> PathBuf {
    Checkout::root().join(".work/packages")
}

/// One starter for each unpacked program.
pub(crate) fn starters() -> PathBuf {
    tree().join(STARTERS)
}

/// Where the loader finds the libraries of unpacked programs.
pub(crate) fn library_path() -> OsString {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let dirs = ["usr/lib", "lib"].map(|lib| tree().join(lib).join(&machine));
    // Only a colon in the checkout's path can fail this, and then no program runs from there.
    std::env::join_paths(dirs).unwrap_or_default()
}

const STARTERS: &str = "starters";
/// Where packages have programs.
const PROGRAM_DIRS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// PATH with the unpacked programs last, so that those of the system go before.
pub(crate) fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).filter(|dir| *dir != starters());
    // Only a colon in the checkout's path can fail this; then there are no unpacked programs on PATH.
    std::env::join_paths(dirs.chain([starters()])).unwrap_or(path)
}

/// Downloads and unpacks `packages`.
pub(crate) fn unpack(packages: &[String], log: &Path) -> Result<()> {
    let tree = tree();
    let step = ui::step(format!(
        "unpacking {} under .work/packages",
        ui::count(packages.len(), "package")
    ));
    let partial = tree.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let fetch = || {
        let mut download = tool("apt-get");
        download
            .args(["-o", "Acquire::Retries=2", "download"])
            .args(packages)
            .current_dir(&partial);
        process::run(&mut download, log, minutes(15))?.success("apt-get download")
    };
    if fetch().is_err() {
        // Package lists age: the usual failure is a file that the mirror has replaced.
        packages::update(log)?;
        fetch()?;
    }
    for deb in entries(&partial)? {
        let mut extract = tool("dpkg-deb");
        extract.arg("-x").arg(&deb).arg(&tree);
        process::run(&mut extract, log, minutes(2))?.success("dpkg-deb -x")?;
    }
    mend_links(&tree)?;
    // They come last: a program that has a starter is whole.
    write_starters(&tree)?;
    fs::remove_dir_all(&partial)?;
    step.done("");
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let paths = list.map(|entry| Ok(entry?.path()));
    paths.collect()
}

/// Makes every absolute link relative whose target was unpacked, too: `/sbin/depmod -> /bin/kmod`. The others
/// mean something that the system has.
fn mend_links(tree: &Path) -> Result<()> {
    let mut links = Vec::new();
    absolute_links(tree, &mut links)?;
    // A target may be reached only through another link that has to be mended first.
    loop {
        let before = links.len();
        let mut left = Vec::new();
        for link in links {
            match mended(tree, &link)? {
                Some(target) => {
                    fs::remove_file(&link)
                        .and_then(|()| symlink(&target, &link))
                        .with_context(|| format!("make {} relative", link.display()))?;
                }
                None => left.push(link),
            }
        }
        if left.len() == before {
            return Ok(());
        }
        links = left;
    }
}

fn absolute_links(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(dir)? {
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            absolute_links(&path, found)?;
        } else if kind.is_symlink() && fs::read_link(&path)?.is_absolute() {
            found.push(path);
        }
    }
    Ok(())
}

/// What `link` has to say to mean the same file in `tree`, if that is there.
fn mended(tree: &Path, link: &Path) -> Result<Option<PathBuf>> {
    let target = fs::read_link(link)?;
    let parts: Vec<Component<'_>> = target.components().skip(1).collect();
    let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
    if !parts.iter().all(plain) {
        return Ok(None);
    }
    let inside: PathBuf = parts.iter().collect();
    // On the system /bin is a link to /usr/bin; a package may have its file under either name.
    let twin = match inside.strip_prefix("usr") {
        Ok(rest) => rest.to_owned(),
        Err(_) => Path::new("usr").join(&inside),
    };
    let place = link.strip_prefix(tree).context("a link in the tree")?;
    let there = |inside: &PathBuf| inside != place && tree.join(inside).symlink_metadata().is_ok();
    let Some(found) = [inside, twin].into_iter().find(there) else {
        return Ok(None);
    };
    let up: PathBuf = place.components().skip(1).map(|_| "..").collect();
    Ok(Some(up.join(found)))
}

/// One script for each program; it finds the tree by its own place, so the checkout may be moved.
fn write_starters(tree: &Path) -> Result<()> {
    let starters = tree.join(STARTERS);
    fs::create_dir_all(&starters).with_context(|| format!("create {}", starters.display()))?;
    for dir in PROGRAM_DIRS {
        if !tree.join(dir).exists() {
            continue;
        }
        for program in entries(&tree.join(dir))? {
            let runs = |meta: fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 > 0;
            let name = program.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|_| fs::metadata(&program).is_ok_and(runs)) else {
                continue;
            };
            let starter = starters.join(name);
            fs::write(&starter, starter_text(dir, name))
                .and_then(|()| fs::set_permissions(&starter, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("write {}", starter.display()))?;
        }
    }
    Ok(())
}

/// The program keeps its name: some, like depmod, are one file that looks at what it was called.
fn starter_text(dir: &str, name: &str) -> String {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    format!(
        "#!/bin/sh\n\
         tree=\"${{0%/*}}/..\"\n\
         LD_LIBRARY_PATH=\"$tree/usr/lib/{machine}:$tree/lib/{machine}\" exec \"$tree/{dir}/{name}\" \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // A removal that is overlooked takes a program away from the user of the machine.
    #[test]
    fn removals_are_seen() {
        let text = "Reading package lists...\n\
            Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]\n\
            Inst libfdt1 (1.6.1-4+b1 Debian:12.11/oldstable [amd64])\n\
            Inst qemu-system-x86 (1:7.2 Debian:12.11/oldstable [amd64]) []\n\
            Conf libfdt1 (1.6.1-4+b1 Debian:12.11/oldstable [amd64])\n";
        let plan = Plan::read(text);
        assert_eq!(plan.install, ["libfdt1", "qemu-system-x86"]);
        assert_eq!(plan.remove, ["qemu-utils"]);
    }

    /// An unpacked tree, removed at the end of a test.
    struct Tree(PathBuf);

    impl Tree {
        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tree_with(name: &str, files: &[&str], links: &[(&str, &str)]) -> Tree {
        let unique = format!("xtask-{name}-{}", std::process::id());
        let dir = Tree(std::env::temp_dir().join(unique));
        for place in files.iter().chain(links.iter().map(|(link, _)| link)) {
            let above = dir.path().join(place).parent().map(Path::to_path_buf);
            fs::create_dir_all(above.expect("below the tree")).expect("create it");
        }
        for file in files {
            let path = dir.path().join(file);
            fs::write(&path, "#!/bin/sh\necho \"${0##*/}\" \"$@\"\n").expect("write it");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("may run");
        }
        for (link, target) in links {
            symlink(target, dir.path().join(link)).expect("link it");
        }
        dir
    }

    // kmod's depmod is an absolute link: in a tree beside the root it led to a program that the system had not.
    #[test]
    fn links_lead_to_what_was_unpacked() {
        let dir = tree_with(
            "links",
            &["opt/absent/tool", "opt/absent/usr/lib/real/lib.so"],
            &[
                ("sbin/depmod", "/opt/absent/tool"),
                ("usr/sbin/merged", "/usr/opt/absent/tool"),
                ("opt/absent/twice", "/sbin/depmod"),
                ("usr/lib/by-dir", "/opt/absent/link-dir/real/lib.so"),
                ("opt/absent/link-dir", "/opt/absent/usr/lib"),
                ("usr/bin/of-the-system", "/bin/sh"),
                ("usr/bin/nowhere", "/opt/absent/../nothing"),
            ],
        );
        mend_links(dir.path()).expect("mended");
        let link = |place: &str| fs::read_link(dir.path().join(place)).expect("a link");
        assert_eq!(link("sbin/depmod"), Path::new("../opt/absent/tool"));
        for place in [
            "sbin/depmod",
            "usr/sbin/merged",
            "opt/absent/twice",
            "usr/lib/by-dir",
        ] {
            assert!(dir.path().join(place).is_file(), "{place} leads to a file");
            assert!(link(place).is_relative(), "{place}");
        }
        assert_eq!(link("usr/bin/of-the-system"), Path::new("/bin/sh"));
        assert_eq!(link("usr/bin/nowhere"), Path::new("/opt/absent/../nothing"));
    }

    // A starter for something that cannot run would count as the program.
    #[test]
    fn programs_get_starters_that_keep_name_and_arguments() {
        let dir = tree_with(
            "starters",
            &["bin/kmod"],
            &[("sbin/depmod", "/bin/kmod"), ("usr/bin/gone", "/nowhere")],
        );
        mend_links(dir.path()).expect("mended");
        write_starters(dir.path()).expect("written");
        let starters = dir.path().join(STARTERS);
        let mut command = std::process::Command::new(starters.join("depmod"));
        let said = command.args(["-b", "a b"]).output().expect("it starts");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "depmod -b a b\n");
        assert!(!starters.join("gone").exists());
    }
}
