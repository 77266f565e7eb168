//! A VM goes to another agency, and an agency gets another name, on real controllers: names, usage, roles and watches follow,
//! and what stands in the way is said.

use crate::cloud::{Answer, Cloud, User};
use serde_json::{Value, json};
use tamdao_proto::v1;
use tamdao_proto::v1::vm_service_client::VmServiceClient;

async fn post(user: &User, cloud: &Cloud, path: &str, body: Value) -> Answer {
    user.post(cloud.address(0), path, &body.to_string()).await
}

async fn made(user: &User, cloud: &Cloud, path: &str, body: Value) -> Value {
    let answer = post(user, cloud, path, body).await;
    assert_eq!(answer.status, 200, "{path}: {:?}", answer.body);
    answer.json()
}

async fn get(user: &User, cloud: &Cloud, path: &str) -> Value {
    let answer = user.get(cloud.address(0), path).await;
    assert_eq!(answer.status, 200, "{path}: {:?}", answer.body);
    answer.json()
}

fn reason(answer: &Answer) -> Value {
    answer.json()["details"][0]["reason"].clone()
}

fn vm(name: &str, network: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"vcpus": 2, "memory_mib": 512,
        "disks": [{"create": {"size_mib": 64}}], "interfaces": [{"network": network}]}})
}

fn network(name: &str, net: u8) -> Value {
    let range = json!({"first": format!("10.7.{net}.10"), "last": format!("10.7.{net}.90")});
    json!({"metadata": {"name": name}, "spec": {"bridge": {"bridge": "br0"},
        "subnets": [{"cidr": format!("10.7.{net}.0/24"), "ranges": [range]}]}})
}

/// Two agencies below one, a third that stands alone; a network of the cloud and one of the first agency.
async fn world() -> (Cloud, User) {
    let cloud = Cloud::found().await;
    let admin = cloud.admin();
    for (name, parent) in [("health", ""), ("east", "health"), ("west", "health"), ("works", "")] {
        let body = json!({"metadata": {"name": name}, "spec": {"parent": parent}});
        made(&admin, &cloud, "/v1/agencies", body).await;
    }
    let pool =
        json!({"metadata": {"name": "default"}, "spec": {"kind": "POOL_KIND_DIR", "path": "/srv/tamdao"}});
    made(&admin, &cloud, "/v1/pools", pool).await;
    made(&admin, &cloud, "/v1/networks", network("lan", 1)).await;
    made(&admin, &cloud, "/v1/agencies/east/networks", network("own", 2)).await;
    (cloud, admin)
}

async fn usage(user: &User, cloud: &Cloud, agency: &str) -> (u64, u64, u64) {
    let usage = get(user, cloud, &format!("/v1/agencies/{agency}")).await["status"]["usage"].clone();
    let of = |field: &str| match &usage[field] {
        Value::String(text) => text.parse().unwrap(),
        other => other.as_u64().unwrap_or(0),
    };
    (of("vms"), of("vcpus"), of("disk_mib"))
}

