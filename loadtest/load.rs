//! A load generator that checks what it measures: `cargo run --release --example load -- --help`.
//!
//! It shares a machine with the server, so its own cost must be small: one thread, one task and one
//! small view for each client, and every frame that many clients get is read once. See
//! loadtest/README.md.

#[path = "load/args.rs"]
mod args;
#[path = "load/churn.rs"]
mod churn;
#[path = "load/client.rs"]
mod client;
#[path = "load/crowd.rs"]
mod crowd;
#[path = "load/histogram.rs"]
mod histogram;
#[path = "load/hold.rs"]
mod hold;
#[path = "load/idle.rs"]
mod idle;
#[path = "load/phoenix.rs"]
mod phoenix;
#[path = "load/proc.rs"]
mod proc;
#[path = "load/protocol.rs"]
mod protocol;
#[path = "load/report.rs"]
mod report;
#[path = "load/room.rs"]
mod room;
#[path = "load/servers.rs"]
mod servers;
#[path = "load/storm.rs"]
mod storm;
#[path = "load/vanish.rs"]
mod vanish;
#[path = "load/view.rs"]
mod view;
#[path = "load/world.rs"]
mod world;
#[path = "load/ws.rs"]
mod ws;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let json = match &command {
        Command::Storm(args) => args.common.json,
        Command::Churn(args) => args.common.json,
        Command::Idle(args) => args.common.json,
        Command::TwoNodes(args) => args.common.json,
        Command::Hold(args) => args.common.json,
        Command::Vanish(args) => args.common.json,
    };
    let report = match run(command) {
        Ok(report) => report,
        Err(e) => {
            eprintln!("load: {e}");
            return ExitCode::from(2);
        }
    };
    if json {
        eprint!("{}", report.table());
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(command: Command) -> Result<report::Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("runtime: {e}"))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let report = async {
            match command {
                Command::Storm(args) => storm::run(args).await,
                Command::Churn(args) => churn::run(args).await,
                Command::Idle(args) => idle::run(args).await,
                Command::TwoNodes(args) => churn::run_two_nodes(args).await,
                Command::Hold(args) => hold::run(args).await,
                Command::Vanish(args) => vanish::run(args).await,
            }
        };
        // Returning, rather than dying, stops the servers that were started.
        tokio::select! {
            report = report => report,
            told = told_to_stop() => Err(told),
        }
    })
}

/// Waits for a signal and says so.
async fn told_to_stop() -> String {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    "told to stop before the end".to_owned()
}
