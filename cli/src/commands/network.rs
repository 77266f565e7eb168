//! `tamdao network`: the provider networks.

use anyhow::Result;
use tamdao_proto::v1::{BridgeProvider, Network, VlanProvider, network_spec::Provider};

use super::standard;
use crate::app::App;
use crate::args::{NameArg, NetworkCreateArgs, NetworkUpdateArgs, NetworkVerb};
use crate::given;
use crate::problem::ExitStatus;

pub async fn run(app: &App, verb: NetworkVerb) -> Result<ExitStatus> {
    match verb {
        NetworkVerb::List(args) => standard::list::<Network>(app, &args.list, args.private).await,
        NetworkVerb::Get(args) => {
            standard::get::<Network>(app, &NameArg { name: args.name }, args.private).await
        }
        NetworkVerb::Create(args) => create(app, &args).await,
        NetworkVerb::Update(args) => update(app, &args).await,
        NetworkVerb::Delete(args) => {
            standard::delete::<Network>(app, &args.delete, args.private, false).await
        }
    }
}

async fn create(app: &App, args: &NetworkCreateArgs) -> Result<ExitStatus> {
    let (place, mut network) = standard::begin::<Network>(app, &args.new, args.private)?;
    let spec = network.spec.get_or_insert_default();
    match (args.bridge.clone(), args.vlan) {
        (Some(bridge), Some(tag)) => spec.provider = Some(Provider::Vlan(VlanProvider { bridge, tag })),
        (Some(bridge), None) => spec.provider = Some(Provider::Bridge(BridgeProvider { bridge })),
        (None, _) => {}
    }
    if !args.subnets.is_empty() {
        spec.subnets = args.subnets.iter().map(|subnet| given::subnet(subnet)).collect::<Result<_>>()?;
    }
    spec.mtu = args.mtu.unwrap_or(spec.mtu);
    if !args.dns_servers.is_empty() {
        spec.dns_servers.clone_from(&args.dns_servers);
    }
    match standard::create(app, &place, network, args.new.dry_run).await? {
        Some(network) => standard::done(app, &network, "made"),
        None => Ok(ExitStatus::Done),
    }
}

async fn update(app: &App, args: &NetworkUpdateArgs) -> Result<ExitStatus> {
    let subnets = args.subnets.iter().map(|subnet| given::subnet(subnet)).collect::<Result<Vec<_>>>()?;
    standard::update::<Network>(app, &args.edit, args.private, |network, mask| {
        let spec = network.spec.get_or_insert_default();
        if !subnets.is_empty() {
            spec.subnets.clone_from(&subnets);
            mask.push("spec.subnets".to_owned());
        }
        if let Some(mtu) = args.mtu {
            spec.mtu = mtu;
            mask.push("spec.mtu".to_owned());
        }
        if !args.dns_servers.is_empty() {
            spec.dns_servers.clone_from(&args.dns_servers);
            mask.push("spec.dns_servers".to_owned());
        }
        Ok(())
    })
    .await
}
