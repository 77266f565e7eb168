//! What agencies hold, against what they may hold.
//!
//! Its invariants: an agency's usage is the sum over its own VMs and volumes, rewritten with whatever changes it; of a
//! limited measure, usage and the children's limits never exceed the limit, and every child has a limit too. So a
//! request is judged by its own agency's records alone. Deliberately absent: agencies above, which have given away what
//! they have given.

use tamdao_model::AgencyId;
use tamdao_model::agency::{Agency, AgencyState, Usage};
use tamdao_model::limits::AGENCY_DEPTH;
use tamdao_model::quota::{Amounts, Measure};
use tamdao_store::typed::Draft;
use tamdao_store::view::{Row, View};
use tonic::Code;

use crate::refusal::Refusal;

/// Counts what is to be made or changed in the agency that owns it: `before` of it is counted already.
///
/// # Errors
/// When it becomes more and the agency is not active, or has less free.
pub fn count(draft: &mut Draft, agency: AgencyId, before: &Amounts, after: &Amounts) -> Result<(), Refusal> {
    let more = after.minus(before);
    if more != Amounts::default() {
        check_open(draft.view(), agency)?;
        check_fits(draft.view(), agency, &more)?;
    }
    let usage = draft.view().usage(agency);
    draft.put(Usage { agency, amounts: usage.amounts.minus(before).plus(after) });
    Ok(())
}

/// Counts no longer what is gone.
pub fn release(draft: &mut Draft, agency: AgencyId, amounts: &Amounts) {
    let usage = draft.view().usage(agency);
    draft.put(Usage { agency, amounts: usage.amounts.minus(amounts) });
}

/// The agencies right below one.
pub fn children(view: &View, agency: AgencyId) -> impl Iterator<Item = &Row<Agency>> {
    view.agencies.iter().filter(move |row| row.spec.parent == Some(agency))
}

/// An agency and those above it, itself first.
pub fn line(view: &View, agency: AgencyId) -> impl Iterator<Item = &Row<Agency>> {
    let up = |row: &&Row<Agency>| row.spec.parent.and_then(|parent| view.agencies.get(parent));
    std::iter::successors(view.agencies.get(agency), up).take(AGENCY_DEPTH)
}

/// What the children's quotas take.
pub fn given(view: &View, agency: AgencyId) -> Amounts {
    children(view, agency)
        .flat_map(|child| child.spec.quota.iter().map(|(measure, most)| (measure.clone(), *most)))
        .collect()
}

/// What is left of each limit.
pub fn free(view: &View, agency: &Agency) -> Vec<(Measure, u64)> {
    let held = view.usage(agency.id()).amounts.plus(&given(view, agency.id()));
    let limits = agency.spec.quota.iter();
    limits.map(|(measure, most)| (measure.clone(), most.saturating_sub(held.of(measure)))).collect()
}

/// Refuses what is new or larger in an agency that is not active.
pub fn check_open(view: &View, agency: AgencyId) -> Result<(), Refusal> {
    match line(view, agency).find(|row| row.spec.state != AgencyState::Active) {
        None => Ok(()),
        Some(closed) => Err(closed_by(closed, "nothing new can be made")),
    }
}

/// Refuses what would run in an agency that is archived.
pub fn check_may_run(view: &View, agency: AgencyId) -> Result<(), Refusal> {
    match line(view, agency).find(|row| row.spec.state == AgencyState::Archived) {
        None => Ok(()),
        Some(closed) => Err(closed_by(closed, "nothing can be started")),
    }
}

fn closed_by(agency: &Agency, what: &str) -> Refusal {
    let (name, word, reason) = match agency.spec.state {
        AgencyState::Archived => (&agency.meta.name, "archived", "AgencyArchived"),
        AgencyState::Active | AgencyState::Frozen => (&agency.meta.name, "frozen", "AgencyFrozen"),
    };
    let message = format!("agency {:?} is {word}: {what}", name.as_str());
    Refusal::precondition(reason, message)
        .hint(format!("tamdao agency update {name} --state active ends that"))
}

fn check_fits(view: &View, agency: AgencyId, more: &Amounts) -> Result<(), Refusal> {
    let Some(row) = view.agencies.get(agency).filter(|row| !row.spec.quota.is_empty()) else { return Ok(()) };
    let (used, given) = (view.usage(agency).amounts, given(view, agency));
    let excess = row.spec.quota.iter().find_map(|(measure, most)| {
        let (used, given, asked) = (used.of(measure), given.of(measure), more.of(measure));
        let free = most.saturating_sub(used.saturating_add(given));
        (asked > free).then(|| exceeded(row, measure, Excess { most: *most, used, given, asked, free }))
    });
    excess.map_or(Ok(()), Err)
}

