//! Commands, configuration and wiring, without logic of their own. Start at [`run`].

mod args;
mod bench;
mod chat;
mod config;
mod export;
#[cfg(test)]
mod fuzz_tests;
mod import;
mod inspect;
mod migrate;
mod offline;
mod progress;
mod serve;
mod setup;
mod show;

pub use args::Arguments;

use std::process::ExitCode;

use args::Command;

/// Parses the command line, runs the command, and reports its error.
pub fn run() -> ExitCode {
    match config::parse(std::env::args_os()).and_then(dispatch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("tessera: {error:#}");
            tracing::debug!("{message}");
            progress::say_error(&message);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { common, command } = arguments;
    match command {
        Command::Serve(serve) => serve::run(&common, &serve),
        Command::Fit(fit) => offline::fit(&common, &fit),
        Command::Profile(profile) => offline::profile(&common, &profile),
        Command::Evaluate(evaluate) => offline::evaluate(&common, &evaluate),
        Command::Plan(plan) => show::plan(&common, &plan),
        Command::Front(front) => show::front(&common, &front),
        Command::Inspect(inspect) => inspect::inspect(&common, &inspect),
        Command::Import(import) => import::import(&common, &import),
        Command::Bench(bench) => bench::run(&common, &bench),
        Command::Chat(chat) => chat::run(&common, &chat),
        Command::Migrate(migrate) => migrate::migrate(&common, &migrate),
        Command::Export(export) => export::export(&common, &export),
    }
}
