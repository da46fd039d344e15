//! Programs of this machine for the guest: without debug symbols, with the libraries they need.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::checkout::{find_program, tool};
use crate::lab::Programs;
use crate::stop::minutes;
use crate::{aside, process};

/// Path in the guest → file here, for `names` and every library they load. What is made on the way is
/// in `dir`.
pub(crate) fn collect(
    programs: &Programs,
    names: &[&str],
    dir: &Path,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = BTreeMap::new();
    for name in names {
        let program = programs.dir.join(name);
        for library in libraries(&program, &OsString::new())? {
            files.insert(library.clone(), library);
        }
        files.insert(
            Path::new("/bin").join(name),
            without_symbols(&program, name, dir)?,
        );
    }
    Ok(files.into_iter().collect())
}

/// Path in the guest → file here, for one program and its libraries, each where it is here.
pub(crate) fn at_its_place(program: &Path, dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let name = program.file_name().and_then(OsStr::to_str);
    let name = name.with_context(|| format!("{} has no name", program.display()))?;
    let mut files: Vec<_> = libraries(program, OsStr::new(""))?
        .into_iter()
        .map(|library| (library.clone(), library))
        .collect();
    files.push((program.to_owned(), without_symbols(program, name, dir)?));
    Ok(files)
}

/// Path in the guest → file here, for a program of this system and every library it loads.
pub(crate) fn of_the_system(name: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let found = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let tree = aside::tree();
    // What was unpacked beside the system has its libraries in its own tree.
    let (program, search) = match found.starts_with(aside::starters()) {
        true => (tree.join("usr/bin").join(name), aside::library_path()),
        false => (found, OsString::new()),
    };
    let place = |library: PathBuf| match library.strip_prefix(&tree) {
        Ok(inside) => (Path::new("/").join(inside), library),
        Err(_) => (library.clone(), library),
    };
    let mut files: BTreeMap<_, _> = libraries(&program, &search)?
        .into_iter()
        .map(place)
        .collect();
    files.insert(Path::new("/bin").join(name), program);
    Ok(files.into_iter().collect())
}

/// The program without what only a debugger reads, if there is a tool to remove it.
fn without_symbols(program: &Path, name: &str, dir: &Path) -> Result<PathBuf> {
    if find_program("strip").is_none() {
        return Ok(program.to_owned());
    }
    let stripped = dir.join(name);
    let mut strip = tool("strip");
    strip.arg("-o").arg(&stripped).arg(program);
    process::run(&mut strip, &dir.join("strip.log"), minutes(1))?.success("strip")?;
    Ok(stripped)
}

/// Asks the loader, which looks along `search` first; the loader itself is among them.
fn libraries(program: &Path, search: &OsStr) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env("LC_ALL", "C");
    if !search.is_empty() {
        ldd.env("LD_LIBRARY_PATH", search);
    }
    let output = process::ask(&mut ldd)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ldd {}: {}", program.display(), said.trim());
    }
    read_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("libraries of {}", program.display()))
}

/// Lines are "name => /path (address)", "/path (address)" or a name without a file, the vdso.
fn read_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        if line.contains("=> not found") {
            bail!("{}", line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        paths.extend(path.map(PathBuf::from));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    // A library that is left behind shows only in a guest, as a daemon that does not start.
    #[test]
    fn every_library_with_a_file_is_found() {
        let text = "\tlinux-vdso.so.1 (0x00007f0929da6000)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f092961e000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f0929da8000)\n";
        let found = read_ldd(text).unwrap();
        let wanted = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, wanted.map(PathBuf::from));
        assert!(read_ldd("\tlibx.so => not found\n").is_err());
    }
}
