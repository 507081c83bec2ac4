//! A real Kubernetes control plane on loopback, for `cargo dev` and the integration tests.
//!
//! etcd, kube-apiserver and kube-controller-manager are the unmodified programs: what passes here passed the
//! real validation, the real server-side apply and the real RBAC. There is no kubelet and no scheduler, so
//! pods stay Pending. Nothing here is compiled into what `cargo install` or the image ships.
//!
//! - [`assets`] finds the programs, or builds them once from pinned Go modules;
//! - [`guard`] starts processes and ends them, even if this process is killed with `kill -9`;
//! - [`cluster`] puts the two together, on the files that `files` writes;
//! - [`requests`] tells what the API server was asked to do.

pub mod assets;
pub mod cluster;
mod files;
mod go;
pub mod guard;
mod launcher;
mod reaper;
pub mod requests;

pub use assets::{Assets, AssetsError, Tool, locate};
pub use cluster::{ControlPlane, Options, StartError};
pub use files::last_lines;
pub use guard::{Child, Guard, Signal};
pub use reaper::guard_main;
pub use requests::Requests;
