//! The nouns with standard verbs only: their services in the fake cloud give back what is made, and the flags are seen to
//! arrive as fields of the contract.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tamdao_proto::v1::*;
use tonic::{Request, Response, Status};

use crate::fake::Fake;
use crate::run::Tamdao;

macro_rules! plain {
    ($service:path, $type:ident, $get:ident $get_request:ident, $list:ident $list_request:ident $list_answer:ident,
     $create:ident $create_request:ident $one:ident, $update:ident $update_request:ident,
     $delete:ident $delete_request:ident, $stream:ident $watch:ident $watch_request:ident $watch_answer:ident
     $(, also $extra:ident $extra_request:ident)*) => {
        #[tonic::async_trait]
        impl $service for Fake {
            async fn $create(&self, request: Request<$create_request>) -> Result<Response<$type>, Status> {
                self.asked(stringify!($create), &request)?;
                Ok(Response::new(request.into_inner().$one.unwrap()))
            }

            $(async fn $extra(&self, request: Request<$extra_request>) -> Result<Response<$type>, Status> {
                self.asked(stringify!($extra), &request)?;
                let metadata = Metadata { name: request.into_inner().new_name, ..Default::default() };
                Ok(Response::new($type { metadata: Some(metadata), ..Default::default() }))
            })*

            async fn $get(&self, request: Request<$get_request>) -> Result<Response<$type>, Status> {
                self.asked(stringify!($get), &request)?;
                let metadata = Metadata { name: request.into_inner().name, ..Default::default() };
                Ok(Response::new($type { metadata: Some(metadata), ..Default::default() }))
            }

            async fn $update(&self, request: Request<$update_request>) -> Result<Response<$type>, Status> {
                self.asked(stringify!($update), &request)?;
                Ok(Response::new(request.into_inner().$one.unwrap()))
            }

            async fn $delete(&self, request: Request<$delete_request>) -> Result<Response<$type>, Status> {
                self.asked(stringify!($delete), &request)?;
                Ok(Response::new($type::default()))
            }

            async fn $list(&self, request: Request<$list_request>) -> Result<Response<$list_answer>, Status> {
                self.asked(stringify!($list), &request)?;
                Ok(Response::new($list_answer::default()))
            }

            type $stream = BoxStream<'static, Result<$watch_answer, Status>>;
            async fn $watch(
                &self,
                request: Request<$watch_request>,
            ) -> Result<Response<Self::$stream>, Status> {
                self.asked(stringify!($watch), &request)?;
                Ok(Response::new(stream::pending().boxed()))
            }
        }
    };
}

plain!(agency_service_server::AgencyService, Agency, get_agency GetAgencyRequest,
    list_agencies ListAgenciesRequest ListAgenciesResponse, create_agency CreateAgencyRequest agency,
    update_agency UpdateAgencyRequest, delete_agency DeleteAgencyRequest,
    WatchAgenciesStream watch_agencies WatchAgenciesRequest WatchAgenciesResponse,
    also rename_agency RenameAgencyRequest);
plain!(flavor_service_server::FlavorService, Flavor, get_flavor GetFlavorRequest,
    list_flavors ListFlavorsRequest ListFlavorsResponse, create_flavor CreateFlavorRequest flavor,
    update_flavor UpdateFlavorRequest, delete_flavor DeleteFlavorRequest,
    WatchFlavorsStream watch_flavors WatchFlavorsRequest WatchFlavorsResponse);
plain!(network_service_server::NetworkService, Network, get_network GetNetworkRequest,
    list_networks ListNetworksRequest ListNetworksResponse, create_network CreateNetworkRequest network,
    update_network UpdateNetworkRequest, delete_network DeleteNetworkRequest,
    WatchNetworksStream watch_networks WatchNetworksRequest WatchNetworksResponse);
plain!(placement_group_service_server::PlacementGroupService, PlacementGroup,
    get_placement_group GetPlacementGroupRequest,
    list_placement_groups ListPlacementGroupsRequest ListPlacementGroupsResponse,
    create_placement_group CreatePlacementGroupRequest placement_group,
    update_placement_group UpdatePlacementGroupRequest, delete_placement_group DeletePlacementGroupRequest,
    WatchPlacementGroupsStream watch_placement_groups WatchPlacementGroupsRequest WatchPlacementGroupsResponse);
plain!(pool_service_server::PoolService, Pool, get_pool GetPoolRequest,
    list_pools ListPoolsRequest ListPoolsResponse, create_pool CreatePoolRequest pool,
    update_pool UpdatePoolRequest, delete_pool DeletePoolRequest,
    WatchPoolsStream watch_pools WatchPoolsRequest WatchPoolsResponse);
plain!(volume_service_server::VolumeService, Volume, get_volume GetVolumeRequest,
    list_volumes ListVolumesRequest ListVolumesResponse, create_volume CreateVolumeRequest volume,
    update_volume UpdateVolumeRequest, delete_volume DeleteVolumeRequest,
    WatchVolumesStream watch_volumes WatchVolumesRequest WatchVolumesResponse);

