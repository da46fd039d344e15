//! One TCP stream between the kernels of guest and witness.

use super::Figures;
use super::site::{Outcome, Site, ip};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PORT: u16 = 5001;
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// No read or write waits longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn bounded(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What the witness reads in `run`, the output being open. Without `offload` the guest's kernel cuts its
/// segments itself, so that every frame is one of 1500 bytes.
pub(crate) fn stream(site: &mut Site, offload: bool, run: Duration) -> Outcome<Figures> {
    let one = if offload { "" } else { " gso_max_segs 1" };
    let guest = format!("link set g0{one} up\naddr add {GUEST}/24 dev g0\n");
    let witness = format!("addr add {WITNESS}/24 dev w1\n");
    site.guest
        .run(|| ip(&guest).map_err(|error| error.to_string()))?;
    let listener = site.witness.run(|| -> Result<TcpListener, String> {
        ip(&witness).map_err(|error| error.to_string())?;
        TcpListener::bind((WITNESS, PORT)).map_err(|error| error.to_string())
    })?;
    let there = site
        .guest
        .run(|| TcpStream::connect_timeout(&(WITNESS, PORT).into(), PATIENCE))?;
    let mut there = bounded(there)?;
    let mut here = bounded(listener.accept()?.0)?;
    std::thread::scope(|scope| -> Outcome<Figures> {
        let sender = scope.spawn(move || {
            let bytes = vec![0x5a; 256 << 10];
            // It ends when the witness has closed its end.
            while there.write_all(&bytes).is_ok() {}
        });
        let mut bytes = vec![0; 256 << 10];
        let (begun, mut total) = (Instant::now(), 0);
        while begun.elapsed() < run {
            match here.read(&mut bytes)? {
                0 => return Err("the stream ended".into()),
                got => total += got,
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        drop(here);
        sender.join().map_err(|_| "the load panicked")?;
        Ok(vec![("gbit_per_s", total as f64 * 8.0 / seconds / 1e9)])
    })
}
