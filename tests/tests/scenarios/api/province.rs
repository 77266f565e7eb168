//! The province of deploy/examples/vinh-phuc, applied: all its VMs run, nothing is left to do, any node, rack or feed can
//! be taken out and the hardware of 2013 be emptied, and one agency can go without a trace on the others. `ci` takes a
//! part of the districts and `ci --long` the whole. How long planning and applying take is told and never asserted.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::Value;
use tamdao_tests::Result;
use tamdao_tests::figures::say;
use tamdao_tests::process::said;
use tamdao_tests::province::{Ended, FEEDS, OLD, Province, RACKS};

/// Set to take the whole province.
const WHOLE: &str = "TAMDAO_TEST_PROVINCE";
/// The part that is taken otherwise: two districts, a city among them.
const PART: &str = r#"districts=["phuc-yen", "tam-dao"]"#;
/// What ran on the old hardware before there was another.
const INHERITED: [&str; 3] = ["old-1", "old-2", "old-3"];
/// The agency that goes, and its row in the tables.
const GONE: &str = "tam-dao-bo-ly";
const ROW: &str = "\"bo-ly\"";

#[tokio::test]
async fn the_province_is_applied_maintained_and_loses_an_agency() -> Result<()> {
    let whole = std::env::var_os(WHOLE).is_some();
    let province = Province::start(if whole { &[] } else { &[PART] }).await?;
    let planned = province.ends("plan", &["--detailed-exitcode"], 2).await?;
    let size = summary(&planned.told)?;
    tell(&format!("plan from nothing ({size} resources)"), &planned);
    let applied = province.ends("apply", &["--yes", "--parallelism", "32"], 0).await?;
    tell(&format!("apply ({size} resources)"), &applied);
    ensure!(
        applied.told.contains(&format!("done: {size} added, 0 changed, 0 destroyed")),
        "{}",
        applied.told
    );
    all_run(&province).await?;
    pairs_are_apart(&province).await?;
    let again = province.ends("plan", &["--detailed-exitcode"], 0).await?;
    tell("plan again", &again);
    inherit(&province).await?;
    whatever_is_taken_out(&province).await?;
    an_agency_goes(&province).await?;
    province.cloud.done()
}

fn tell(what: &str, ended: &Ended) {
    say(&format!("province: {what}: {:.1} s", ended.took.as_secs_f64()));
}

/// How many resources a plan from nothing makes.
fn summary(told: &str) -> Result<usize> {
    let line = told.lines().find(|line| line.starts_with("Plan: ")).context("a plan has a summary")?;
    ensure!(line.ends_with("to add, 0 to change, 0 to destroy."), "{line}");
    Ok(line.split(' ').nth(1).unwrap_or_default().parse()?)
}

async fn all_run(province: &Province) -> Result<()> {
    let vms = province.vms().await?;
    ensure!(vms.len() > 100, "there are {} VMs", vms.len());
    let still: Vec<_> = vms.iter().filter(|vm| vm["status"]["phase"] != "VM_PHASE_RUNNING").collect();
    ensure!(still.is_empty(), "these do not run: {still:?}");
    Ok(())
}

/// The two of each database stand in different racks and on different feeds.
async fn pairs_are_apart(province: &Province) -> Result<()> {
    let vms = province.vms().await?;
    let place = |vm: &Value| -> Result<(String, usize)> {
        let node = vm["status"]["node"].as_str().context("it has a node")?;
        let (rack, at) = node.rsplit_once('-').context("a node is named by its rack")?;
        Ok((rack.to_owned(), at.parse::<usize>()? % FEEDS.len()))
    };
    let mut pairs = 0;
    for first in &vms {
        let name = first["metadata"]["name"].as_str().unwrap_or_default();
        let Some(base) = name.strip_prefix("db-").and_then(|base| base.strip_suffix("-a")) else { continue };
        let twin = format!("db-{base}-b");
        let twin = vms.iter().find(|vm| vm["metadata"]["name"] == *twin).context("it has a twin")?;
        let (one, other) = (place(first)?, place(twin)?);
        ensure!(one.0 != other.0 && one.1 != other.1, "{base}: {one:?} and {other:?}");
        ensure!(one.0 != OLD && other.0 != OLD, "{base} is on the hardware of 2013");
        pairs += 1;
    }
    ensure!(pairs == 15, "13 databases of the centre and 2 of the office are in pairs, not {pairs}");
    Ok(())
}