struct Excess {
    most: u64,
    used: u64,
    given: u64,
    asked: u64,
    free: u64,
}

fn exceeded(agency: &Agency, measure: &Measure, excess: Excess) -> Refusal {
    let Excess { most, used, given, asked, free } = excess;
    let name = agency.meta.name.as_str();
    let children = if given > 0 { format!(", {given} given to agencies below") } else { String::new() };
    let message = format!(
        "agency {name:?} may have {most} {measure}: {used} used{children}, {free} free, {asked} asked for"
    );
    Refusal::new(Code::ResourceExhausted, "QuotaExceeded", message)
        .hint(format!("tamdao agency usage {name} shows what takes it"))
        .fact("agency", name)
        .fact("measure", measure)
        .fact("limit", most)
        .fact("used", used)
        .fact("given", given)
        .fact("free", free)
        .fact("asked", asked)
}

/// Whether an agency, new or changed, fits into the tree: where it stands, and what of its parent's quota it takes.
/// `view` may hold the agency as it was.
///
/// # Errors
/// Names the field that is wrong, or the limit of the parent that leaves too little.
pub fn check_agency(view: &View, agency: &Agency) -> Result<(), Refusal> {
    check_place(view, agency)?;
    let (used, given) = (view.usage(agency.id()).amounts, given(view, agency.id()));
    for (measure, most) in &agency.spec.quota {
        let field = format!("agency.spec.quota[\"{measure}\"]");
        if let Some(child) = children(view, agency.id()).find(|child| !child.spec.quota.contains_key(measure))
        {
            let child = child.meta.name.as_str();
            let message = format!("limits what agency {child:?} below it has without a limit");
            return Err(Refusal::field(field, message)
                .hint(format!("tamdao agency update {child} --quota {measure}=AMOUNT comes first")));
        }
        let (used, given) = (used.of(measure), given.of(measure));
        if used.saturating_add(given) > *most {
            let message = format!("is {most}; {used} are used and {given} given to agencies below");
            return Err(Refusal::field(field, message));
        }
    }
    match agency.spec.parent.and_then(|parent| view.agencies.get(parent)) {
        Some(parent) => check_share(view, parent, agency),
        None => Ok(()),
    }
}

fn check_place(view: &View, agency: &Agency) -> Result<(), Refusal> {
    let Some(parent) = agency.spec.parent else { return Ok(()) };
    let above: Vec<_> = line(view, parent).collect();
    if above.iter().any(|row| row.id() == agency.id()) {
        return Err(Refusal::field("agency.spec.parent", "is the agency itself or one below it"));
    }
    let levels = above.len() + height(view, agency.id(), AGENCY_DEPTH);
    if levels > AGENCY_DEPTH {
        let message = format!("makes {levels} levels of agencies, {AGENCY_DEPTH} are allowed");
        return Err(Refusal::field("agency.spec.parent", message));
    }
    Ok(())
}

/// Levels from an agency down, itself counted; looks at most so deep.
fn height(view: &View, agency: AgencyId, most: usize) -> usize {
    if most == 0 {
        return 1;
    }
    1 + children(view, agency).map(|child| height(view, child.id(), most - 1)).max().unwrap_or(0)
}

/// Whether the parent has what the child's quota takes.
fn check_share(view: &View, parent: &Agency, child: &Agency) -> Result<(), Refusal> {
    let used = view.usage(parent.id()).amounts;
    let others: Amounts = children(view, parent.id())
        .filter(|other| other.id() != child.id())
        .flat_map(|other| other.spec.quota.iter().map(|(measure, most)| (measure.clone(), *most)))
        .collect();
    for (measure, most) in &parent.spec.quota {
        let Some(asked) = child.spec.quota.get(measure).copied() else {
            let message = format!(
                "must have {measure}: agency {:?} above has a limit, of which a part must be cut out",
                parent.meta.name.as_str()
            );
            return Err(Refusal::field("agency.spec.quota", message));
        };
        let (used, given) = (used.of(measure), others.of(measure));
        let free = most.saturating_sub(used.saturating_add(given));
        if asked > free {
            return Err(exceeded(parent, measure, Excess { most: *most, used, given, asked, free }));
        }
    }
    Ok(())
}
