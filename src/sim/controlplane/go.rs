//! Builds programs from the pinned Go modules into the cache directory, once per machine.
//!
//! Builds run one at a time and in the order needed, under a lock against other launchers and test runs of
//! the same user. A build goes to a temporary name and is renamed when whole: one that is killed leaves
//! nothing that looks like a program. Progress goes straight to standard error, because minutes of silence
//! look like a hang, and the test harness would swallow what the print macros write.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::Command;

use super::{
    assets::{AssetsError, Module, Places, Tool, is_executable, on_path},
    files,
};

/// The oldest Go that builds the modules, as their go.mod files say.
pub(super) const MINIMUM: (u32, u32) = (1, 26);
/// How many minutes building all takes on two cores with nothing cached.
pub(super) const MINUTES: u32 = 5;

/// How often a sign of life is given.
const PROGRESS: Duration = Duration::from_secs(10);
/// How often a lock held by another build is tried again.
const LOCK_POLL: Duration = Duration::from_millis(250);
/// How much of a failed build's output is shown.
const OUTPUT_LINES: usize = 20;
/// How unfinished builds are called.
const UNFINISHED: &str = ".unfinished-";

/// Builds those of `tools` that are not in the cache by the time that no one else is building.
pub(super) async fn build(places: &Places, tools: &[Tool]) -> Result<(), AssetsError> {
    let Some(go) = on_path(&places.path, "go") else {
        return Err(AssetsError::NoGo {
            missing: tools.to_vec(),
        });
    };
    fs::create_dir_all(&places.cache).map_err(io_error("cannot create", &places.cache))?;
    let lock = lock(&places.cache.join("build.lock")).await?;

    let missing: Vec<Tool> = tools
        .iter()
        .copied()
        .filter(|tool| !is_executable(&places.cached(*tool)))
        .collect();
    let all = Instant::now();
    for (index, &tool) in missing.iter().enumerate() {
        let output = places.cached(tool);
        let dir = output.parent().unwrap_or(&places.cache);
        let module = write_module(dir, tool.module())?;
        let go = Go {
            program: &go,
            module: &module,
            lock: &lock,
        };
        if index == 0 {
            let version = go.check_version(&missing).await?;
            report(&format!(
                "building {} from source with {version}. This happens once on this machine, and takes about {MINUTES} \
                 minutes for all on two cores.",
                missing
                    .iter()
                    .map(|tool| tool.name())
                    .collect::<Vec<_>>()
                    .join(", "),
            ));
        }
        go.build(tool, &format!("{} of {}", index + 1, missing.len()), dir, &output)
            .await?;
    }
    if let [first, ..] = missing.as_slice() {
        let place = places.cached(*first);
        let place = place.parent().unwrap_or(&places.cache);
        report(&format!(
            "all built in {} s; kept in {}",
            all.elapsed().as_secs(),
            place.display()
        ));
    }
    Ok(())
}

/// The module's files in a directory of their own, which is where Go is run.
fn write_module(dir: &Path, module: &Module) -> Result<PathBuf, AssetsError> {
    let path = dir.join("module");
    fs::create_dir_all(&path).map_err(io_error("cannot create", &path))?;
    for (name, content) in [("go.mod", module.go_mod), ("go.sum", module.go_sum)] {
        let file = path.join(name);
        fs::write(&file, content).map_err(io_error("cannot write", &file))?;
    }
    Ok(path)
}

struct Go<'a> {
    program: &'a Path,
    /// The directory of the module's files.
    module: &'a Path,
    lock: &'a File,
}

