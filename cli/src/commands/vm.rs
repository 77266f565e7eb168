//! `tamdao vm`: the verbs that read or edit. Making, power, console and log have their own modules.

use anyhow::Result;
use serde_json::json;
use tamdao_proto::v1::{
    ExplainVmRequest, HandOverVmRequest, ResizeVmRequest, Vm, VmPhase, VmSpec, WatchEvent,
};

use super::{console, moves, standard, vm_create, vm_history, vm_log, vm_power};
use crate::app::{App, now_s};
use crate::args::{
    NameArg, Run, VmHandOverArgs, VmPlaceArgs, VmResizeArgs, VmUpdateArgs, VmVerb, VmWatchArgs,
};
use crate::client::request_id;
use crate::given;
use crate::output::{Cell, Table, Tone};
use crate::problem::ExitStatus;
use crate::quantity::{clock, mib};
use crate::resource::{Place, Resource};
use crate::view::{View, tone_of};
use crate::wait::{Goal, Verdict, until};
use crate::watch::Watch;

pub async fn run(app: &App, verb: VmVerb) -> Result<ExitStatus> {
    match verb {
        VmVerb::List(args) => standard::list::<Vm>(app, &args, false).await,
        VmVerb::Get(args) => standard::get::<Vm>(app, &args, false).await,
        VmVerb::Create(args) => vm_create::create(app, &args).await,
        VmVerb::Update(args) => update(app, &args).await,
        VmVerb::Start(args) => vm_power::start(app, &args).await,
        VmVerb::Stop(args) => vm_power::stop(app, &args).await,
        VmVerb::Reboot(args) => vm_power::reboot(app, &args).await,
        VmVerb::Reset(args) => vm_power::reset(app, &args).await,
        VmVerb::Pause(args) => vm_power::pause(app, &args).await,
        VmVerb::Resume(args) => vm_power::resume(app, &args).await,
        VmVerb::Resize(args) => resize(app, &args).await,
        VmVerb::HandOver(args) => hand_over(app, &args).await,
        VmVerb::Migrate(args) => moves::migrate(app, &args).await,
        VmVerb::Delete(args) => standard::delete::<Vm>(app, &args.delete, false, args.force).await,
        VmVerb::Explain(args) => explain(app, &args).await,
        VmVerb::History(args) => vm_history::history(app, &args).await,
        VmVerb::Console(args) => console::console(app, &args).await,
        VmVerb::Log(args) => vm_log::log(app, &args).await,
        VmVerb::Watch(args) => watch(app, &args).await,
    }
}

async fn update(app: &App, args: &VmUpdateArgs) -> Result<ExitStatus> {
    let keys = given::ssh_keys(&args.ssh_keys)?;
    let changed = standard::changed::<Vm>(app, &args.edit, false, |vm, mask| {
        let spec = vm.spec.get_or_insert_default();
        if let Some(run) = args.run {
            spec.set_run(run.into());
            mask.push("spec.run".to_owned());
        }
        if let Some(protection) = args.delete_protection {
            spec.delete_protection = protection;
            mask.push("spec.delete_protection".to_owned());
        }
        if !keys.is_empty() {
            spec.ssh_keys.clone_from(&keys);
            mask.push("spec.ssh_keys".to_owned());
        }
        mask.extend(set_place(spec, &args.place)?.iter().map(|field| format!("spec.{field}")));
        Ok(())
    });
    let Some(vm) = changed.await? else { return Ok(ExitStatus::Done) };
    if args.wait.no_wait {
        return standard::done(app, &vm, "updated");
    }
    let generation = vm.metadata.as_ref().map_or(0, |metadata| metadata.generation);
    let goal = |vm: &Vm| match args.run {
        Some(Run::Always) => vm_power::judge(vm, VmPhase::Running),
        Some(Run::Stopped) => vm_power::judge(vm, VmPhase::Stopped),
        // A guest that has shut itself down may stay so, and one that runs goes on.
        Some(Run::OnFailure) | None => acted_on(vm, generation),
    };
    let vm = until(app, vm, &args.wait, Goal::State(&goal)).await?;
    standard::done(app, &vm, "updated")
}

