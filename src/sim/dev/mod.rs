//! `cargo dev`: a whole installation on this machine, with a real control plane and simulated neighbours.
//!
//! `site` installs and runs the product as a cluster would, and is what the tests use too; `up` brings everything up
//! for a person, `smoke` drives it through a conversation, `send` plays a WhatsApp user.

pub mod bulk;
mod cli;
mod cluster;
pub mod objects;
pub mod site;
mod smoke;
mod up;
mod user;

pub use self::cli::main;

/// Prints a line for the person at the terminal. One who is gone (a closed pipe) is no reason to end in disorder.
fn say(line: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
