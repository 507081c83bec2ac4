//! The reaper: the process that ends what a dead launcher has left. See [`super::guard`] for the launcher's
//! side.
//!
//! It is a hidden subcommand, reads lines from standard input and knows nothing else. It must not depend on
//! anything that the launcher could have broken: no runtime, no configuration, no log.

use std::{
    io::{self, BufRead, BufReader, Write},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpgid, kill_process_group};

/// How long a process may take to end after SIGTERM before it gets SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(10);
/// The only line of output: the launcher waits for it.
pub(super) const READY: &str = "ready";

/// What is known of a live process: enough to tell it from a later one with the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    zombie: bool,
    /// Compared, never computed with. Contains no space.
    pub start_time: String,
}

impl Identity {
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let pid = pid.as_raw_pid();
        if cfg!(target_os = "linux") {
            return Self::from_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
        }
        let ps = std::process::Command::new("ps")
            .args(["-o", "state=,lstart=", "-p", &pid.to_string()])
            .env("LC_ALL", "C")
            .output()
            .ok()?;
        Self::from_ps(&String::from_utf8_lossy(&ps.stdout))
    }

    /// `/proc/PID/stat`, proc_pid_stat(5): field 3 is the state and field 22 the start time in ticks since
    /// boot. Field 2 is the program's name in parentheses and may itself contain spaces and parentheses.
    fn from_stat(stat: &str) -> Option<Self> {
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.to_owned();
        Some(Self {
            zombie: matches!(state, "Z" | "X"),
            start_time,
        })
    }

    /// `ps -o state=,lstart=`, for systems without /proc: "S+   Sun Nov 22 14:40:00 2026".
    fn from_ps(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let zombie = words.next()?.starts_with('Z');
        let start_time = words.collect::<Vec<_>>().join("-");
        (!start_time.is_empty()).then_some(Self { zombie, start_time })
    }
}

/// What the reaper knows: the processes to end, oldest first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Watched(Vec<(Pid, String)>);

impl Watched {
    /// One line of the launcher: `watch PID START` or `forget PID`. Anything else is ignored: a line cut
    /// short by the launcher's death must not take the rest with it.
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // 1 is init, and 0 and below have a meaning of their own to kill(2).
        let pid = |word: &str| word.parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        match words.as_slice() {
            ["watch", id, start_time] => {
                if let Some(pid) = pid(id) {
                    self.0.push((pid, (*start_time).to_owned()));
                }
            }
            ["forget", id] => self.0.retain(|(known, _)| Some(*known) != pid(id)),
            _ => {}
        }
    }
}

/// The reaper: reads what to watch from standard input and ends it when the input ends.
#[must_use]
pub fn guard_main() -> ExitCode {
    // Holds no directory that someone may want to remove.
    let _ = std::env::set_current_dir("/");
    let mut stdout = io::stdout();
    if writeln!(stdout, "{READY}").and_then(|()| stdout.flush()).is_err() {
        return ExitCode::FAILURE;
    }
    let mut watched = Watched::default();
    let mut lines = BufReader::new(io::stdin());
    let mut line = String::new();
    // A read error is the end as well: better to stop the children of a living launcher than to leave them
    // behind.
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // Without its newline the last number may be cut short.
        if line.ends_with('\n') {
            watched.read(&line);
        }
        line.clear();
    }
    for (pid, start_time) in watched.0.iter().rev() {
        end(*pid, start_time);
    }
    ExitCode::SUCCESS
}

fn end(pid: Pid, start_time: &str) {
    let is_there = || Identity::of(pid).is_some_and(|now| !now.zombie && now.start_time == start_time);
    // A process that leads no group of its own was not started by `Guard::spawn`.
    let signal = |signal| {
        if is_there() && getpgid(Some(pid)) == Ok(pid) {
            let _ = kill_process_group(pid, signal);
        }
    };
    signal(Signal::TERM);
    signal(Signal::CONT);
    let deadline = Instant::now() + GRACE;
    while is_there() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
    signal(Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(watched: &Watched) -> Vec<i32> {
        watched.0.iter().map(|(pid, _)| pid.as_raw_pid()).collect()
    }

    #[test]
    fn a_start_time_is_found_behind_any_program_name() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        for name in ["sleep", "a b", "x) S 1 2", "((("] {
            let identity = Identity::from_stat(&format!("77 ({name}) S {rest}"));
            assert_eq!(
                identity,
                Some(Identity {
                    zombie: false,
                    start_time: "4242".into()
                }),
                "{name}"
            );
        }
        assert!(Identity::from_stat(&format!("77 (x) Z {rest}")).is_some_and(|identity| identity.zombie));
        assert_eq!(Identity::from_stat("77 (x) S 1 2"), None);
        assert_eq!(Identity::from_stat(""), None);
    }

    #[test]
    fn a_start_time_is_found_without_proc() {
        let identity = Identity::from_ps("S+   Sun Nov 22 14:40:00 2026\n");
        assert_eq!(
            identity,
            Some(Identity {
                zombie: false,
                start_time: "Sun-Nov-22-14:40:00-2026".into()
            })
        );
        assert_eq!(Identity::from_ps("\n"), None);
    }

    #[test]
    fn this_very_process_has_an_identity_that_stays() {
        let me = rustix::process::getpid();
        assert!(Identity::of(me).is_some());
        assert_eq!(Identity::of(me), Identity::of(me));
    }

    #[test]
    fn what_is_forgotten_is_not_watched() {
        let mut watched = Watched::default();
        for line in ["watch 10 1\n", "watch 11 2\n", "watch 12 3\n", "forget 11\n"] {
            watched.read(line);
        }
        assert_eq!(pids(&watched), [10, 12]);
    }

    #[test]
    fn no_line_can_name_init_or_a_group_of_many() {
        let mut watched = Watched::default();
        for line in [
            "watch 1 5",
            "watch 0 5",
            "watch -1 5",
            "watch -77 5",
            "watch x 5",
            "watch 7",
            "",
            "kill 9 9",
        ] {
            watched.read(line);
        }
        assert_eq!(pids(&watched), [] as [i32; 0]);
    }
}