/// Writes what decides the place, and says which fields it wrote.
pub fn set_place(spec: &mut VmSpec, args: &VmPlaceArgs) -> Result<Vec<&'static str>> {
    let mut fields = Vec::new();
    if !args.node_labels.is_empty() {
        given::change_pairs("node-label", &mut spec.node_labels, &args.node_labels)?;
        fields.push("node_labels");
    }
    if !args.forbidden_node_labels.is_empty() {
        let labels = &mut spec.forbidden_node_labels;
        given::change_pairs("forbid-node-label", labels, &args.forbidden_node_labels)?;
        fields.push("forbidden_node_labels");
    }
    if let Some(priority) = args.priority {
        spec.priority = priority;
        fields.push("priority");
    }
    if !args.groups.is_empty() {
        given::change_names(&mut spec.placement_groups, &args.groups);
        fields.push("placement_groups");
    }
    if let Some(class) = &args.isolation {
        class.clone_into(&mut spec.isolation_class);
        fields.push("isolation_class");
    }
    if let Some(what) = args.on_node_loss {
        spec.set_on_node_loss(what.into());
        fields.push("on_node_loss");
    }
    if let Some(what) = args.maintenance {
        spec.set_maintenance(what.into());
        fields.push("maintenance");
    }
    Ok(fields)
}

async fn resize(app: &App, args: &VmResizeArgs) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    let client = app.client()?;
    let before = Vm::fetch(client, &place).await.map_err(|problem| problem.about(&args.name))?;
    let spec = before.spec.clone().unwrap_or_default();
    let now = before.status.clone().unwrap_or_default();
    // Half a size keeps the other half as it is.
    let keep = |given: Option<u32>, spec: u32, now: u32| given.unwrap_or(if now == 0 { spec } else { now });
    let request = ResizeVmRequest {
        agency: place.agency.clone(),
        name: place.name.clone(),
        request_id: request_id(),
        validate_only: args.dry_run,
        vcpus: if args.flavor.is_some() { 0 } else { keep(args.vcpus, spec.vcpus, now.vcpus) },
        memory_mib: if args.flavor.is_some() {
            0
        } else {
            keep(args.memory, spec.memory_mib, now.memory_mib)
        },
        flavor: args.flavor.clone().unwrap_or_default(),
        revision: 0,
    };
    let vm = client.ask(request).await.map_err(|problem| problem.about(&args.name))?;
    if args.dry_run {
        app.output.note(&format!("dry run: vm {place} would become so; nothing was changed"));
        standard::show_planned(app, Some(&before), &vm)?;
        return Ok(ExitStatus::Done);
    }
    if args.wait.no_wait {
        return standard::done(app, &vm, "takes its new size");
    }
    let generation = vm.metadata.as_ref().map_or(0, |metadata| metadata.generation);
    let vm = until(app, vm, &args.wait, Goal::State(&|vm| acted_on(vm, generation))).await?;
    let (spec, status) = (vm.spec.clone().unwrap_or_default(), vm.status.clone().unwrap_or_default());
    let (vcpus, memory) = (status.vcpus, status.memory_mib);
    let differs =
        (spec.vcpus != 0 && spec.vcpus != vcpus) || (spec.memory_mib != 0 && spec.memory_mib != memory);
    let word = match differs && status.phase() == VmPhase::Running {
        true => "takes its new size at its next start".to_owned(),
        false => format!("has {vcpus} vCPUs, {}", mib(memory.into())),
    };
    standard::done(app, &vm, &word)
}

async fn hand_over(app: &App, args: &VmHandOverArgs) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    if !args.dry_run {
        app.confirm(args.yes, &format!("give vm {place} with its disks to agency {}", args.to))?;
    }
    let request = HandOverVmRequest {
        agency: place.agency.clone(),
        name: place.name.clone(),
        request_id: request_id(),
        validate_only: args.dry_run,
        to_agency: args.to.clone(),
        new_name: args.new_name.clone().unwrap_or_default(),
        revision: 0,
    };
    let vm = app.client()?.ask(request).await.map_err(|problem| problem.about(&args.name))?;
    if args.dry_run {
        app.output.note(&format!("dry run: vm {place} can be handed over; nothing was changed"));
        return Ok(ExitStatus::Done);
    }
    standard::done(app, &vm, "handed over")
}

/// Reached when what was asked for by this generation has been acted on.
fn acted_on(vm: &Vm, generation: u64) -> Verdict {
    let status = vm.status.clone().unwrap_or_default();
    match status.phase() {
        VmPhase::Failed => Verdict::Lost,
        _ if status.node.is_empty() || status.observed_generation >= generation => Verdict::Reached,
        _ => Verdict::Going,
    }
}

