//! What stands behind the counts of `tamdao simulate fit`: how many fit in each value of failure-domain keys and elsewhere
//! once it is lost, and how many each agency's quota leaves.

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::By;
use tamdao_scheduler::capacity::{Flavor, Stop, headroom};

use super::fit::{Row, runs_out};
use super::fork::Fork;
use super::survive;
use super::what_if::values_of;
use crate::app::App;
use crate::args::FitArgs;
use crate::output::{Cell, Tone};
use crate::problem::Problem;

/// Of one size, in one value of a key.
#[derive(Serialize)]
pub struct InDomain {
    domain: String,
    /// There alone.
    fit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_by: Option<String>,
    /// On the rest, once it is lost and its protected VMs are restarted there.
    fit_without: u32,
    /// Those that then have no place.
    left_out: usize,
}

/// Of one size, in one agency.
#[derive(Serialize)]
pub struct OfAgency {
    agency: String,
    fit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guarded: Option<u32>,
}

/// The headroom of one size by the keys that are asked for.
pub fn by_domain(fork: &Fork, flavor: &Flavor, args: &FitArgs) -> Result<Vec<InDomain>, Problem> {
    let mut all = Vec::new();
    for key in &args.by {
        let by = match key.as_str() {
            "node" => By::Node,
            key => {
                values_of(key, fork).map_err(|error| Problem::usage(format!("--by: {error}")))?;
                By::Domain(key.to_owned())
            }
        };
        let each = headroom(&fork.view, &flavor.shape, &by, args.at_most);
        all.extend(each.into_iter().map(|one| InDomain {
            domain: survive::name(fork, &one.loss),
            fit: one.within.count,
            stopped_by: one.within.stopped_by.as_ref().map(runs_out),
            fit_without: one.without.count,
            left_out: one.left_out,
        }));
    }
    Ok(all)
}

/// What each agency's quota leaves of what fits.
pub fn by_agency(fork: &Fork, flavor: &Flavor, row: &Row) -> Vec<OfAgency> {
    let of = |agency: &tamdao_scheduler::capacity::Agency| {
        let leaves = agency.leaves(&flavor.counts);
        let most = leaves.as_ref().map_or(u32::MAX, |(most, _)| u32::try_from(*most).unwrap_or(u32::MAX));
        let stop = leaves.filter(|_| most <= row.fit).map(|(_, stop)| match stop {
            Stop::Closed => "it is frozen or archived".to_owned(),
            Stop::Quota { measure, need, left } => {
                format!("its quota has {left} {measure} left, {need} needed")
            }
        });
        OfAgency {
            agency: agency.name.to_string(),
            fit: row.fit.min(most),
            stopped_by: stop.or_else(|| row.stopped_by.clone()),
            guarded: row.guarded.as_ref().map(|guarded| guarded.fit.min(most)),
        }
    };
    fork.agencies.iter().map(of).collect()
}

/// Draws both for all sizes.
pub fn show(app: &App, rows: &[Row]) -> Result<()> {
    let counted =
        |count: u32| Cell::toned(count.to_string(), if count == 0 { Tone::Bad } else { Tone::Plain });
    let then = |stop: &Option<String>| Cell::from(stop.as_deref().unwrap_or("not counted further"));
    let domains = rows.iter().flat_map(|row| row.domains.iter().map(move |one| (&row.flavor, one)));
    let domains = domains.map(|(flavor, one)| {
        let left_out = if one.left_out == 0 { Tone::Plain } else { Tone::Bad };
        vec![
            Cell::from(&one.domain),
            Cell::from(flavor),
            counted(one.fit),
            then(&one.stopped_by),
            counted(one.fit_without),
            Cell::toned(one.left_out.to_string(), left_out),
        ]
    });
    let domains: Vec<_> = domains.collect();
    let has_domains = !domains.is_empty();
    let headers = vec!["WHERE", "FLAVOR", "FIT-THERE", "THEN", "FIT-WITHOUT", "LEFT-OUT"];
    survive::few(app, "By failure domain", headers, domains)?;
    if has_domains {
        app.output.note(
            "fit-without: once it is lost and its protected VMs are restarted elsewhere; left-out have no place",
        );
    }
    let agencies = rows.iter().flat_map(|row| row.agencies.iter().map(move |one| (&row.flavor, one)));
    let agencies = agencies.map(|(flavor, one)| {
        let mut cells = vec![Cell::from(&one.agency), Cell::from(flavor), counted(one.fit)];
        cells.push(then(&one.stopped_by));
        cells.extend(one.guarded.map(counted));
        cells
    });
    let mut headers = vec!["AGENCY", "FLAVOR", "FIT", "THEN"];
    headers.extend(rows.iter().any(|row| row.guarded.is_some()).then_some("GUARDED"));
    survive::few(app, "By agency", headers, agencies.collect())
}