async fn role(cloud: &Cloud, agency: &str, name: &str, role: &str) -> User {
    let body = json!({"metadata": {"name": name}, "spec": {"role": role}});
    let token = made(&cloud.admin(), cloud, &format!("/v1/agencies/{agency}/tokens"), body).await;
    cloud.with_token(token["secret"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_handed_over_with_all_that_is_its_own() {
    let (cloud, admin) = world().await;
    let before = made(&admin, &cloud, "/v1/agencies/east/vms", vm("web", "lan")).await;
    made(&admin, &cloud, "/v1/agencies/west/vms", vm("db", "lan")).await;
    let head = role(&cloud, "health", "head", "ROLE_AGENCY_ADMIN").await;
    let east = role(&cloud, "east", "east", "ROLE_AGENCY_ADMIN").await;
    let member = role(&cloud, "health", "member", "ROLE_MEMBER").await;
    let mut watch = VmServiceClient::new(east.channel(cloud.address(0)));
    let request = v1::WatchVmsRequest { agency: "east".into(), ..Default::default() };
    let mut watch = watch.watch_vms(east.ask(request)).await.unwrap().into_inner();

    let path = "/v1/agencies/east/vms/web:handOver";
    // Who has a say here and none there, or no such say, gives nothing away.
    assert_eq!(post(&east, &cloud, path, json!({"to_agency": "west"})).await.status, 404);
    assert_eq!(post(&member, &cloud, path, json!({"to_agency": "west"})).await.status, 403);
    assert_eq!(post(&head, &cloud, path, json!({"to_agency": "works"})).await.status, 404);
    let clash = post(&head, &cloud, path, json!({"to_agency": "west", "new_name": "db"})).await;
    assert_eq!((clash.status.as_u16(), clash.hint().contains("--name")), (409, true));
    // A quota of the receiver counts; one that is frozen takes nothing.
    let limit = json!({"spec": {"quota": {"vcpus": "3"}}});
    let patch = async |body: &Value, mask: &str| {
        let path = format!("/v1/agencies/west?update_mask={mask}");
        admin.call(cloud.address(0), http::Method::PATCH, &path, &body.to_string()).await
    };
    assert_eq!(patch(&limit, "spec.quota").await.status, 200);
    let full = post(&head, &cloud, path, json!({"to_agency": "west"})).await;
    assert_eq!((full.status.as_u16(), reason(&full)), (429, "QuotaExceeded".into()));
    assert_eq!(patch(&json!({"spec": {"quota": {"vcpus": "4"}}}), "spec.quota").await.status, 200);
    assert_eq!(patch(&json!({"spec": {"state": "AGENCY_STATE_FROZEN"}}), "spec.state").await.status, 200);
    assert_eq!(reason(&post(&head, &cloud, path, json!({"to_agency": "west"})).await), "AgencyFrozen");
    assert_eq!(patch(&json!({"spec": {"state": "AGENCY_STATE_ACTIVE"}}), "spec.state").await.status, 200);
    let tried = json!({"to_agency": "west", "validate_only": true});
    assert_eq!(post(&head, &cloud, path, tried).await.status, 200);
    assert_eq!(usage(&admin, &cloud, "east").await, (1, 2, 64));

    let after = made(&head, &cloud, path, json!({"to_agency": "west"})).await;
    assert_eq!(after["metadata"]["id"], before["metadata"]["id"]);
    assert_eq!(after["metadata"]["agency"], "west");
    assert_eq!(after["spec"]["interfaces"], before["spec"]["interfaces"], "its addresses and MACs stay");
    assert_eq!(usage(&admin, &cloud, "east").await, (0, 0, 0));
    assert_eq!(usage(&admin, &cloud, "west").await, (2, 4, 128));
    assert_eq!(east.get(cloud.address(0), "/v1/agencies/east/vms/web").await.status, 404);
    let volume = get(&admin, &cloud, "/v1/agencies/west/volumes/web-0").await;
    assert_eq!(volume["status"]["vm"], "web", "{volume}");
    // The old agency's watch hears that it is gone.
    let gone = async {
        loop {
            let message = watch.message().await.unwrap().unwrap();
            if message.event() == v1::WatchEvent::Deleted {
                return message.vm.unwrap().metadata.unwrap().name;
            }
        }
    };
    assert_eq!(gone.await, "web");
    // Its name is free again, and there it is taken.
    made(&admin, &cloud, "/v1/agencies/east/vms", vm("web", "lan")).await;
    assert_eq!(patch(&json!({"spec": {"quota": {}}}), "spec.quota").await.status, 200);
    assert_eq!(post(&admin, &cloud, "/v1/agencies/west/vms", vm("web", "lan")).await.status, 409);
    // The volume's name is taken there too by now: it gets another one.
    let renamed = json!({"to_agency": "west", "new_name": "web-b"});
    made(&admin, &cloud, path, renamed).await;
    get(&admin, &cloud, "/v1/agencies/west/volumes/web-b-0").await;
    // Both sides have it in their events, and the log has who did it.
    let events = get(&east, &cloud, "/v1/events?agency=east").await.to_string();
    assert!(events.contains("HandedOver") && events.contains("west"), "{events}");
    let log = admin.get(cloud.address(0), "/v1/audit:watch?until_now=true&method=HandOverVm").await;
    assert!(String::from_utf8_lossy(&log.body).contains("head"), "{:?}", log.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_binds_a_vm_to_its_agency_is_said() {
    let (cloud, admin) = world().await;
    let refused = async |name: &str| {
        let path = format!("/v1/agencies/east/vms/{name}:handOver");
        let answer = post(&admin, &cloud, &path, json!({"to_agency": "west"})).await;
        assert_eq!(answer.status, 400, "{:?}", answer.body);
        reason(&answer)
    };
    made(&admin, &cloud, "/v1/agencies/east/vms", vm("a", "own")).await;
    assert_eq!(refused("a").await, "NetworkOfAgency");
    let mut stacked = vm("b", "lan");
    stacked["metadata"]["labels"] = json!({"tamdao.vn/stack": "site"});
    made(&admin, &cloud, "/v1/agencies/east/vms", stacked).await;
    assert_eq!(refused("b").await, "OwnedByStack");
    let group = json!({"metadata": {"name": "pair"}, "spec": {"rules": []}});
    made(&admin, &cloud, "/v1/agencies/east/placement-groups", group).await;
    let mut grouped = vm("c", "lan");
    grouped["spec"]["placement_groups"] = json!(["pair"]);
    made(&admin, &cloud, "/v1/agencies/east/vms", grouped).await;
    assert_eq!(refused("c").await, "InPlacementGroup");
    made(&admin, &cloud, "/v1/agencies/east/vms", vm("d", "lan")).await;
    let same = post(&admin, &cloud, "/v1/agencies/east/vms/d:handOver", json!({"to_agency": "east"})).await;
    assert_eq!(same.fields(), ["to_agency"]);
    assert_eq!(usage(&admin, &cloud, "east").await.0, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agency_gets_another_name_and_keeps_everything() {
    let (cloud, admin) = world().await;
    made(&admin, &cloud, "/v1/agencies/east/vms", vm("web", "lan")).await;
    let member = role(&cloud, "east", "worker", "ROLE_MEMBER").await;
    let own = role(&cloud, "east", "boss", "ROLE_AGENCY_ADMIN").await;
    let path = "/v1/agencies/east:rename";
    assert_eq!(post(&own, &cloud, path, json!({"new_name": "dong"})).await.status, 403, "said from above");
    assert_eq!(post(&admin, &cloud, path, json!({"new_name": "west"})).await.status, 409);
    assert_eq!(post(&admin, &cloud, path, json!({"new_name": "Đông"})).await.fields(), ["new_name"]);
    let after = made(&admin, &cloud, path, json!({"new_name": "dong"})).await;
    assert_eq!(after["metadata"]["name"], "dong");
    assert_eq!(get(&member, &cloud, "/v1/agencies/dong/vms/web").await["metadata"]["agency"], "dong");
    assert_eq!(member.get(cloud.address(0), "/v1/agencies/east/vms/web").await.status, 404);
    assert_eq!(usage(&admin, &cloud, "dong").await, (1, 2, 64));
    // The old name is free.
    made(&admin, &cloud, "/v1/agencies", json!({"metadata": {"name": "east"}})).await;
    let stacked = json!({"metadata": {"name": "culture", "labels": {"tamdao.vn/stack": "site"}}});
    made(&admin, &cloud, "/v1/agencies", stacked).await;
    let bound = post(&admin, &cloud, "/v1/agencies/culture:rename", json!({"new_name": "arts"})).await;
    assert_eq!(reason(&bound), "OwnedByStack");
}