async fn explain(app: &App, args: &NameArg) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    let request = ExplainVmRequest { agency: place.agency, name: place.name };
    let answer = app.client()?.ask(request).await;
    let answer = answer.map_err(|problem| problem.about(&args.name))?;
    if app.output.is_machine() {
        app.output.value(&answer)?;
        return Ok(ExitStatus::Done);
    }
    app.output.line(&answer.summary)?;
    if !answer.on_node_loss.is_empty() {
        app.output.line(&format!("if its node is lost, it {}", answer.on_node_loss))?;
    }
    if !answer.movable.is_empty() {
        app.output.line(&format!("it {}", answer.movable))?;
    }
    let rejections = answer.rejections.iter().map(|rejection| {
        vec![Cell::from(rejection.nodes), Cell::from(&rejection.reason), Cell::from(&rejection.message)]
    });
    let rejections = Table { headers: vec!["NODES", "REASON", "MESSAGE"], rows: rejections.collect() };
    app.output.section("Ruled out", &rejections)?;
    let candidates = answer.candidates.iter().map(|verdict| {
        let (word, tone) = if verdict.fits { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
        let score = if verdict.fits { format!("{:.1}", verdict.score) } else { String::new() };
        vec![
            Cell::from(&verdict.node),
            Cell::toned(word, tone),
            Cell::from(score),
            Cell::from(&verdict.reason),
        ]
    });
    let candidates = Table { headers: vec!["NODE", "FITS", "SCORE", "REASON"], rows: candidates.collect() };
    app.output.section("Nodes", &candidates)?;
    if !answer.hints.is_empty() {
        app.output.line("")?;
    }
    for hint in &answer.hints {
        app.output.line(&format!("hint: {hint}"))?;
    }
    Ok(ExitStatus::Done)
}

async fn watch(app: &App, args: &VmWatchArgs) -> Result<ExitStatus> {
    let place = match &args.name {
        Some(name) => {
            let place = app.place::<Vm>(name, false)?;
            // A watch of a name that is not there would be silent for ever.
            Vm::fetch(app.client()?, &place).await.map_err(|problem| problem.about(name))?;
            place
        }
        None => Place { agency: app.agency_unless(args.all_agencies)?, name: String::new() },
    };
    let mut watch = Watch::<Vm>::new(app.client()?, place, &args.labels, String::new());
    let mut told = std::collections::HashMap::new();
    loop {
        let change = watch.next().await?;
        if app.output.is_machine() {
            let message =
                json!({"event": change.event.as_str_name(), "vm": change.resource, "cursor": change.cursor});
            app.output.stream_value(&message)?;
            continue;
        }
        let Some(vm) = change.resource else { continue };
        let story = if change.event == WatchEvent::Deleted { "gone".to_owned() } else { vm.story() };
        let place = vm.place().to_string();
        // A watch that began anew tells the present state again.
        if told.insert(place.clone(), story.clone()).is_none_or(|before| before != story) {
            let tone = tone_of(&vm.phase());
            app.output.bare(&[Cell::from(clock(now_s())), Cell::from(place), Cell::toned(story, tone)])?;
        }
    }
}

impl From<crate::args::NodeLoss> for tamdao_proto::v1::OnNodeLoss {
    fn from(what: crate::args::NodeLoss) -> Self {
        match what {
            crate::args::NodeLoss::Evacuate => Self::Evacuate,
            crate::args::NodeLoss::Stay => Self::Stay,
        }
    }
}

impl From<crate::args::Maintenance> for tamdao_proto::v1::MaintenancePolicy {
    fn from(what: crate::args::Maintenance) -> Self {
        match what {
            crate::args::Maintenance::Migrate => Self::Migrate,
            crate::args::Maintenance::ShutDown => Self::ShutDown,
            crate::args::Maintenance::Block => Self::Block,
        }
    }
}

impl From<crate::args::Run> for tamdao_proto::v1::RunPolicy {
    fn from(run: crate::args::Run) -> Self {
        match run {
            crate::args::Run::Always => Self::Always,
            crate::args::Run::OnFailure => Self::OnFailure,
            crate::args::Run::Stopped => Self::Stopped,
        }
    }
}
