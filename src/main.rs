//! The `rollcall` program: reads the settings and runs the server until it is told to stop.

use std::process::ExitCode;

use rollcall::config;
use rollcall::{logging, server};

fn main() -> ExitCode {
    let config = match config::read() {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    logging::start(&config);
    let listeners = match server::bind(&config.listen) {
        Ok(listeners) => listeners,
        Err(error) => return fail(&error),
    };
    match actix::System::new().block_on(server::run(config, listeners, server::stop_signal())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// One line that says what is wrong.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("rollcall: {error}");
    ExitCode::FAILURE
}
