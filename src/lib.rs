//! Runs Aura's WhatsApp channels as Kubernetes resources.
//!
//! The program is one binary with two roles: `controller` registers each channel's webhook with Kernel and keeps
//! it registered, `bridge` carries messages between Kernel and Aura. `docs/architecture.md` draws the parts.

pub mod api;
pub mod aura;
pub mod cluster;
pub mod config;
pub mod convert;
pub mod http;
pub mod kernel;
pub mod keys;
pub mod telemetry;
pub mod whatsapp;