impl Go<'_> {
    fn command(&self) -> Command {
        let (os, arch) = platform(std::env::consts::OS, std::env::consts::ARCH);
        let mut command = Command::new(self.program);
        command
            .current_dir(self.module)
            // What the user has set for their own projects must not decide what is built here, and the result
            // must be the same in every directory. GOPROXY and the caches stay as they are.
            .env("GOFLAGS", "-trimpath -buildvcs=false -mod=readonly")
            .env("CGO_ENABLED", "0")
            .env("GO111MODULE", "on")
            .env("GOWORK", "off")
            .env("GOOS", os)
            .env("GOARCH", arch)
            .kill_on_drop(true);
        command
    }

    /// Asked in the module's directory, so that a Go that may fetch a newer toolchain by itself does so.
    async fn check_version(&self, missing: &[Tool]) -> Result<String, AssetsError> {
        let output = self.command().arg("version").stdin(Stdio::null()).output().await;
        let output = output.map_err(io_error("cannot run", self.program))?;
        let text = String::from_utf8_lossy(if output.status.success() {
            &output.stdout
        } else {
            &output.stderr
        });
        let text = text.trim();
        match parse_version(text) {
            Some(version) if output.status.success() && version >= MINIMUM => {
                Ok(text.trim_start_matches("go version ").to_owned())
            }
            _ => Err(AssetsError::OldGo {
                missing: missing.to_vec(),
                found: text.to_owned(),
            }),
        }
    }

    async fn build(&self, tool: Tool, which: &str, dir: &Path, result: &Path) -> Result<(), AssetsError> {
        remove_unfinished(dir);
        let unfinished = dir.join(format!("{UNFINISHED}{tool}-{}", std::process::id()));
        let log_path = dir.join("build.log");
        let log = File::create(&log_path).map_err(io_error("cannot write", &log_path))?;
        let second_log = log.try_clone().map_err(io_error("cannot write", &log_path))?;
        // A lock belongs to the open file: as its standard input Go keeps it while it runs, even if we are
        // killed. Whoever comes next then waits for that build instead of starting the same one beside it.
        let lock = self
            .lock
            .try_clone()
            .map_err(io_error("cannot share the lock in", dir))?;

        let started = Instant::now();
        report(&format!("building {tool} ({which})"));
        let mut go = self
            .command()
            .args(["build", "-ldflags", tool.module().ldflags, "-o"])
            .arg(&unfinished)
            .arg(tool.package())
            .stdin(lock)
            .stdout(log)
            .stderr(second_log)
            .spawn()
            .map_err(io_error("cannot run", self.program))?;
        let status = loop {
            match tokio::time::timeout(PROGRESS, go.wait()).await {
                Ok(status) => break status.map_err(io_error("cannot wait for", self.program))?,
                Err(_) => report(&format!(
                    "building {tool} ({which}): {} s so far",
                    started.elapsed().as_secs()
                )),
            }
        };
        if !status.success() {
            remove_unfinished(dir);
            let mut output = files::last_lines(&log_path, OUTPUT_LINES);
            if output.is_empty() {
                output = status.to_string();
            }
            return Err(AssetsError::Build { tool, output });
        }
        fs::rename(&unfinished, result).map_err(io_error("cannot write", result))?;
        report(&format!(
            "built {tool} ({which}) in {} s",
            started.elapsed().as_secs()
        ));
        Ok(())
    }
}

/// What killed builds have left; nobody is at it, for we hold the lock.
fn remove_unfinished(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Waits for whoever is building now. The lock goes with the file, however its holders end.
async fn lock(path: &Path) -> Result<File, AssetsError> {
    let file = File::create(path).map_err(io_error("cannot open", path))?;
    let started = Instant::now();
    let mut next_report = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(io_error("cannot lock", path)(error)),
        }
        if started.elapsed() >= next_report {
            let waited = started.elapsed().as_secs();
            report(&format!(
                "waiting for another build on this machine to finish: {waited} s so far"
            ));
            next_report += PROGRESS;
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

fn report(text: &str) {
    // Unit tests build nothing real. (Integration tests do, and use the library as everybody does.)
    if cfg!(test) {
        return;
    }
    // Nobody to tell is no reason to fail.
    let _ = writeln!(io::stderr(), "control plane: {text}");
}

fn io_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> AssetsError {
    let what = format!("{what} {}", path.display());
    move |source| AssetsError::Io { what, source }
}

/// Go's names for a platform, from Rust's. The others are called the same.
pub(super) fn platform(os: &'static str, arch: &'static str) -> (&'static str, &'static str) {
    let os = if os == "macos" { "darwin" } else { os };
    let arch = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        other => other,
    };
    (os, arch)
}

/// "go version go1.26.8 linux/amd64" is (1, 26).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let version = text
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("go").filter(|rest| rest.contains('.')))?;
    let (major, rest) = version.split_once('.')?;
    Some((major.parse().ok()?, number(rest)?))
}

/// What to do about a failed build, if its output says that modules could not be fetched.
pub(super) fn hint(output: &str) -> &'static str {
    const SIGNS: [&str; 9] = [
        "dial tcp",
        "no such host",
        "i/o timeout",
        "TLS handshake",
        "tls: ",
        "connection reset",
        "GOPROXY",
        "module lookup disabled",
        "unexpected EOF",
    ];
    if SIGNS.iter().any(|sign| output.contains(sign)) {
        "\nThe Go modules could not be downloaded: the module proxy that `go env GOPROXY` names must be \
         reachable, if need be through HTTPS_PROXY. What was downloaded is kept: try again."
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_version_is_read_in_all_its_forms() {
        for (text, version) in [
            ("go version go1.26.8 linux/amd64", Some((1, 26))),
            ("go version go1.27rc1 darwin/arm64", Some((1, 27))),
            ("go version go1.26-custom linux/amd64", Some((1, 26))),
            ("go version devel go1.28-abcdef Tue linux/amd64", Some((1, 28))),
            ("go version go2.0 linux/amd64", Some((2, 0))),
            ("go: cannot find main module", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
        assert!((1, 9) < MINIMUM && (2, 0) > MINIMUM);
    }

    #[test]
    fn a_platform_has_the_name_that_go_gives_it() {
        assert_eq!(platform("linux", "x86_64"), ("linux", "amd64"));
        assert_eq!(platform("macos", "aarch64"), ("darwin", "arm64"));
        assert_eq!(platform("linux", "s390x"), ("linux", "s390x"));
    }

    #[test]
    fn only_a_failed_download_is_blamed_on_the_network() {
        assert!(hint("Get \"https://proxy/…\": dial tcp: lookup proxy: no such host").contains("GOPROXY"));
        assert_eq!(hint("undefined: x"), "");
    }
}
