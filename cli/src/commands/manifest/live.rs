//! What the cloud has of that which a manifest is about: all that its stack owns, all that it names, and the volumes of
//! those VMs. Read only.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value as Json;
use tamdao_manifests::{Expanded, Live, Place, STACK};
use tamdao_proto::v1::*;
use tonic::Code;

use crate::app::App;
use crate::client::request_id;
use crate::problem::Problem;
use crate::resource::{Place as At, Query, Resource};

const PAGE: u32 = 1_000;
/// Requests at once.
const AT_ONCE: usize = 16;

/// Runs a piece of code with the type of the resources of a kind.
macro_rules! each_kind {
    ($kind:expr, $R:ident => $does:expr) => {
        match $kind {
            "agency" => {
                type $R = tamdao_proto::v1::Agency;
                $does
            }
            "flavor" => {
                type $R = tamdao_proto::v1::Flavor;
                $does
            }
            "image" => {
                type $R = tamdao_proto::v1::Image;
                $does
            }
            "network" => {
                type $R = tamdao_proto::v1::Network;
                $does
            }
            "placement_group" => {
                type $R = tamdao_proto::v1::PlacementGroup;
                $does
            }
            "pool" => {
                type $R = tamdao_proto::v1::Pool;
                $does
            }
            "role_binding" => {
                type $R = tamdao_proto::v1::RoleBinding;
                $does
            }
            "vm" => {
                type $R = tamdao_proto::v1::Vm;
                $does
            }
            "volume" => {
                type $R = tamdao_proto::v1::Volume;
                $does
            }
            other => {
                Err($crate::problem::Problem::usage(format!("this command line knows no {other}")).into())
            }
        }
    };
}
pub(crate) use each_kind;

/// The cloud as far as the manifest is about it.
pub async fn seen(app: &App, stack: &str, desired: &Expanded) -> Result<Live> {
    let mut live = Live::new();
    for kind in tamdao_manifests::kinds().keys() {
        let query = Query { labels: format!("{STACK}={stack}"), ..Query::default() };
        live.extend(each_kind!(kind.as_str(), R => listed::<R>(app, query).await)?);
    }
    let missing = desired.resources.iter().map(|one| &one.place).filter(|place| !live.contains_key(*place));
    let asked = futures::stream::iter(missing.cloned().collect::<Vec<_>>()).map(|place| async move {
        let found = each_kind!(place.kind.as_str(), R => fetched::<R>(app, &place).await)?;
        Ok::<_, anyhow::Error>(found.map(|found| (place, found)))
    });
    let found: Vec<_> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
    live.extend(found.into_iter().flatten());
    let vms = live.keys().filter(|place| place.kind == "vm").map(|place| place.agency.clone());
    let agencies = vms.collect::<BTreeSet<_>>();
    let asked = futures::stream::iter(agencies)
        .map(|agency| listed::<Volume>(app, Query { agency, ..Query::default() }));
    let volumes: Vec<_> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
    volumes.into_iter().flatten().for_each(|(place, volume)| {
        live.entry(place).or_insert(volume);
    });
    Ok(live)
}

/// Everything of one kind that a query finds. Who may not list a kind has none of it, and neither has a cloud that is older
/// than the kind.
pub async fn listed<R: Resource>(app: &App, query: Query) -> Result<Vec<(Place, Json)>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = match R::page(app.client()?, &query, PAGE, token).await {
            Err(problem) if matches!(problem.code, Some(Code::PermissionDenied | Code::Unimplemented)) => {
                return Ok(all);
            }
            page => page?,
        };
        for resource in page.resources {
            all.push((place::<R>(&resource), serde_json::to_value(&resource)?));
        }
        token = page.next;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

fn place<R: Resource>(resource: &R) -> Place {
    let At { agency, name } = resource.place();
    Place { kind: R::KIND.to_owned(), agency, name }
}

/// One resource, if it exists.
pub async fn fetched<R: Resource>(app: &App, place: &Place) -> Result<Option<Json>> {
    match R::fetch(app.client()?, &at(place)).await {
        Ok(found) if found.name() == place.name => Ok(Some(serde_json::to_value(&found)?)),
        Ok(_) => Ok(None),
        Err(problem) if problem.code == Some(Code::NotFound) => Ok(None),
        Err(problem) => Err(problem.about(&place.to_string()).into()),
    }
}

pub fn at(place: &Place) -> At {
    At { agency: place.agency.clone(), name: place.name.clone() }
}

/// The VMs whose user data is not the manifest's. It is never shown, so the cloud is asked whether an update would
/// change it.
pub async fn other_user_data(app: &App, desired: &Expanded, live: &Live) -> Result<BTreeSet<Place>> {
    let candidates = desired.resources.iter().filter_map(|one| {
        let text = one.says.json.get("spec")?.get("user_data")?.as_str()?;
        let is = live.get(&one.place)?;
        (one.place.kind == "vm").then(|| (one.place.clone(), text.to_owned(), generation(is)))
    });
    let asked =
        futures::stream::iter(candidates.collect::<Vec<_>>()).map(|(place, user_data, before)| async move {
            let request = UpdateVmRequest {
                agency: place.agency.clone(),
                name: place.name.clone(),
                vm: Some(Vm { spec: Some(VmSpec { user_data, ..Default::default() }), ..Default::default() }),
                update_mask: Some(pbjson_types::FieldMask { paths: vec!["spec.user_data".to_owned()] }),
                request_id: request_id(),
                validate_only: true,
            };
            let answer: Result<Vm, Problem> = app.client()?.ask(request).await;
            match answer {
                Ok(after) => {
                    let after = after.metadata.map_or(0, |metadata| metadata.generation);
                    Ok((after != before).then_some(place))
                }
                Err(problem) if problem.code == Some(Code::PermissionDenied) => {
                    app.output.warning(&format!(
                        "{place}: whether its user data differs cannot be seen: {problem}"
                    ));
                    Ok(None)
                }
                Err(problem) => Err(anyhow::Error::from(problem.about(&place.to_string()))),
            }
        });
    let found: Vec<_> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

fn generation(is: &Json) -> u64 {
    let generation = &is["metadata"]["generation"];
    generation.as_u64().or_else(|| generation.as_str()?.parse().ok()).unwrap_or(0)
}
