//! `remus-netbuf-setup`: what `xl remus -N` is given. See `remus-netbuf-setup --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    netbuf::script::main()
}
