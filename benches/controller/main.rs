//! Measures the controller at scale: the release-built program as a process, a real kube-apiserver and etcd, and the
//! simulated Kernel, which takes its time over each call. What each figure means: docs/performance.md.
//!
//! ```console
//! cargo bench --bench controller -- --channels 10000 --only latency
//! ```
//!
//! Nothing here asserts on time: the table shows each figure beside its target, and a person judges.

#![allow(clippy::print_stdout, reason = "a report for a person at a terminal")]

mod board;
#[path = "../cluster.rs"]
mod cluster;
#[path = "../figures.rs"]
mod figures;
mod load;
mod phases;
mod world;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};

use self::{figures::Table, phases::Run, world::World};

#[derive(Debug, Parser)]
#[command(about = "Measures the controller at scale")]
struct Arguments {
    /// How many channels
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    channels: usize,
    /// Only this (the channels are registered in any case)
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,
    /// Calls to Kernel at once, for all channels
    #[arg(long, value_name = "N", default_value_t = 16)]
    kernel_concurrent: u32,
    /// The controller's --concurrency
    #[arg(long, value_name = "N", default_value_t = 64)]
    concurrency: u16,
    /// How long the simulated Kernel takes over each call, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20)]
    kernel_latency: u64,
    /// Given by `cargo bench`; without it (under `cargo test --benches`) nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Registration,
    Restart,
    Resync,
    Latency,
    Memory,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing measured: run it with `cargo bench --bench controller`");
        return Ok(());
    }
    anyhow::ensure!(arguments.channels > 0, "there must be a channel");
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = |what| arguments.only.is_none_or(|only| only == what);
    let mut table = Table::default();
    let world = World::start(arguments).await?;
    let idle = if wanted(Only::Memory) {
        Some(phases::idle(&world).await?)
    } else {
        None
    };
    let board = world.load(arguments.channels).await?;
    let mut run = Run::register(world, board, arguments, &mut table, wanted(Only::Registration)).await?;
    if let Some(idle) = idle {
        run.memory(&mut table, "with all Ready", idle).await?;
    }
    if wanted(Only::Restart) || wanted(Only::Memory) {
        run.restart(&mut table, wanted(Only::Restart)).await?;
        if let Some(idle) = idle {
            run.memory(&mut table, "after a restart", idle).await?;
        }
    }
    if wanted(Only::Resync) {
        run.resync(&mut table).await?;
    }
    if wanted(Only::Latency) {
        run.latency(&mut table).await?;
    }
    run.end().await?;
    println!(
        "\n{} channels, {}\n\n{table}",
        arguments.channels,
        world::machine()
    );
    Ok(())
}
