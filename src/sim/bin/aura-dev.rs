//! The development command: see `cargo dev --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    aura_whatsapp_operator::sim::dev::main()
}
