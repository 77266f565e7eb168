//! Asks the cloud whether what a plan makes or changes would fit: within the quotas, and with a place for each VM. What
//! is destroyed by the same plan is still counted, since it goes when its turn comes.

use anyhow::Result;
use prost::Message;
use serde_json::json;
use tamdao_manifests::{Action, Change, Plan, Preview, Unfit};
use tamdao_model::limits;
use tamdao_proto::v1::planned_resource::Resource as Planned;
use tamdao_proto::v1::{PlannedResource, PreviewPlanRequest, PreviewPlanResponse};
use tonic::Code;

use crate::app::App;
use crate::problem::problem_of;

/// The preview; none where nothing is to be asked, or the cloud has no answer.
pub async fn ask(app: &App, plan: &Plan) -> Option<Preview> {
    let mut preview = Preview::default();
    let (mut asked, mut resources): (Vec<&Change>, _) = (Vec::new(), Vec::new());
    for change in plan.changes.iter().filter(|change| concerns(change)) {
        match planned(change) {
            _ if change.unknown => preview.unknown.push(change.address.clone()),
            Ok(Some(resource)) => {
                asked.push(change);
                resources.push(PlannedResource { resource: Some(resource) });
            }
            Ok(None) | Err(_) => {}
        }
    }
    if resources.is_empty() {
        return None;
    }
    let (count, request) = (resources.len(), PreviewPlanRequest { resources });
    if count > limits::PLANNED || request.encoded_len() > limits::BODY_BYTES {
        app.output.warning("whether it would fit was not looked at: the plan is too large for one question");
        return None;
    }
    let answer: PreviewPlanResponse = match app.client() {
        Err(error) => Err(problem_of(error)),
        Ok(client) => client.ask(request).await,
    }
    .map_err(|problem| {
        // A cloud that is older than this has no answer.
        if problem.code != Some(Code::Unimplemented) {
            app.output.warning(&format!("whether it would fit was not looked at: {}", problem.what));
        }
    })
    .ok()?;
    preview.guarded = answer.guarded;
    preview.vms = asked.iter().filter(|change| change.place.kind == "vm").count();
    let outcomes = asked.iter().zip(answer.outcomes);
    let unfit = outcomes.filter(|(_, outcome)| !outcome.admitted || !outcome.fits);
    preview.unfit = unfit
        .map(|(change, outcome)| Unfit {
            address: change.address.clone(),
            refused: !outcome.admitted,
            reason: outcome.reason,
            message: outcome.message,
        })
        .collect();
    Some(preview)
}

/// What is made, and what takes more when it is changed.
fn concerns(change: &Change) -> bool {
    match change.action {
        Action::Create => change.place.kind != "role_binding",
        Action::Update => change.resize || ["agency", "volume"].contains(&change.place.kind.as_str()),
        // A VM that is made anew has its room until then.
        Action::Replace | Action::Destroy | Action::Nothing => false,
    }
}

fn planned(change: &Change) -> Result<Option<Planned>> {
    let mut wanted = change.wanted.clone().unwrap_or_default();
    wanted["metadata"]["name"] = json!(change.place.name);
    wanted["metadata"]["agency"] = json!(change.place.agency);
    if let Some(spec) = wanted["spec"].as_object_mut() {
        // It is nobody's business here, and has no weight.
        spec.remove("user_data");
    }
    Ok(Some(match change.place.kind.as_str() {
        "agency" => Planned::Agency(serde_json::from_value(wanted)?),
        "flavor" => Planned::Flavor(serde_json::from_value(wanted)?),
        "image" => Planned::Image(serde_json::from_value(wanted)?),
        "network" => Planned::Network(serde_json::from_value(wanted)?),
        "placement_group" => Planned::PlacementGroup(serde_json::from_value(wanted)?),
        "pool" => Planned::Pool(serde_json::from_value(wanted)?),
        "vm" => Planned::Vm(serde_json::from_value(wanted)?),
        "volume" => Planned::Volume(serde_json::from_value(wanted)?),
        _ => return Ok(None),
    }))
}
