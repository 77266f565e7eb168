//! `tamdao vm start|stop|reboot|reset|pause|resume`: asks, then waits until the machine is so.

use anyhow::Result;
use tamdao_proto::v1::{
    PauseVmRequest, RebootVmRequest, ResetVmRequest, ResumeVmRequest, StartVmRequest, StopVmRequest, Vm,
    VmPhase,
};

use super::standard;
use crate::app::App;
use crate::args::{VmPowerArgs, VmRebootArgs, VmResetArgs, VmStopArgs, WaitArgs};
use crate::client::request_id;
use crate::problem::{ExitStatus, Problem};
use crate::resource::Resource;
use crate::wait::{Goal, Verdict, until};

/// Sends one verb; the fields that every verb has are the same.
macro_rules! send {
    ($app:expr, $name:expr, $request:ident $(, $field:ident: $value:expr)*) => {{
        let place = $app.place::<Vm>($name, false)?;
        let request = $request {
            agency: place.agency,
            name: place.name,
            request_id: request_id(),
            validate_only: false,
            $( $field: $value, )*
        };
        $app.client()?.ask(request).await.map_err(|problem| problem.about($name))?
    }};
}

pub async fn start(app: &App, args: &VmPowerArgs) -> Result<ExitStatus> {
    let vm = send!(app, &args.name, StartVmRequest);
    become_so(app, vm, &args.wait, VmPhase::Running, "starting").await
}

pub async fn stop(app: &App, args: &VmStopArgs) -> Result<ExitStatus> {
    if args.force {
        app.confirm(args.yes, &format!("stop vm {} by force, like pulling the plug", args.name))?;
    }
    let deadline_s = whole_seconds(args.deadline)?;
    let vm = send!(app, &args.name, StopVmRequest, force: args.force, deadline_s: deadline_s);
    become_so(app, vm, &args.wait, VmPhase::Stopped, "stopping").await
}

pub async fn pause(app: &App, args: &VmPowerArgs) -> Result<ExitStatus> {
    let vm = send!(app, &args.name, PauseVmRequest);
    become_so(app, vm, &args.wait, VmPhase::Paused, "pausing").await
}

pub async fn resume(app: &App, args: &VmPowerArgs) -> Result<ExitStatus> {
    let vm = send!(app, &args.name, ResumeVmRequest);
    become_so(app, vm, &args.wait, VmPhase::Running, "resuming").await
}

pub async fn reboot(app: &App, args: &VmRebootArgs) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    let before = Vm::fetch(app.client()?, &place).await.map_err(|problem| problem.about(&args.name))?;
    let deadline_s = whole_seconds(args.deadline)?;
    let vm = send!(app, &args.name, RebootVmRequest, deadline_s: deadline_s);
    if args.wait.no_wait {
        return standard::done(app, &vm, "rebooting");
    }
    let started = |vm: &Vm| vm.status.as_ref().and_then(|status| status.started_time);
    let before = started(&before);
    let goal = |vm: &Vm| match judge(vm, VmPhase::Running) {
        Verdict::Reached if started(vm) == before => Verdict::Going,
        verdict => verdict,
    };
    app.output.note(&format!("{}: rebooting", vm.name()));
    let vm = until(app, vm, &args.wait, Goal::State(&goal)).await?;
    standard::done(app, &vm, "rebooted")
}

pub async fn reset(app: &App, args: &VmResetArgs) -> Result<ExitStatus> {
    app.confirm(args.yes, &format!("reset vm {}, like its reset button", args.name))?;
    let vm = send!(app, &args.name, ResetVmRequest);
    standard::done(app, &vm, "reset was asked for")
}

async fn become_so(app: &App, vm: Vm, wait: &WaitArgs, phase: VmPhase, word: &str) -> Result<ExitStatus> {
    if wait.no_wait {
        return standard::done(app, &vm, word);
    }
    let vm = until(app, vm, wait, Goal::State(&|vm| judge(vm, phase))).await?;
    standard::done(app, &vm, "")
}

/// Reached when the phase is there and speaks of what was asked: the phase alone may still be the one from before.
pub fn judge(vm: &Vm, phase: VmPhase) -> Verdict {
    let status = vm.status.clone().unwrap_or_default();
    let generation = vm.metadata.as_ref().map_or(0, |metadata| metadata.generation);
    let acted_on = status.node.is_empty() || status.observed_generation >= generation;
    match status.phase() {
        present if present == phase && acted_on => Verdict::Reached,
        VmPhase::Failed | VmPhase::Deleting if acted_on => Verdict::Lost,
        _ => Verdict::Going,
    }
}

fn whole_seconds(time: Option<std::time::Duration>) -> Result<u32> {
    let Some(time) = time else { return Ok(0) };
    match u32::try_from(time.as_secs()) {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err(Problem::usage("--deadline must be a second at least")
            .hint("use --force to stop at once")
            .into()),
    }
}
