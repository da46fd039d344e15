//! Which daemon is meant.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockrep_host::ctl::{Client, aimed, runtime_dir, shell_word, somebody_listens};

use super::args::TargetArgs;
use super::failure::{Exit, Failure};

/// Connects to the daemon that is meant.
pub(super) fn connect(target: &TargetArgs, timeout: Duration) -> Result<Client, Failure> {
    let path = socket_path(target, &runtime_dir())?;
    let name = concat!("blockrepctl ", env!("CARGO_PKG_VERSION"));
    Client::connect(&path, name, timeout).map_err(|error| {
        let failure = Failure::from(error);
        match &target.control {
            Some(typed) if failure.exit == Exit::Unreachable => instead(&failure, typed),
            _ => failure,
        }
    })
}

/// Nobody answers at the socket that was typed: which ones there are.
fn instead(failure: &Failure, typed: &Path) -> Failure {
    let mut living = living_sockets(typed.parent().unwrap_or(Path::new("")));
    living.extend(living_sockets(&runtime_dir()));
    // The same directory may be named in two ways.
    let mut seen = HashSet::new();
    living.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    let words = living
        .iter()
        .map(|path| format!("--control {}", shell_word(&path.display().to_string())));
    let words: Vec<String> = words.collect();
    let running = if words.is_empty() {
        String::new()
    } else {
        format!("; running here: {}", words.join(", "))
    };
    Failure::new(failure.exit, format!("{failure}{running}"))
}

/// A text of the daemon, or about it, in which every hint is a command for that very daemon: what was
/// typed to reach it is in the hint, too.
pub(super) fn as_typed(text: &str, target: &TargetArgs) -> String {
    let typed = match (&target.control, &target.group) {
        (Some(path), _) => format!("--control {}", shell_word(&path.display().to_string())),
        (None, Some(group)) => format!("--group {}", shell_word(group)),
        (None, None) => return text.to_owned(),
    };
    aimed(text, &typed)
}

/// The socket named, or that of the group named, or the only one there is.
pub(super) fn socket_path(target: &TargetArgs, dir: &Path) -> Result<PathBuf, Failure> {
    if let Some(path) = &target.control {
        return Ok(path.clone());
    }
    let living = living_sockets(dir);
    if living.is_empty()
        && let Err(error) = fs::read_dir(dir)
    {
        return Err(unread(dir, &error));
    }
    let wanted = match &target.group {
        Some(group) => of_group(&living, group),
        None => living.clone(),
    };
    match (wanted.as_slice(), &target.group) {
        ([path], _) => Ok(path.clone()),
        ([], Some(group)) => Err(Failure::new(
            Exit::Unreachable,
            format!(
                "no daemon of group {group} runs here{}",
                others(&living, dir)
            ),
        )),
        ([], None) => Err(Failure::new(
            Exit::Unreachable,
            format!("no daemon runs here{}", others(&living, dir)),
        )),
        ([backup, primary], Some(group)) => Err(Failure::new(
            Exit::Usage,
            format!(
                "primary and backup of group {group} run here: type --control {} for the primary or \
                 --control {} for the backup",
                primary.display(),
                backup.display()
            ),
        )),
        (several, _) => Err(Failure::new(
            Exit::Usage,
            format!("{} daemons run here; {}", several.len(), choices(several)),
        )),
    }
}

/// The directory of the sockets does not let itself be looked into: who runs cannot be told.
fn unread(dir: &Path, error: &io::Error) -> Failure {
    let place = dir.display();
    let text = match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "not permitted to look into {place}: run as the user of the daemon or as root, or type \
             --control PATH"
        ),
        io::ErrorKind::NotADirectory => format!(
            "{place} is a file and no directory of control sockets: set BLOCKREP_RUNTIME_DIR as for the \
             daemon, or type --control PATH"
        ),
        io::ErrorKind::NotFound => {
            format!("no daemon runs here (there is no {place}); start one, or type --control PATH")
        }
        _ => format!("cannot look into {place}: {error}; type --control PATH"),
    };
    Failure::new(Exit::Unreachable, text)
}

/// Who runs instead of the one that was looked for.
fn others(living: &[PathBuf], dir: &Path) -> String {
    if living.is_empty() {
        let dir = dir.display();
        return format!(" (in {dir}); start one, or type --control PATH");
    }
    let mut names: Vec<&str> = living.iter().filter_map(|path| group_of(path)).collect();
    names.dedup();
    format!("; running here: {}; {}", names.join(", "), choices(living))
}

