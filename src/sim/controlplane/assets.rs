//! Where the programs come from: found if somebody has them, built once if not.
//!
//! Each program is looked up on its own, because what `setup-envtest` downloads lacks
//! kube-controller-manager:
//! 1. the directory `KUBEBUILDER_ASSETS`, envtest's convention, whatever version it holds;
//! 2. our cache directory, under a key made of everything that decides what a build yields;
//! 3. for `kubectl` and `helm`: the PATH (helm only if it is version 4);
//! 4. a build from the pinned Go modules in `modules/`, into the cache directory (`go.rs`).

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::go;

/// The directory variable of envtest.
const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// The only major version of helm that the charts are tested with.
const HELM_MAJOR: u32 = 4;
/// How long a program found on the PATH may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A program that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The API server's store.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// Namespace deletion, garbage collection, Deployments and the other built-in controllers.
    KubeControllerManager,
    /// The command line client.
    Kubectl,
    /// The chart's installer.
    Helm,
}

/// A set of programs that are built from one go.mod, with one set of linker flags.
#[derive(Debug)]
pub(super) struct Module {
    pub go_mod: &'static str,
    pub go_sum: &'static str,
    /// The versions must be stamped: clients see 0.0.0 otherwise, and kubectl and helm compare versions.
    pub ldflags: &'static str,
}

static KUBERNETES: Module = Module {
    go_mod: include_str!("modules/kubernetes/go.mod"),
    go_sum: include_str!("modules/kubernetes/go.sum"),
    ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
              -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
};
static HELM: Module = Module {
    go_mod: include_str!("modules/helm/go.mod"),
    go_sum: include_str!("modules/helm/go.sum"),
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
};

impl Tool {
    /// Every program, in the order in which they are needed. It is also the order of their declaration.
    pub const ALL: [Self; 5] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::Kubectl,
        Self::Helm,
    ];

    /// The name of its file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
        }
    }

    pub(super) fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
        }
    }

    pub(super) fn module(self) -> &'static Module {
        match self {
            Self::Helm => &HELM,
            Self::Etcd | Self::KubeApiserver | Self::KubeControllerManager | Self::Kubectl => &KUBERNETES,
        }
    }

    /// The servers are never taken from the PATH: a running version nobody chose would decide what tests
    /// prove.
    fn may_come_from_path(self) -> bool {
        matches!(self, Self::Kubectl | Self::Helm)
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Where to look; normally [`Places::from_env`].
#[derive(Clone, Debug)]
pub struct Places {
    /// `KUBEBUILDER_ASSETS`.
    pub assets: Option<PathBuf>,
    /// Our own directory below the user's cache directory; created when something is built.
    pub cache: PathBuf,
    /// The PATH, on which `go`, `kubectl` and `helm` are looked for.
    pub path: OsString,
}

impl Places {
    /// What the environment says.
    ///
    /// # Errors
    /// [`AssetsError::NoCacheDirectory`] if there is neither `XDG_CACHE_HOME` nor `HOME`.
    pub fn from_env() -> Result<Self, AssetsError> {
        let directory = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let cache = directory("XDG_CACHE_HOME")
            // The XDG specification says that a relative one is to be ignored.
            .filter(|path| path.is_absolute())
            .or_else(|| directory("HOME").map(|home| home.join(".cache")))
            .ok_or(AssetsError::NoCacheDirectory)?;
        Ok(Self {
            assets: directory(ASSETS_VARIABLE),
            cache: cache.join("aura-whatsapp-operator").join("control-plane"),
            path: env::var_os("PATH").unwrap_or_default(),
        })
    }

    /// Where `tool` is cached, whether it is there or not.
    pub(super) fn cached(&self, tool: Tool) -> PathBuf {
        let (os, arch) = go::platform(env::consts::OS, env::consts::ARCH);
        self.cache
            .join(cache_key(tool.module(), os, arch))
            .join(tool.name())
    }

    /// Every file that may be `tool`, the preferred one first.
    fn candidates(&self, tool: Tool) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        if let Some(assets) = &self.assets {
            candidates.push(Candidate {
                path: assets.join(tool.name()),
                major: None,
            });
        }
        candidates.push(Candidate {
            path: self.cached(tool),
            major: None,
        });
        if tool.may_come_from_path() {
            let major = (tool == Tool::Helm).then_some(HELM_MAJOR);
            let found = on_path(&self.path, tool.name());
            candidates.extend(found.map(|path| Candidate { path, major }));
        }
        candidates
    }
}

