//! The command line of Tam Đảo. It speaks `tamdao.v1` and nothing else: whatever it can do, any other program can do by
//! the same contract. `args` is the grammar, `commands` does one thing each, `output` is the only writer, `client` finds
//! a controller that answers. There is no state besides the configuration file.

mod app;
mod args;
mod bar;
mod client;
mod commands;
mod context;
mod given;
mod login;
mod output;
mod problem;
mod progress;
mod quantity;
mod resource;
mod view;
mod wait;
mod watch;

use clap::Parser;

pub use problem::ExitStatus;

use app::App;
use args::{Cli, Format};
use output::Output;
use problem::{Problem, problem_of};

/// Runs the command line of this process.
pub fn run() -> ExitStatus {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout, the rest to stderr, as clap knows; a closed stdout is no failure.
            let _ = error.print();
            return if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Done };
        }
    };
    let app = App::new(cli.global);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let problem = Problem::usage(format!("the command cannot begin: {error}"));
            Output::new(Format::Table, false).problem(&problem);
            return problem.exit;
        }
    };
    let result = runtime.block_on(commands::run(&app, cli.noun));
    // A read of stdin or a file may still be open; it must not keep the command from ending.
    runtime.shutdown_background();
    match result {
        Ok(status) => status,
        Err(error) if closed_stdout(&error) => ExitStatus::Done,
        Err(error) => {
            let problem = problem_of(error);
            app.output.problem(&problem);
            problem.exit
        }
    }
}

/// Whoever reads our output has seen enough, as in `tamdao vm list | head`.
fn closed_stdout(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}