/// What to type instead: the group where that is clear, else the socket.
fn choices(sockets: &[PathBuf]) -> String {
    let words = sockets.iter().map(|path| match group_of(path) {
        Some(group) if of_group(sockets, group).len() == 1 => format!("--group {group}"),
        _ => format!("--control {}", path.display()),
    });
    format!("type {}", words.collect::<Vec<_>>().join(" or "))
}

/// The group whose daemon has a socket of this name.
fn group_of(socket: &Path) -> Option<&str> {
    let name = socket.file_name()?.to_str()?.strip_suffix(".sock")?;
    Some(name.strip_suffix(".backup").unwrap_or(name))
}

/// Whether a socket is that of a guest's checkpointer, by its name.
fn is_of_guest(socket: &Path) -> bool {
    let name = socket.file_name().and_then(|name| name.to_str());
    let endings = [".checkpointer.sock", ".standby.sock"];
    name.is_some_and(|name| endings.iter().any(|ending| name.ends_with(ending)))
}

/// The sockets of checkpointers behind which somebody listens, by name.
pub(super) fn living_guests(dir: &Path) -> Vec<PathBuf> {
    let mut sockets = all_living(dir);
    sockets.retain(|path| is_of_guest(path));
    sockets
}

/// The sockets of groups behind which somebody listens, by name.
fn living_sockets(dir: &Path) -> Vec<PathBuf> {
    let mut sockets = all_living(dir);
    // The one of netbuf answers for guests, not for a group.
    sockets.retain(|path| {
        !is_of_guest(path) && path.file_name().is_some_and(|name| name != "netbuf.sock")
    });
    sockets
}

/// Sockets behind which somebody listens, by name. A killed daemon leaves its file.
fn all_living(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut sockets: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .filter(|path| somebody_listens(path))
        .collect();
    sockets.sort();
    sockets
}

fn of_group(sockets: &[PathBuf], group: &str) -> Vec<PathBuf> {
    let names = [format!("{group}.sock"), format!("{group}.backup.sock")];
    let is_named = |path: &&PathBuf| {
        path.file_name()
            .is_some_and(|file| names.iter().any(|name| file == name.as_str()))
    };
    sockets.iter().filter(is_named).cloned().collect()
}

#[cfg(test)]
mod tests {
    use blkback_proto::ctl::Request;
    use blockrep_host::ctl::{
        EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig,
    };

    use super::*;

    struct Silent;

    impl Handler for Silent {
        fn handle(&mut self, _: Request, _: PeerCred, _: ReplyHandle) {}
    }

    fn serve(path: PathBuf) -> Server {
        let config = ServerConfig {
            path,
            daemon: "d".into(),
            limits: Limits::default(),
        };
        Server::start(config, EventLog::new().unwrap(), Silent).unwrap()
    }

    /// At 3 a.m. a hint is copied: without the socket it went to nobody, or to the wrong side.
    #[test]
    fn hints_repeat_what_was_typed() {
        let hint = |control: Option<&str>, group: Option<&str>| {
            let target = TargetArgs {
                control: control.map(PathBuf::from),
                group: group.map(str::to_owned),
                timeout: None,
            };
            as_typed(
                "or `blockrepctl promote`; blockrepctl journal dump",
                &target,
            )
        };
        let journal = "; blockrepctl journal dump";
        for (control, group, promote) in [
            (None, None, "or `blockrepctl promote`"),
            (
                Some("run/vm1.backup.sock"),
                None,
                "or `blockrepctl --control run/vm1.backup.sock promote`",
            ),
            (
                Some("my run/it's"),
                None,
                "or `blockrepctl --control 'my run/it'\\''s' promote`",
            ),
            (None, Some("vm1"), "or `blockrepctl --group vm1 promote`"),
        ] {
            assert_eq!(hint(control, group), format!("{promote}{journal}"));
        }
    }