#[tokio::test]
async fn flags_become_fields() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    for (line, made) in [
        (
            "agency create health --description 'Health office' --contact it@health",
            r#"{"metadata":{"name":"health"},"spec":{"contact":"it@health","description":"Health office"}}"#,
        ),
        (
            "flavor create small --vcpus 2 --memory 1.5G --display-name Small",
            r#"{"metadata":{"display_name":"Small","name":"small"},"spec":{"memory_mib":1536,"vcpus":2}}"#,
        ),
        (
            "network create lan --bridge br0 --subnet 10.20.0.0/24,gateway=10.20.0.1,range=10.20.0.9-10.20.0.20 --dns 9.9.9.9",
            r#"{"metadata":{"name":"lan"},"spec":{"bridge":{"bridge":"br0"},"dns_servers":["9.9.9.9"],"subnets":[{"cidr":"10.20.0.0/24","gateway":"10.20.0.1","ranges":[{"first":"10.20.0.9","last":"10.20.0.20"}]}]}}"#,
        ),
        (
            "network create tax/lan --bridge br0 --vlan 7 --mtu 9000",
            r#"{"metadata":{"agency":"tax","name":"lan"},"spec":{"mtu":9000,"vlan":{"bridge":"br0","tag":7}}}"#,
        ),
        (
            "pool create fast --path /srv/fast --node n1 --node n2 --overcommit 150 --reserve 10G --no-wait",
            r#"{"metadata":{"name":"fast"},"spec":{"kind":"POOL_KIND_DIR","nodes":["n1","n2"],"overcommit_percent":150,"path":"/srv/fast","reserve_mib":10240}}"#,
        ),
        (
            "pg create pair --rule apart,by=rack,at-most=2 --rule together,by=site,preferred",
            r#"{"metadata":{"agency":"health","name":"pair"},"spec":{"rules":[{"kind":"PLACEMENT_RULE_KIND_APART","by":"rack","at_most":2},{"kind":"PLACEMENT_RULE_KIND_TOGETHER","by":"site","preferred":true}]}}"#,
        ),
        (
            "volume create data --size 20G --pool fast --keep --label app=db",
            r#"{"metadata":{"agency":"health","labels":{"app":"db"},"name":"data"},"spec":{"keep_on_delete":true,"pool":"fast","size_mib":20480}}"#,
        ),
    ] {
        let expected: serde_json::Value = serde_json::from_str(made).unwrap();
        assert_eq!(tamdao.json(&format!("{line} -o json")).await, expected, "{line}");
    }
}

#[tokio::test]
async fn an_agency_is_renamed() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    assert_eq!(tamdao.json("agency rename health y-te -o json").await["metadata"]["name"], "y-te");
    let asked = fake.world().asked.last().unwrap().1.clone();
    assert!(asked.contains("name: \"health\"") && asked.contains("new_name: \"y-te\""), "{asked}");
}

#[tokio::test]
async fn updates_name_what_they_change() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    for (line, mask) in [
        ("agency update health --contact me --label a=b", r#"["metadata.labels", "spec.contact"]"#),
        ("flavor update small --display-name S", r#"["metadata.display_name"]"#),
        ("network update lan --mtu 1400 --dns 1.1.1.1", r#"["spec.mtu", "spec.dns_servers"]"#),
        (
            "pool update fast --overcommit 200 --reserve 1G",
            r#"["spec.overcommit_percent", "spec.reserve_mib"]"#,
        ),
        ("placement-group update pair --no-rules", r#"["spec.rules"]"#),
        ("placement-group update pair --rule apart --label a=b", r#"["metadata.labels", "spec.rules"]"#),
        ("volume update data --size 30G --keep=false", r#"["spec.size_mib", "spec.keep_on_delete"]"#),
    ] {
        assert!(tamdao.output(line).await.status.success(), "{line}");
        let asked = fake.world().asked.last().unwrap().1.clone();
        assert!(asked.contains(&format!("paths: {mask}")), "{line} asked {asked}");
    }
}

#[tokio::test]
async fn empty_lists_say_so_and_removals_are_told() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    insta::assert_snapshot!(tamdao.story("pool list").await, @r#"
    exit code: 0
    ----- stderr -----
    there are no pools
    "#);
    insta::assert_snapshot!(tamdao.story("placement-group list").await, @r#"
    exit code: 0
    ----- stderr -----
    there are no placement groups in agency health
    "#);
    insta::assert_snapshot!(tamdao.story("pg create pair --rule near").await, @r#"
    exit code: 2
    ----- stderr -----
    error: --rule near: near is not a part of a rule

    hint: --rule apart, --rule apart,by=rack,at-most=2, or --rule together,by=rack,preferred
    "#);
    insta::assert_snapshot!(tamdao.story("pool list -o json").await, @r#"
    exit code: 0
    ----- stdout -----
    {
      "pools": []
    }
    "#);
    insta::assert_snapshot!(tamdao.story("flavor delete small tiny -y").await, @r#"
    exit code: 0
    ----- stderr -----
    small: deleted
    tiny: deleted
    "#);
    insta::assert_snapshot!(tamdao.story("volume delete data").await, @r#"
    exit code: 2
    ----- stderr -----
    error: delete volume health/data with its data: nobody is there to answer

    hint: add --yes to answer yes
    "#);
}
