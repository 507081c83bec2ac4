//! Child processes that never outlive us, not even after `kill -9` of the launcher.
//!
//! A destructor does not run in a killed process, so the promise is kept by a second, tiny process: the
//! reaper ([`super::guard_main`], a hidden subcommand of the launcher's own binary). It holds the read end of
//! a pipe whose only write end is ours. However we end, the kernel closes that pipe; the reaper then ends
//! what we had told it to watch, newest first, and exits.
//!
//! Only processes registered here are ever signalled. A process is known by its id *and* its start time, so
//! an id that the kernel has given to somebody else in the meantime is left alone.
//!
//! Every child leads a process group of its own: Ctrl-C in a terminal reaches the launcher only, which then
//! stops its children in the order that suits them.
//!
//! Left open: a launcher killed within the microseconds between a child's start and its registration leaves
//! that child behind.

use std::{
    fs::OpenOptions,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{
    files,
    reaper::{GRACE, Identity, READY},
};

/// How often the end of a process is looked for. Polling keeps a [`Child`] independent of the runtime that
/// started it: tests share one control plane, but each test has its own runtime.
const POLL: Duration = Duration::from_millis(10);
/// How long the reaper may take to say that it is there.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The launcher's end of the pipe to the reaper. Clones share one reaper; it ends when the last one is
/// dropped.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Reaper>);

#[derive(Debug)]
struct Reaper {
    process: Mutex<std::process::Child>,
}

impl Guard {
    /// Starts `exe guard`, where `exe` is a binary whose `guard` subcommand is [`super::guard_main`].
    ///
    /// # Errors
    /// If `exe` cannot be started or does not answer as a reaper within 10 seconds.
    pub async fn start(exe: &Path) -> io::Result<Self> {
        let failed =
            |why: &str| io::Error::other(format!("the process guard `{} guard` {why}", exe.display()));
        let mut process = std::process::Command::new(exe)
            .arg("guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| failed(&format!("cannot be started: {error}")))?;
        let answer = process.stdout.take().map(|stdout| {
            tokio::task::spawn_blocking(move || {
                let mut line = String::new();
                BufReader::new(stdout).read_line(&mut line).map(|_| line)
            })
        });
        // Owned from here on, so that every way out below closes the pipe and so ends the process.
        let reaper = Reaper {
            process: Mutex::new(process),
        };
        let Some(answer) = answer else {
            return Err(failed("has no output"));
        };
        match tokio::time::timeout(HANDSHAKE, answer).await {
            Ok(Ok(Ok(line))) if line.trim_end() == READY => Ok(Self(Arc::new(reaper))),
            Ok(_) => Err(failed("did not answer: is `guard` a subcommand of that binary?")),
            Err(_) => {
                let _ = lock(&reaper.process).kill();
                Err(failed("did not answer in time"))
            }
        }
    }

    /// Starts `command` in a process group of its own, with no input and with its output appended to
    /// `log_file`, and has it watched. `name` is for messages.
    ///
    /// # Errors
    /// If the program cannot be started, the log cannot be written, or the reaper is gone; then nothing runs.
    pub fn spawn(&self, name: &str, command: tokio::process::Command, log_file: &Path) -> io::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_file)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", log_file.display())))?;
        let log_start = log.metadata()?.len();
        let mut command = command.into_std();
        let program = PathBuf::from(command.get_program());
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot start {name} ({}): {error}", program.display()),
                )
            })?;
        let pid = Pid::from_child(&process);
        let child = Child {
            name: name.to_owned(),
            pid,
            guard: self.clone(),
            log: log_file.to_owned(),
            log_start,
            state: Mutex::new(State {
                process,
                forgotten: false,
            }),
        };
        // On an error `child` is dropped here, which kills it.
        let started =
            Identity::of(pid).ok_or_else(|| io::Error::other(format!("{name} vanished while starting")))?;
        self.tell(&format!("watch {} {}\n", pid.as_raw_pid(), started.start_time))?;
        Ok(child)
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        let mut process = lock(&self.0.process);
        let pipe = process
            .stdin
            .as_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        pipe.write_all(line.as_bytes())
            .map_err(|error| io::Error::new(error.kind(), format!("the process guard is gone: {error}")))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(process.stdin.take());
        // Every Child holds a Guard, so nothing is left to end by now and the reaper goes at once.
        let deadline = Instant::now() + Duration::from_secs(1);
        while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A process started by [`Guard::spawn`]. Dropping it kills it, with its process group.
#[derive(Debug)]
pub struct Child {
    name: String,
    pid: Pid,
    guard: Guard,
    log: PathBuf,
    log_start: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    process: std::process::Child,
    forgotten: bool,
}

impl Child {
    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is also its process group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// The file its output goes to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last `lines` lines that it wrote since this start.
    #[must_use]
    pub fn output(&self, lines: usize) -> String {
        files::last_lines_since(&self.log, self.log_start, lines)
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// If the operating system cannot say.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut state = lock(&self.state);
        if !state.forgotten {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if waitid(WaitId::Pid(self.pid), look)?.is_none() {
                return Ok(None);
            }
            // Dead but not yet reaped: its id still names its group and nothing else, so this is the one
            // moment at which whatever it left behind can be ended safely.
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        let status = state.process.try_wait()?;
        if status.is_some() && !state.forgotten {
            state.forgotten = true;
            // A reaper that is gone has nothing to forget.
            let _ = self.guard.tell(&format!("forget {}\n", self.pid.as_raw_pid()));
        }
        Ok(status)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If the operating system cannot say.
    pub async fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends `signal` to its process group; does nothing if it has ended.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        // Not reaped between the check and the signal, because reaping takes `&self.state` too: so the id is
        // ours.
        let state = lock(&self.state);
        if state.forgotten {
            return Ok(());
        }
        match kill_process_group(self.pid, signal) {
            // A group whose only member is a zombie: ended since the check.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Asks it to end (SIGTERM), and kills it if it is still there after 3 seconds.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn stop(&self) -> io::Result<ExitStatus> {
        self.stop_within(GRACE).await
    }

    /// As [`Child::stop`], with another patience than 3 seconds.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn stop_within(&self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        // A process that a test has stopped must run to see it.
        self.signal(Signal::CONT)?;
        match tokio::time::timeout(grace, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => self.kill9().await,
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone, so that its ports and locks are free afterwards.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn kill9(&self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait().await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.signal(Signal::KILL).is_err() {
            return;
        }
        // Blocks for the milliseconds that the kernel needs; the reaper still watches it if that is not
        // enough.
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(self.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
