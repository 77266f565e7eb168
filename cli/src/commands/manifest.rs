//! `tamdao plan|apply|destroy|export|validate|fmt`: manifests against the cloud. What they mean is decided in the crate
//! `tamdao-manifests`; here files are read, the cloud is asked (`live`), and plans are carried out (`carry`).

mod carry;
mod export;
mod files;
mod live;
mod note;
mod preview;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use tamdao_manifests::{Faulty, File, Given, Inputs, Live, Manifest, Plan, Wish};

use crate::app::App;
use crate::args::{ApplyArgs, CarryArgs, DestroyArgs, FmtArgs, ManifestArgs, PlanArgs};
use crate::output::Tone;
use crate::problem::{ExitStatus, Problem, problem_of};
use crate::quantity::count;

pub use export::export;
pub(crate) use live::{each_kind, listed};
pub(crate) use note::{listed as applied, place_of};

/// A manifest with what is given to it.
struct Work {
    manifest: Manifest,
    given: BTreeMap<String, Given>,
    agency: String,
    folder: std::path::PathBuf,
}

impl Work {
    fn new(args: &ManifestArgs, agency: String) -> Result<Self> {
        let (folder, document) = files::of_what(&args.dir);
        let mut load = |dir: &str| match &document {
            // It knows no other directory.
            Some(path) => Ok(vec![files::one(path, path.display().to_string())?]),
            None => files::of(&folder, dir),
        };
        let manifest = Manifest::read(&mut load).map_err(told)?;
        Ok(Self { manifest, given: files::given(args)?, agency, folder })
    }