/// Puts VMs on the hardware of 2013, as they were there before all else: the new nodes are closed to them, and so
/// nothing can be guarded meanwhile.
async fn inherit(province: &Province) -> Result<()> {
    let cli = &province.cloud.cli;
    province.guard(false).await?;
    let new = RACKS.iter().filter(|(rack, ..)| *rack != OLD);
    let new: Vec<String> =
        new.flat_map(|(rack, count, _)| (0..*count).map(move |at| format!("{rack}-{at}"))).collect();
    for node in &new {
        cli.run(&["node", "cordon", node]).await?;
    }
    for name in INHERITED {
        let size = ["--vcpus", "1", "--memory", "4G", "--disk", "size=20G,pool=san"];
        cli.run(&[&["vm", "create", name, "-a", "so-noi-vu"][..], &size].concat()).await?;
    }
    for node in &new {
        cli.run(&["node", "uncordon", node]).await?;
    }
    province.guard(true).await?;
    for vm in province.vms().await? {
        let name = vm["metadata"]["name"].as_str().unwrap_or_default();
        let node = vm["status"]["node"].as_str().unwrap_or_default();
        ensure!(!INHERITED.contains(&name) || node.starts_with(OLD), "{name} is on {node}");
    }
    Ok(())
}

/// Each node, rack and feed is lost on paper and drained on paper, and so is the hardware of 2013.
async fn whatever_is_taken_out(province: &Province) -> Result<()> {
    let cli = &province.cloud.cli;
    let survived = cli.attempt(&["simulate", "survive", "--guarded", "node,rack,feed"]).await?;
    ensure!(survived.status.success(), "{}", said(&survived));
    for (rack, count, _) in RACKS {
        for at in 0..count {
            let node = format!("{rack}-{at}");
            let plan = cli.attempt(&["node", "drain", &node, "--dry-run"]).await?;
            ensure!(plan.status.success(), "{node}: {}", said(&plan));
        }
        domain(province, &format!("rack={rack}"), &["--unguarded"]).await?;
    }
    // While half of the power is away nothing guards against the loss of the other half.
    for feed in FEEDS {
        domain(province, &format!("feed={feed}"), &["--unguarded"]).await?;
    }
    // The old rack goes with every guarantee kept.
    let told = domain(province, &format!("rack={OLD}"), &[]).await?;
    for name in INHERITED {
        ensure!(told.contains(name), "{name} is not in the plan: {told}");
    }
    Ok(())
}

async fn domain(province: &Province, name: &str, more: &[&str]) -> Result<String> {
    let drain = ["failure-domain", "drain", name, "--dry-run", "-o", "json"];
    let plan = province.cloud.cli.attempt(&[&drain, more].concat()).await?;
    ensure!(plan.status.success(), "{name}: {}", said(&plan));
    Ok(said(&plan))
}

/// A row is taken out of the tables: all that the agency had goes, and nothing else changes.
async fn an_agency_goes(province: &Province) -> Result<()> {
    let others = |vms: &[Value]| -> BTreeSet<String> {
        let others = vms.iter().filter(|vm| vm["metadata"]["agency"] != GONE);
        others.map(|vm| format!("{} {}", vm["metadata"]["id"], vm["status"]["node"])).collect()
    };
    let before = province.vms().await?;
    ensure!(before.iter().any(|vm| vm["metadata"]["agency"] == GONE), "{GONE} has no VM");
    let file = province.folder.path().join("communes.tf");
    let text = std::fs::read_to_string(&file)?;
    let rest: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with(ROW)).collect();
    ensure!(rest.len() + 1 == text.lines().count(), "one row is taken out");
    std::fs::write(&file, rest.join("\n") + "\n")?;

    let refused = province.ends("apply", &["--yes"], 1).await?;
    let portal = format!("vm.{GONE}/portal");
    ensure!(refused.told.contains(&format!("--allow-data-loss '{portal}'")), "{}", refused.told);
    let applied = province.ends("apply", &["--yes", "--allow-data-loss", &portal], 0).await?;
    tell("one agency goes", &applied);
    province.ends("plan", &["--detailed-exitcode"], 0).await?;
    let gone = province.cloud.cli.attempt(&["agency", "get", GONE]).await?;
    ensure!(
        gone.status.code() == Some(1) && said(&gone).contains("there is no agency named"),
        "{}",
        said(&gone)
    );
    let after = province.vms().await?;
    ensure!(after.iter().all(|vm| vm["metadata"]["agency"] != GONE), "{GONE} still has a VM");
    ensure!(others(&before) == others(&after), "another agency's VM is not where it was");
    Ok(())
}
