//! A Debian kernel for the guests, without installing it: downloaded, unpacked and cached under
//! `.work/guest`, packed with the guest's program and whatever else it needs into an initramfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checkout::{Checkout, tool};
use crate::initramfs::Archive;
use crate::stop::minutes;
use crate::{packages, process, ui};

/// Modules every guest needs, in any order; a kernel may have some of them built in.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Found by ext4 through the crypto API, so no dependency names it; newer kernels have it built in.
const MODULES_IF_THERE: [&str; 2] = ["crc32c_generic", "crc32c"];

/// What QEMU boots.
#[derive(Debug, Clone)]
pub(crate) struct GuestKernel {
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// What an initramfs holds besides the modules every guest needs.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// The guest's `/init`: a source in tests/guest, without its ".rs".
    pub(crate) program: &'a str,
    /// Modules besides [`MODULES`].
    pub(crate) modules: &'a [&'a str],
    /// Programs and libraries: path in the guest, file here.
    pub(crate) files: &'a [(PathBuf, PathBuf)],
}

/// Provides kernel and initramfs of the demo's guest; downloads only what the cache has not.
pub(crate) fn provide(checkout: &Checkout) -> Result<GuestKernel> {
    let contents = Contents {
        program: "ledger",
        modules: &[],
        files: &[],
    };
    provide_with(checkout, &contents)
}

/// As [`provide`], for a guest with `contents`.
pub(crate) fn provide_with(checkout: &Checkout, contents: &Contents<'_>) -> Result<GuestKernel> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the guest is x86-64 only; run `cargo xtask demo-disk --no-guest` on this machine");
    }
    let cache = checkout.work().join("guest");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let log = cache.join("prepare.log");
    let package = newest_package(&cache, &log)?;
    let tree = cache.join(&package);
    if !tree.exists() {
        download(&cache, &package, &log)?;
    }
    let version = package.trim_start_matches("linux-image-").to_owned();
    let image = tree.join("boot").join(format!("vmlinuz-{version}"));
    if !image.exists() {
        bail!(
            "{} holds no kernel; remove {} and try again",
            package,
            tree.display()
        );
    }
    let step = ui::step("packing the guest's initramfs");
    let program = build_program(checkout, contents.program, &cache, &log)?;
    let initramfs = cache.join(format!("initramfs-{}", contents.program));
    let modules = Modules::find(&tree, &version, &log)?;
    let loaded = modules.pack(contents, &program, &initramfs, &log)?;
    step.done(format!("{loaded} modules of {version}"));
    Ok(GuestKernel {
        version,
        image,
        initramfs,
    })
}

/// The package `linux-image-amd64` stands for; if apt cannot say, the one in the cache.
fn newest_package(cache: &Path, log: &Path) -> Result<String> {
    if let Some(name) = ask_apt()? {
        return Ok(name);
    }
    let cached = fs::read_dir(cache)?
        .flatten()
        .filter(|entry| entry.path().is_dir());
    let names = cached.filter_map(|entry| entry.file_name().into_string().ok());
    if let Some(name) = names.filter(|name| is_kernel_package(name)).max() {
        return Ok(name);
    }
    // A fresh machine has no package lists yet.
    let step = ui::step("fetching Debian's package lists");
    packages::update(log)?;
    step.done("");
    ask_apt()?.context("apt knows no linux-image-amd64; is this a Debian system?")
}

fn ask_apt() -> Result<Option<String>> {
    let mut command = tool("apt-cache");
    command
        .args(["depends", "linux-image-amd64"])
        .env("LC_ALL", "C");
    let output = process::ask(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let depends = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends
        .map(str::trim)
        .find(|name| is_kernel_package(name))
        .map(str::to_owned))
}

/// "linux-image-6.1.0-48-amd64", not the metapackage; nothing that could lead out of the cache.
fn is_kernel_package(name: &str) -> bool {
    let version = name
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.strip_suffix("-amd64"));
    version.is_some_and(|version| {
        version.starts_with(|first: char| first.is_ascii_digit())
            && version
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-+~".contains(&byte))
    })
}

fn download(cache: &Path, package: &str, log: &Path) -> Result<()> {
    let step = ui::step(format!(
        "downloading {package} (about 70 MB, not installed)"
    ));
    let partial = cache.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir(&partial)?;
    let fetch = || {
        let mut command = tool("apt-get");
        command
            .args(["-o", "Acquire::Retries=2", "download", package])
            .current_dir(&partial);
        process::run(&mut command, log, minutes(10))?
            .success(&format!("apt-get download {package}"))
    };
    if fetch().is_err() {
        packages::update(log)?;
        fetch()?;
    }
    let deb = fs::read_dir(&partial)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    step.now("unpacking");
    let tree = partial.join("tree");
    let mut unpack = tool("dpkg-deb");
    unpack.arg("-x").arg(&deb).arg(&tree);
    process::run(&mut unpack, log, minutes(2))?.success("dpkg-deb -x")?;
    // The rename comes last: a tree under its final name is a whole one.
    fs::rename(&tree, cache.join(package))?;
    fs::remove_dir_all(&partial)?;
    step.done("");
    Ok(())
}

/// Builds a source of tests/guest as one static program.
fn build_program(checkout: &Checkout, name: &str, cache: &Path, log: &Path) -> Result<PathBuf> {
    let source = checkout.root.join(format!("tests/guest/{name}.rs"));
    let program = cache.join(name);
    let mut rustc = std::process::Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
        ])
        .args(["-C", "strip=symbols", "-o"])
        .arg(&program)
        .arg(&source)
        .current_dir(&checkout.root);
    let said = process::run(&mut rustc, log, minutes(2))?;
    said.success(&format!("rustc {}", source.display()))?;
    Ok(program)
}