    /// Asks something of the manifest with what the cloud has.
    fn with<T>(
        &self,
        live: &Live,
        ask: impl FnOnce(&Inputs<'_>) -> Result<T, Vec<tamdao_manifests::Fault>>,
    ) -> Result<T> {
        let read = |path: &str| files::beside(&self.folder, path);
        let inputs = Inputs { given: self.given.clone(), agency: &self.agency, live, read: &read };
        ask(&inputs).map_err(|faults| self.faulty(&faults))
    }

    fn faulty(&self, faults: &[tamdao_manifests::Fault]) -> anyhow::Error {
        faults_told(&self.manifest.files, faults)
    }

    fn stack(&self) -> Result<&str> {
        self.manifest.stack().map_err(|fault| self.faulty(&[fault]))
    }
}

fn told(faulty: Faulty) -> anyhow::Error {
    faults_told(&faulty.files, &faulty.faults)
}

fn faults_told(files: &[File], faults: &[tamdao_manifests::Fault]) -> anyhow::Error {
    let faults = tamdao_manifests::in_order(faults);
    let problem = Problem::failed(format!("the manifest has {}", count(faults.len(), "fault")));
    let text = tamdao_manifests::tell(files, &faults);
    text.lines().fold(problem, |problem, line| problem.detail(line)).into()
}

/// `plan`.
pub async fn plan(app: &App, args: &PlanArgs) -> Result<ExitStatus> {
    match planned(app, args).await {
        Ok(plan) => {
            show(app, &plan)?;
            let changes = args.detailed_exitcode && !plan.is_empty();
            Ok(if changes { ExitStatus::Changes } else { ExitStatus::Done })
        }
        // Exit code 2 would say that there are changes.
        Err(error) if args.detailed_exitcode => {
            Err(Problem { exit: ExitStatus::Failed, ..problem_of(error) }.into())
        }
        Err(error) => Err(error),
    }
}

async fn planned(app: &App, args: &PlanArgs) -> Result<Plan> {
    let work = Work::new(&args.manifest, app.agency()?.to_owned())?;
    let wish = Wish { adopt: set(&args.adopt), destroy: args.destroy, ..Wish::default() };
    Ok(decided(app, &work, wish).await?.0)
}

fn set(given: &[String]) -> BTreeSet<String> {
    given.iter().cloned().collect()
}

/// The plan, and the cloud that it was made for.
async fn decided(app: &App, work: &Work, mut wish: Wish) -> Result<(Plan, Live)> {
    let stack = work.stack()?.to_owned();
    let desired = work.with(&Live::new(), |inputs| tamdao_manifests::expand(&work.manifest, inputs))?;
    let live = live::seen(app, &stack, &desired).await?;
    let desired = work.with(&live, |inputs| tamdao_manifests::expand(&work.manifest, inputs))?;
    wish.user_data_differs = live::other_user_data(app, &desired, &live).await?;
    let mut plan = work.with(&live, |inputs| tamdao_manifests::plan(&work.manifest, inputs, &wish))?;
    plan.preview = preview::ask(app, &plan).await;
    Ok((plan, live))
}

fn show(app: &App, plan: &Plan) -> Result<()> {
    if app.output.is_machine() {
        return app.output.value(plan);
    }
    app.output.plan(&tamdao_manifests::show(plan))
}

/// `apply`.
pub async fn apply(app: &App, args: &ApplyArgs) -> Result<ExitStatus> {
    let work = Work::new(&args.manifest, app.agency()?.to_owned())?;
    let wish = Wish { adopt: set(&args.adopt), ..Wish::default() };
    carried(app, &work, wish, &args.carry, "apply this plan").await
}

/// `destroy`.
pub async fn destroy(app: &App, args: &DestroyArgs) -> Result<ExitStatus> {
    let work = Work::new(&args.manifest, app.agency()?.to_owned())?;
    let question = format!("destroy all that stack {} has", work.stack()?);
    carried(app, &work, Wish { destroy: true, ..Wish::default() }, &args.carry, &question).await
}

async fn carried(app: &App, work: &Work, wish: Wish, args: &CarryArgs, question: &str) -> Result<ExitStatus> {
    let (plan, live) = decided(app, work, wish).await?;
    if !app.output.is_machine() {
        app.output.plan(&tamdao_manifests::show(&plan))?;
    }
    let withheld: Vec<_> = plan.withheld(&set(&args.allow_data_loss)).cloned().collect();
    if !withheld.is_empty() {
        let problem = Problem::failed(format!(
            "{} would lose data; nothing was changed",
            count(withheld.len(), "resource")
        ));
        let problem = withheld.iter().fold(problem, |problem, change| {
            problem.detail(format!("{}: {}", change.address, change.data_loss))
        });
        let flags: Vec<_> =
            withheld.iter().map(|change| format!("--allow-data-loss '{}'", change.address)).collect();
        return Err(problem.hint(format!("if it shall be lost, add {}", flags.join(" "))).into());
    }
    if plan.is_empty() {
        note::note(app, &plan, &live, &note::Outcomes::default(), true).await;
        return finished(app, &plan);
    }
    app.confirm(args.yes, question)?;
    let steps = tamdao_manifests::steps(&plan).map_err(|fault| work.faulty(&[fault]))?;
    let live = carry::out(app, work, &plan, steps, live, args).await?;
    let summary = plan.summary;
    app.output.note(&app.output.toned(
        &format!("done: {} added, {} changed, {} destroyed", summary.add, summary.change, summary.destroy),
        Tone::Good,
    ));
    if plan.outputs.is_empty() || app.output.is_machine() {
        return finished(app, &plan);
    }
    // What was known only after apply is known now.
    let expanded = work.with(&live, |inputs| tamdao_manifests::expand(&work.manifest, inputs))?;
    let outputs = expanded.outputs.into_iter().map(|(name, (value, sensitive))| {
        let shown = if sensitive { "(sensitive)".into() } else { value.to_json() };
        (name, shown)
    });
    app.output.raw(tamdao_manifests::outputs(&outputs.collect()).as_bytes())?;
    Ok(ExitStatus::Done)
}

fn finished(app: &App, plan: &Plan) -> Result<ExitStatus> {
    if app.output.is_machine() {
        app.output.value(plan)?;
    }
    Ok(ExitStatus::Done)
}

/// `validate`: no cloud is asked.
pub fn validate(app: &App, args: &ManifestArgs) -> Result<ExitStatus> {
    // Whoever owns what names no agency does not matter to whether it is right.
    let agency = app.global.agency.clone().unwrap_or_else(|| "agency".to_owned());
    let work = Work::new(args, agency)?;
    let live = Live::new();
    let expanded = work.with(&live, |inputs| tamdao_manifests::validate(&work.manifest, inputs))?;
    app.output.note(&format!("the manifest is right: {}", count(expanded.resources.len(), "resource")));
    Ok(ExitStatus::Done)
}

/// `fmt`.
pub fn fmt(app: &App, args: &FmtArgs) -> Result<ExitStatus> {
    let mut other = false;
    for path in files::below(&args.paths)? {
        let text = crate::given::text(&path)?;
        let file = File { name: path.display().to_string(), text };
        let written = tamdao_manifests::format(&file)
            .map_err(|fault| faults_told(std::slice::from_ref(&file), &[fault]))?;
        if written == file.text {
            continue;
        }
        other = true;
        if !args.check {
            std::fs::write(&path, written)
                .map_err(|error| Problem::failed(format!("cannot write {}: {error}", path.display())))?;
        }
        app.output.line(&file.name)?;
    }
    Ok(if args.check && other { ExitStatus::Failed } else { ExitStatus::Done })
}
