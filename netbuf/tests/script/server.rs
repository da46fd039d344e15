//! A store behind a socket: xenstored's protocol as far as the program speaks it, and wrong on demand.
//!
//! Debian's xenstored does not serve without a hypervisor.

#![allow(
    clippy::host_endian_bytes,
    reason = "the protocol is in the order of the host that both ends are on"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 11;
const RM: u32 = 13;
const ERROR: u32 = 16;
const PAYLOAD_BYTES_MAX: usize = 4096;

/// What is answered in the place of the right answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// An error the protocol knows.
    Refuses(&'static str),
    /// Nothing at all.
    Silent,
    /// The connection ends.
    Closes,
    /// The connection ends within a header.
    HalfAHeader,
    /// The connection ends within the payload.
    HalfAPayload,
    /// An answer to something else.
    OtherType,
    /// A type that the protocol does not have.
    UnknownType,
    /// More than the protocol allows, and nothing behind it.
    Endless,
    /// Text that is none.
    NotText,
    /// An error that is none.
    EmptyError,
}

/// `(type, path)` of requests, in their order.
pub(crate) type Asked = Vec<(u32, String)>;

#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<String, String>,
    asked: Asked,
    /// From this request on (from 0), this is answered.
    wrong: Option<(usize, Wrong)>,
}

pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

impl Server {
    /// Its threads end with the test program.
    pub(crate) fn start(dir: &Path) -> Self {
        let socket = dir.join("xenstored");
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { state, socket }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From the `at`-th request that comes now, counted from 0, the answers are wrong.
    pub(crate) fn answers_wrong(&self, at: usize, wrong: Wrong) {
        let mut state = self.state();
        state.asked.clear();
        state.wrong = Some((at, wrong));
    }

    pub(crate) fn answers_right(&self) {
        let mut state = self.state();
        state.asked.clear();
        state.wrong = None;
    }

    pub(crate) fn asked(&self) -> Asked {
        self.state().asked.clone()
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        self.state().keys.get(path).cloned()
    }

    pub(crate) fn put(&self, path: &str, value: &str) {
        put(&mut self.state().keys, path, value);
    }

    /// Every key and directory.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.state().keys.keys().cloned().collect()
    }
}

fn put(keys: &mut BTreeMap<String, String>, path: &str, value: &str) {
    let above = path.match_indices('/').skip(1);
    for directory in above.map(|(at, _)| &path[..at]) {
        keys.entry(directory.to_owned()).or_default();
    }
    keys.insert(path.to_owned(), value.to_owned());
}

/// Type, request number, payload; `None` at the end of the connection.
fn request(stream: &mut UnixStream) -> Option<(u32, u32, Vec<u8>)> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).ok()?;
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let length = word(12) as usize;
    assert!(
        length <= PAYLOAD_BYTES_MAX,
        "a client says at most 4096 bytes"
    );
    assert_eq!(word(8), 0, "no transaction was begun");
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).ok()?;
    Some((word(0), word(4), payload))
}

fn message(kind: u32, number: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let words = [kind, number, 0, length];
    let mut message: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    message.extend_from_slice(payload);
    message
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) {
    while let Some((kind, number, payload)) = request(&mut stream) {
        let mut state = state.lock().unwrap();
        let (path, value) = split(kind, &payload);
        let place = state.asked.len();
        state.asked.push((kind, path.clone()));
        let wrong = state.wrong.filter(|(at, _)| place >= *at);
        let bytes = match wrong {
            Some((_, wrong)) => match wrongly(wrong, kind, number) {
                Some((bytes, true)) => bytes,
                Some((bytes, false)) => {
                    let _ = stream.write_all(&bytes);
                    return;
                }
                None => continue,
            },
            None => match rightly(&mut state.keys, kind, &path, &value) {
                Ok(payload) => message(kind, number, &payload),
                Err(error) => message(ERROR, number, format!("{error}\0").as_bytes()),
            },
        };
        drop(state);
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// A path ends with a zero byte; the value of a WRITE has none.
fn split(kind: u32, payload: &[u8]) -> (String, String) {
    let text = std::str::from_utf8(payload).unwrap();
    let (path, rest) = text.split_once('\0').expect("a path ends with a zero byte");
    assert!(path.starts_with('/'), "{path:?}");
    assert!(kind == WRITE || rest.is_empty(), "{rest:?}");
    (path.to_owned(), rest.to_owned())
}

fn rightly(
    keys: &mut BTreeMap<String, String>,
    kind: u32,
    path: &str,
    value: &str,
) -> Result<Vec<u8>, &'static str> {
    let below = format!("{path}/");
    match kind {
        READ => keys
            .get(path)
            .map(|value| value.clone().into_bytes())
            .ok_or("ENOENT"),
        DIRECTORY => {
            keys.get(path).ok_or("ENOENT")?;
            let names = keys.keys().filter_map(|key| key.strip_prefix(&below));
            let own = names.filter(|name| !name.contains('/'));
            Ok(own
                .flat_map(|name| [name.as_bytes(), b"\0"].concat())
                .collect())
        }
        WRITE => {
            put(keys, path, value);
            Ok(b"OK\0".to_vec())
        }
        RM => {
            let there = keys.contains_key(path);
            keys.retain(|key, _| key != path && !key.starts_with(&below));
            // A child that is not there is removed; one whose parent is not is not.
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            match there || keys.contains_key(parent) {
                true => Ok(b"OK\0".to_vec()),
                false => Err("ENOENT"),
            }
        }
        other => panic!("the program asks for {other}"),
    }
}

/// The bytes, and whether the connection stays; `None` for no answer.
fn wrongly(wrong: Wrong, kind: u32, number: u32) -> Option<(Vec<u8>, bool)> {
    let endless = || {
        let mut bytes = message(kind, number, b"a");
        bytes[12..16].copy_from_slice(&0x0100_0000_u32.to_ne_bytes());
        bytes
    };
    Some(match wrong {
        Wrong::Silent => return None,
        Wrong::Refuses(error) => (
            message(ERROR, number, format!("{error}\0").as_bytes()),
            true,
        ),
        Wrong::Closes => (Vec::new(), false),
        Wrong::HalfAHeader => (message(kind, number, b"x")[..9].to_vec(), false),
        Wrong::HalfAPayload => (message(kind, number, b"abcdef")[..18].to_vec(), false),
        Wrong::OtherType => (message(READ + DIRECTORY + 2, number, b"x"), true),
        Wrong::UnknownType => (message(99, number, b"x"), true),
        Wrong::Endless => (endless(), true),
        Wrong::NotText => (message(kind, number, b"\xff\xfe\x80"), true),
        Wrong::EmptyError => (message(ERROR, number, b""), true),
    })
}