    /// Who typed the socket of a daemon that is gone was told to type a socket.
    #[test]
    fn a_socket_where_nobody_answers_names_those_that_live() {
        let dir = tempfile::tempdir().unwrap();
        let target = TargetArgs {
            control: Some(dir.path().join("vm1.sock")),
            group: None,
            timeout: None,
        };
        let error = connect(&target, Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.exit, Exit::Unreachable);
        let text = error.to_string();
        assert!(
            text.contains("the --control that it was started with"),
            "{text}"
        );
        let _backup = serve(dir.path().join("vm1.backup.sock"));
        let text = connect(&target, Duration::from_secs(1))
            .unwrap_err()
            .to_string();
        let living = dir.path().join("vm1.backup.sock");
        let running = format!("; running here: --control {}", living.display());
        assert!(text.contains(&running), "{text}");
        // The image in the place of the socket: "still starting" had somebody wait for it.
        let image = TargetArgs {
            control: Some(dir.path().join("a.img")),
            ..TargetArgs::default()
        };
        fs::write(dir.path().join("a.img"), b"").unwrap();
        let text = connect(&image, Duration::from_secs(1))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("a.img: this is no socket; give the --control"),
            "{text}"
        );
    }

    /// "no daemon runs here" was said of a directory that nobody had looked into.
    #[test]
    fn a_directory_that_cannot_be_read_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run");
        fs::write(&file, b"").unwrap();
        let of = |path: &Path| {
            let error = socket_path(&TargetArgs::default(), path).unwrap_err();
            assert_eq!(error.exit, Exit::Unreachable);
            error.to_string()
        };
        assert!(of(&file).contains("run is a file and no directory"));
        assert!(of(&dir.path().join("none")).contains("there is no"));
        let denied = unread(&file, &io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(
            denied.starts_with("not permitted to look into "),
            "{denied}"
        );
        assert!(denied.contains("as root"), "{denied}");
    }

    /// A promote sent to the wrong daemon makes two primaries: what is not clear is not guessed.
    #[test]
    fn only_a_clear_target_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let find = |control: Option<&str>, group: Option<&str>| {
            let target = TargetArgs {
                control: control.map(PathBuf::from),
                group: group.map(str::to_owned),
                timeout: None,
            };
            socket_path(&target, dir.path())
        };
        let nobody = find(None, None).unwrap_err();
        assert_eq!(nobody.exit, Exit::Unreachable);
        assert!(nobody.to_string().contains("--control PATH"), "{nobody}");

        let first = serve(at("vm1.sock"));
        // Left by a daemon that was killed: bound, and nobody listens any more.
        drop(std::os::unix::net::UnixListener::bind(at("dead.sock")).unwrap());
        fs::write(at("vm1.sock.lock.sock"), b"").unwrap();
        assert_eq!(find(None, None).unwrap(), at("vm1.sock"));
        assert_eq!(find(Some("/else"), None).unwrap(), PathBuf::from("/else"));
        let wrong = find(None, Some("vm2")).unwrap_err();
        assert_eq!(wrong.exit, Exit::Unreachable);
        assert!(
            wrong
                .to_string()
                .ends_with("running here: vm1; type --group vm1"),
            "{wrong}"
        );

        // Those of a guest's memory answer no group's questions.
        let _guest = [
            serve(at("vm1.standby.sock")),
            serve(at("vm1.checkpointer.sock")),
        ];
        assert_eq!(find(None, None).unwrap(), at("vm1.sock"));
        assert_eq!(living_guests(dir.path()).len(), 2);
        let _second = serve(at("vm2.backup.sock"));
        assert_eq!(find(None, Some("vm2")).unwrap(), at("vm2.backup.sock"));
        assert_eq!(find(None, Some("vm1")).unwrap(), at("vm1.sock"));
        let unclear = find(None, None).unwrap_err();
        assert_eq!(unclear.exit, Exit::Usage);
        assert!(
            unclear
                .to_string()
                .ends_with("type --group vm1 or --group vm2"),
            "{unclear}"
        );
        drop(first);
        assert_eq!(find(None, None).unwrap(), at("vm2.backup.sock"));
        let _third = serve(at("vm2.sock"));
        let both = find(None, Some("vm2")).unwrap_err();
        assert_eq!(both.exit, Exit::Usage);
        // The name alone would not tell the two apart.
        let dir = dir.path().display();
        let text = format!(
            "--control {dir}/vm2.sock for the primary or --control {dir}/vm2.backup.sock for the backup"
        );
        assert!(both.to_string().ends_with(&text), "{both}");
    }
}