/// A file that is the program if it exists, can be executed, and has the major version asked for.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    path: PathBuf,
    major: Option<u32>,
}

/// Where the programs are, from [`locate`].
#[derive(Clone, Debug)]
pub struct Assets([PathBuf; Tool::ALL.len()]);

impl Assets {
    /// The program's file. It exists if [`locate`] was asked for it; otherwise this is where a build would
    /// put it.
    #[must_use]
    pub fn path(&self, tool: Tool) -> &Path {
        &self.0[tool as usize]
    }
}

/// Why there is no program, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// Nowhere to keep what is built.
    #[error("no cache directory: set HOME or XDG_CACHE_HOME to a directory that can be written")]
    NoCacheDirectory,
    /// Not found, and no `go` to build it with.
    #[error(
        "{} not found, and `go` is not on the PATH to build {}.\n{}",
        names(.missing), if .missing.len() == 1 { "it" } else { "them" }, ways_out(.missing)
    )]
    NoGo {
        /// What was not found.
        missing: Vec<Tool>,
    },
    /// Not found, and the `go` on the PATH cannot build it.
    #[error("{} not found, and this Go is too old to build: {found}.\n{}", names(.missing), ways_out(.missing))]
    OldGo {
        /// What was not found.
        missing: Vec<Tool>,
        /// What `go version` says.
        found: String,
    },
    /// `go build` failed.
    #[error("building {tool} failed:\n{output}{}", go::hint(.output))]
    Build {
        /// What was being built.
        tool: Tool,
        /// The end of Go's output.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// The file, and what was being done.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

fn names(tools: &[Tool]) -> String {
    tools
        .iter()
        .map(|tool| tool.name())
        .collect::<Vec<_>>()
        .join(", ")
}

fn ways_out(missing: &[Tool]) -> String {
    let mut text = format!(
        "Either install Go {}.{} or newer (https://go.dev/dl/ or your package manager): they are then built once, \
         in about {} minutes.\nOr set {ASSETS_VARIABLE} to a directory that holds them, such as the one that \
         `setup-envtest use -p path` prints.",
        go::MINIMUM.0,
        go::MINIMUM.1,
        go::MINUTES,
    );
    if missing.contains(&Tool::KubeControllerManager) {
        text += " Mind that setup-envtest has no kube-controller-manager: add one of the same version to that \
                 directory.";
    }
    if missing.contains(&Tool::Helm) {
        text += " helm (version 4) may also be on the PATH.";
    }
    text
}

/// Finds every one of `tools`, and builds what nobody has. The first build on a machine takes minutes and
/// says on standard error how it goes.
///
/// # Errors
/// An [`AssetsError`] that says what to install or set.
pub async fn locate(tools: &[Tool]) -> Result<Assets, AssetsError> {
    locate_in(&Places::from_env()?, tools).await
}

/// As [`locate`], looking elsewhere than the environment says.
///
/// # Errors
/// As [`locate`].
pub async fn locate_in(places: &Places, tools: &[Tool]) -> Result<Assets, AssetsError> {
    let mut assets = Assets(Tool::ALL.map(|tool| places.cached(tool)));
    let mut missing = Vec::new();
    for &tool in tools {
        match find(places, tool).await {
            Some(path) => assets.0[tool as usize] = path,
            None if missing.contains(&tool) => {}
            None => missing.push(tool),
        }
    }
    if !missing.is_empty() {
        go::build(places, &missing).await?;
    }
    Ok(assets)
}

async fn find(places: &Places, tool: Tool) -> Option<PathBuf> {
    for Candidate { path, major } in places.candidates(tool) {
        if is_executable(&path) && (major.is_none() || major == major_version(&path).await) {
            return Some(path);
        }
    }
    None
}

pub(super) fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The first executable called `name` on `path`.
pub(super) fn on_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    // A relative entry would mean something else in the directory in which a build runs.
    env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

async fn major_version(program: &Path) -> Option<u32> {
    let run = tokio::process::Command::new(program)
        .args(["version", "--short"])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_TIMEOUT, run).await.ok()?.ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

/// "v4.0.1+g12500dd" is 4.
fn parse_major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// What a build depends on, as the name of a directory: a new version or platform is another directory, and
/// clean checkouts share one.
fn cache_key(module: &Module, os: &str, arch: &str) -> String {
    let mut hash = Sha256::new();
    for part in [module.go_mod, module.go_sum, module.ldflags, os, arch] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize()
        .iter()
        .take(8)
        .fold(String::new(), |key, byte| key + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Written by another process: while this one has a file open for writing, a program that another test
    /// starts at that moment has it open too, and the file cannot be executed (ETXTBSY).
    fn program(dir: &Path, name: &str, script: &str) -> PathBuf {
        fs::create_dir_all(dir).unwrap();
        let path = dir.join(name);
        let write = r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#;
        let status = std::process::Command::new("sh")
            .args(["-c", write, "sh"])
            .arg(&path)
            .arg(script)
            .status();
        assert!(status.unwrap().success());
        path
    }

    /// Directories that exist once something is put into them.
    fn places(root: &Path) -> Places {
        Places {
            assets: Some(root.join("assets")),
            cache: root.join("cache"),
            path: env::join_paths([root.join("first"), root.join("second")]).unwrap(),
        }
    }

    #[test]
    fn the_cache_key_changes_with_all_that_a_build_depends_on() {
        let module = Module {
            go_mod: "m",
            go_sum: "s",
            ldflags: "l",
        };
        let key = cache_key(&module, "linux", "amd64");
        assert_eq!(key.len(), 16);
        assert_eq!(key, cache_key(&module, "linux", "amd64"));
        for other in [
            cache_key(&module, "darwin", "amd64"),
            cache_key(&module, "linux", "arm64"),
            cache_key(
                &Module {
                    go_mod: "x",
                    ..module
                },
                "linux",
                "amd64",
            ),
            cache_key(
                &Module {
                    go_sum: "x",
                    ..module
                },
                "linux",
                "amd64",
            ),
            cache_key(
                &Module {
                    ldflags: "x",
                    ..module
                },
                "linux",
                "amd64",
            ),
            cache_key(
                &Module {
                    go_mod: "ms",
                    go_sum: "",
                    ..module
                },
                "linux",
                "amd64",
            ),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn the_numbering_of_the_programs_is_their_order() {
        assert_eq!(Tool::ALL.map(|tool| tool as usize), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_stamped_versions_are_those_of_the_modules() {
        assert!(KUBERNETES.go_mod.contains("k8s.io/kubernetes v1.36.3 "));
        assert!(KUBERNETES.ldflags.contains("gitVersion=v1.36.3 "));
        assert!(HELM.go_mod.contains("helm.sh/helm/v4 v4.3.1 "));
        assert!(HELM.ldflags.ends_with("=v4.3.1"));
        for tool in Tool::ALL {
            assert!(
                tool.module()
                    .go_mod
                    .lines()
                    .any(|line| line.trim().trim_start_matches("tool ") == tool.package())
            );
        }
    }

    #[tokio::test]
    async fn each_program_is_looked_up_on_its_own_and_in_order() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        assert_eq!(find(&places, Tool::Kubectl).await, None);

        let on_path = program(&root.path().join("second"), "kubectl", "");
        assert_eq!(find(&places, Tool::Kubectl).await.as_ref(), Some(&on_path));
        let cached = places.cached(Tool::Kubectl);
        program(cached.parent().unwrap(), "kubectl", "");
        assert_eq!(find(&places, Tool::Kubectl).await.as_ref(), Some(&cached));
        let given = program(&root.path().join("assets"), "kubectl", "");
        assert_eq!(find(&places, Tool::Kubectl).await.as_ref(), Some(&given));

        assert_eq!(find(&places, Tool::KubeControllerManager).await, None);
    }

    #[tokio::test]
    async fn a_server_on_the_path_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        program(&root.path().join("first"), "etcd", "");
        assert_eq!(find(&places(root.path()), Tool::Etcd).await, None);
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_not_a_program() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let path = program(&root.path().join("assets"), "etcd", "");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::create_dir_all(places.cached(Tool::Etcd)).unwrap();
        assert_eq!(find(&places, Tool::Etcd).await, None);
    }

    #[tokio::test]
    async fn helm_on_the_path_is_taken_only_if_it_is_version_4() {
        let root = tempfile::tempdir().unwrap();
        let helm = program(&root.path().join("first"), "helm", "echo v3.19.0+g3d8990f");
        assert_eq!(find(&places(root.path()), Tool::Helm).await, None);
        program(&root.path().join("first"), "helm", "echo v4.0.1+g12500dd");
        assert_eq!(find(&places(root.path()), Tool::Helm).await, Some(helm));
    }

    #[test]
    fn a_major_version_is_read_or_not() {
        assert_eq!(parse_major("v4.0.1+g12500dd\n"), Some(4));
        assert_eq!(parse_major("v3.19.0"), Some(3));
        assert_eq!(parse_major("4.0"), None);
        assert_eq!(parse_major(""), None);
    }

    #[tokio::test]
    async fn without_go_the_error_names_both_ways_out() {
        let root = tempfile::tempdir().unwrap();
        let error = locate_in(&places(root.path()), &Tool::ALL)
            .await
            .unwrap_err()
            .to_string();
        for part in [
            "kube-apiserver",
            "Go 1.26 or newer",
            "go.dev",
            "KUBEBUILDER_ASSETS",
            "no kube-controller-manager",
        ] {
            assert!(error.contains(part), "{part} in: {error}");
        }
        assert!(
            !root.path().join("cache").exists(),
            "nothing is created for nothing"
        );
    }

    #[tokio::test]
    async fn an_old_go_is_named() {
        let root = tempfile::tempdir().unwrap();
        program(
            &root.path().join("first"),
            "go",
            "echo go version go1.21.5 linux/amd64",
        );
        let error = locate_in(&places(root.path()), &[Tool::Etcd])
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("go1.21.5") && error.contains("Go 1.26 or newer"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_failed_build_shows_the_end_of_its_output_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let script = r#"if [ "$1" = version ]; then echo go version go1.26.0 linux/amd64; exit; fi
            seq 1 100; echo 'dial tcp: lookup proxy.example: no such host' >&2; touch "$5"; exit 1"#;
        program(&root.path().join("first"), "go", script);
        let error = locate_in(&places, &[Tool::Etcd]).await.unwrap_err().to_string();
        assert!(
            error.contains("\n100\ndial tcp") && !error.contains("\n50\n"),
            "{error}"
        );
        assert!(error.contains("GOPROXY"), "{error}");
        let left: Vec<_> = fs::read_dir(places.cached(Tool::Etcd).parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("etcd"))
            .collect();
        assert_eq!(left, [] as [&str; 0]);
    }

    #[tokio::test]
    async fn two_that_want_the_same_program_build_it_once() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let script = r#"if [ "$1" = version ]; then echo go version go1.26.0 linux/amd64; exit; fi
            echo built >>../../builds; sleep 0.3; cp "$0" "$5""#;
        program(&root.path().join("first"), "go", script);
        let (one, two) = tokio::join!(
            locate_in(&places, &[Tool::Etcd]),
            locate_in(&places, &[Tool::Etcd])
        );
        assert_eq!(one.unwrap().path(Tool::Etcd), two.unwrap().path(Tool::Etcd));
        assert_eq!(
            fs::read_to_string(root.path().join("cache/builds")).unwrap(),
            "built\n"
        );
    }
}
