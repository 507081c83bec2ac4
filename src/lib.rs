//! Runs Aura's WhatsApp channels as Kubernetes resources.
//!
//! The program is one binary with two roles: `controller` registers each channel's webhook with Kernel and keeps
//! it registered, `bridge` carries messages between Kernel and Aura. `docs/architecture.md` draws the parts.

pub mod admin;
pub mod api;
pub mod aura;
pub mod bridge;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod convert;
pub mod delivery;
pub mod doctor;
pub mod failpoint;
pub mod http;
pub mod import;
pub mod journal;
pub mod kernel;
pub mod keys;
pub mod lineage;
pub mod plan;
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
pub mod telemetry;
pub mod tls;
pub mod validate;
pub mod whatsapp;
mod words;
mod yaml;