/// The modules of an unpacked kernel.
#[derive(Debug)]
struct Modules {
    dir: PathBuf,
    dep: String,
    builtin: String,
}

impl Modules {
    fn find(tree: &Path, version: &str, log: &Path) -> Result<Self> {
        // Debian moved /lib into /usr between releases.
        let base = ["", "usr"]
            .map(|prefix| tree.join(prefix))
            .into_iter()
            .find(|base| base.join("lib/modules").join(version).exists())
            .with_context(|| format!("no modules of {version} in {}", tree.display()))?;
        let dir = base.join("lib/modules").join(version);
        if !dir.join("modules.dep").exists() {
            let mut depmod = tool("depmod");
            depmod.arg("-b").arg(&base).arg(version);
            process::run(&mut depmod, log, minutes(2))?.success("depmod")?;
        }
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let (dep, builtin) = (read("modules.dep")?, read("modules.builtin")?);
        Ok(Self { dir, dep, builtin })
    }

    /// Writes the initramfs; returns how many modules it loads.
    fn pack(
        &self,
        contents: &Contents<'_>,
        program: &Path,
        out: &Path,
        log: &Path,
    ) -> Result<usize> {
        let wanted = [&MODULES, contents.modules].concat();
        let order = load_order(&wanted, &self.dep, &self.builtin)?;
        let mut archive = Archive::new();
        let mut directories: BTreeSet<PathBuf> = ["dev", "proc", "sys", "mnt", "run", "modules"]
            .map(PathBuf::from)
            .into();
        for (place, _) in contents.files {
            let above = place
                .ancestors()
                .skip(1)
                .filter(|dir| dir.file_name().is_some());
            directories.extend(above.map(Path::to_path_buf));
        }
        // In order, a directory comes before what is in it.
        for directory in directories {
            archive.directory(name_in_archive(&directory)?);
        }
        // Without it PID 1 starts with no stdout.
        archive.character_device("dev/console", 5, 1);
        archive.program("init", &fs::read(program)?);
        for (place, file) in contents.files {
            let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
            archive.program(name_in_archive(place)?, &bytes);
        }
        let mut list = String::new();
        for path in &order {
            let file = Path::new(path).file_name().and_then(|name| name.to_str());
            let name = file.with_context(|| format!("module {path} has no name"))?;
            let plain = format!("modules/{}", name.trim_end_matches(".xz"));
            archive.file(&plain, &module_bytes(&self.dir.join(path), log)?);
            list.push_str(&format!("/{plain}\n"));
        }
        archive.file("modules.list", list.as_bytes());
        fs::write(out, archive.finish()).with_context(|| format!("write {}", out.display()))?;
        Ok(order.len())
    }
}

/// Archives name files from the root, without a slash in front.
fn name_in_archive(place: &Path) -> Result<&str> {
    let name = place.to_str().map(|name| name.trim_start_matches('/'));
    name.with_context(|| format!("{} is not UTF-8", place.display()))
}

/// The module as the kernel takes it.
fn module_bytes(path: &Path, log: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|kind| kind == "xz") {
        let mut xz = tool("xz");
        xz.args(["--decompress", "--keep", "--force"]).arg(path);
        process::run(&mut xz, log, minutes(1))?.success("xz")?;
        let plain = path.with_extension("");
        return fs::read(&plain).with_context(|| format!("read {}", plain.display()));
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The files to load, dependencies first, each once.
fn load_order(wanted: &[&str], modules_dep: &str, modules_builtin: &str) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for (name, needed) in MODULES_IF_THERE
        .map(|name| (name, false))
        .into_iter()
        .chain(wanted.iter().map(|name| (*name, true)))
    {
        let line = modules_dep.lines().find_map(|line| {
            let (file, needs) = line.split_once(':')?;
            (module_name(file) == name).then_some((file, needs))
        });
        let Some((file, needs)) = line else {
            if needed
                && !modules_builtin
                    .lines()
                    .any(|file| module_name(file) == name)
            {
                bail!("the guest kernel has no module {name}");
            }
            continue;
        };
        // depmod lists what must be loaded first last.
        for path in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// "kernel/fs/ext4/ext4.ko.xz" is the module "ext4"; '-' and '_' are the same in module names.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
        kernel/drivers/virtio/virtio-pci.ko.xz: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko\n\
        kernel/crypto/crc32c_generic.ko:\n";

    // A module loaded before what it needs is refused by the kernel: the guest finds no disk.
    #[test]
    fn dependencies_come_first_and_once() {
        let order = load_order(&MODULES, DEP, "kernel/drivers/block/virtio_blk.ko\n")
            .expect("all are there");
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(
            names,
            [
                "crc32c_generic",
                "virtio",
                "virtio_ring",
                "virtio_pci",
                "crc16",
                "jbd2",
                "ext4"
            ]
        );
    }

    // A kernel without a disk driver must be named here, not by a guest that hangs.
    #[test]
    fn a_missing_module_is_named() {
        let error = load_order(&MODULES, DEP, "").expect_err("virtio_blk is nowhere");
        assert!(error.to_string().contains("virtio_blk"), "{error}");
    }

    // The name becomes a directory and an argument of apt-get.
    #[test]
    fn only_real_kernel_packages_are_taken() {
        assert!(is_kernel_package("linux-image-6.1.0-48-amd64"));
        assert!(is_kernel_package("linux-image-6.12.63+deb13-amd64"));
        for wrong in [
            "linux-image-amd64",
            "linux-image-../x-amd64",
            "linux-image-6.1/../-amd64",
        ] {
            assert!(!is_kernel_package(wrong), "{wrong}");
        }
    }
}
