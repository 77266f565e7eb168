//! `tamdao completion`: scripts for shells, made from the grammar itself.

use anyhow::Result;
use clap::CommandFactory;

use crate::app::App;
use crate::args::Cli;
use crate::problem::ExitStatus;

pub fn run(app: &App, shell: clap_complete::Shell) -> Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tamdao", &mut script);
    app.output.raw(&script)?;
    Ok(ExitStatus::Done)
}
