//! How nodes and controllers become part of the cluster, and how they get their next certificate.
//!
//! Its invariant: a certificate is given out only after the record of its holder is committed, and in the same
//! transaction the token was used up by one. The same machine that asks again under the same name gets the same id;
//! another machine never does. One that repeats its request, since the answer was lost, uses up nothing more. Secrets are compared, used and forgotten; none is logged. Deliberately absent: seating
//! a controller in the Raft group, which the leader's loop does once the record is there.

use std::sync::Arc;

use bytes::Bytes;
use rcgen::{PublicKey, PublicKeyData};
use tamdao_model::cluster::{Controller, JoinKind, JoinToken};
use tamdao_model::node::{Node, NodePhase, NodeSpec, NodeStatus};
use tamdao_model::{ClusterId, ControllerId, Kind, Meta, Name, NodeId, Scope};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::enroll_service_server::EnrollService;
use tamdao_store::cache::Cache;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use crate::admission::{Moment, Writer};
use crate::auth::{self, Principal};
use crate::clock::Clock;
use crate::config::split_address;
use crate::decide::recovery;
use crate::pki::{self, Authority, ClusterKey, Holder, JoinSecret, PkiError};
use crate::refusal::Refusal;

/// Addresses that one certificate may speak of.
const HOSTS: usize = 16;
/// The level of encodings that this version writes and reads.
const LEVEL: u32 = 1;

/// The service; a clone is the same.
#[derive(Clone)]
pub struct Enroll {
    cache: Cache,
    writer: Writer,
    clock: Arc<dyn Clock>,
    key: ClusterKey,
}

impl Enroll {
    /// `key` opens the CA's key, which is in the store.
    pub fn new(cache: Cache, writer: Writer, clock: Arc<dyn Clock>, key: ClusterKey) -> Self {
        Self { cache, writer, clock, key }
    }

    /// The CA, and the cluster that it belongs to.
    fn authority(&self, view: &View) -> Result<(ClusterId, Authority), Refusal> {
        let cluster = view.cluster().ok_or_else(|| Refusal::unavailable("the cluster is being made"))?;
        Ok((cluster.id, Authority::open(&cluster.ca_certificate, &cluster.ca_key, &self.key)?))
    }

    fn certify(
        &self,
        view: &View,
        key: &PublicKey,
        holder: Holder,
        hosts: &[String],
    ) -> Result<Given, Refusal> {
        let (cluster, authority) = self.authority(view)?;
        let certificate = authority.certify(key, cluster, holder, hosts, self.clock.now())?;
        let controllers = view.controllers.iter().map(|controller| controller.address.clone()).collect();
        Ok(Given { certificate, ca: authority.pem().to_owned(), cluster, controllers })
    }

    async fn enroll_node(
        &self,
        request: agent::EnrollNodeRequest,
    ) -> Result<agent::EnrollNodeResponse, Refusal> {
        let key = pki::public_key_of(&request.csr)?;
        let hosts = checked_hosts(&request.addresses)?;
        let token = JoinSecret::parse(&request.secret)?;
        let wish = NodeWish {
            enrolled_by: pki::sha256_hex(&[token.id.0.as_bytes(), key.der_bytes()].concat()),
            token,
            name: checked_name(&request.name)?,
            host_uuid: request
                .host_uuid
                .parse()
                .map_err(|_| Refusal::field("host_uuid", "must be a UUID"))?,
            address: hosts.first().cloned().unwrap_or_default(),
        };
        let (name, token) = (wish.name.clone(), wish.token.id);
        let decided = self.writer.submit(move |draft, moment| join_node(draft, moment, &wish)).await;
        let (id, revision) = decided.inspect_err(|error| {
            tracing::warn!(node = %name, %token, reason = error.reason, %error, "node not enrolled");
        })?;
        tracing::info!(node = %name, %id, %token, "node enrolled");
        let view = self.cache.at_least(revision).await?;
        let given = self.certify(&view, &key, Holder::Node(id), &hosts)?;
        Ok(agent::EnrollNodeResponse {
            node_id: id.to_string(),
            certificate: given.certificate,
            ca: given.ca,
            cluster_id: given.cluster.to_string(),
            controllers: given.controllers,
        })
    }

    async fn enroll_controller(
        &self,
        request: agent::EnrollControllerRequest,
    ) -> Result<agent::EnrollControllerResponse, Refusal> {
        let key = pki::public_key_of(&request.csr)?;
        let (host, _) =
            split_address(&request.address).ok_or_else(|| Refusal::field("address", "must be host:port"))?;
        let hosts = [host.to_owned()];
        if request.member == 0 {
            return Err(Refusal::field("member", "must be the seat's id, which is not 0"));
        }
        let wish = ControllerWish {
            token: JoinSecret::parse(&request.secret)?,
            name: checked_name(&request.name)?,
            address: request.address.clone(),
            member: request.member,
        };
        let (name, token) = (wish.name.clone(), wish.token.id);
        let decided = self.writer.submit(move |draft, moment| join_controller(draft, moment, &wish)).await;
        let (id, revision) = decided.inspect_err(|error| {
            tracing::warn!(controller = %name, %token, reason = error.reason, %error, "controller not enrolled");
        })?;
        tracing::info!(controller = %name, %id, %token, "controller enrolled");
        let view = self.cache.at_least(revision).await?;
        let given = self.certify(&view, &key, Holder::Controller(id), &hosts)?;
        Ok(agent::EnrollControllerResponse {
            controller_id: id.to_string(),
            certificate: given.certificate,
            ca: given.ca,
            cluster_id: given.cluster.to_string(),
            cluster_key: Bytes::copy_from_slice(self.key.expose()),
            controllers: given.controllers,
        })
    }

    /// A new certificate for whoever has a good one. The store is only read, so any controller can do it.
    fn renew(
        &self,
        caller: &Principal,
        request: &agent::RenewRequest,
    ) -> Result<agent::RenewResponse, Refusal> {
        let key = pki::public_key_of(&request.csr)?;
        let view = self.cache.view();
        let (holder, hosts) = match caller {
            Principal::Node(id) => {
                let row =
                    view.nodes.get(id).ok_or_else(|| Refusal::not_found(Kind::Node, &id.to_string()))?;
                let address = row.status.address.clone();
                let host = split_address(&address).map_or(address.clone(), |(host, _)| host.to_owned());
                (Holder::Node(*id), vec![host])
            }
            Principal::Controller(id) => {
                let row = view.controllers.get(id);
                let row = row.ok_or_else(|| Refusal::not_found(Kind::Controller, &id.to_string()))?;
                let hosts = split_address(&row.address).map(|(host, _)| host.to_owned());
                (Holder::Controller(*id), hosts.into_iter().collect())
            }
            Principal::Admin { .. }
            | Principal::Local { .. }
            | Principal::Token { .. }
            | Principal::Person(_)
            | Principal::Anonymous => {
                let message = "only the holder of a certificate gets a new one";
                return Err(Refusal::new(Code::PermissionDenied, "NotAllowed", message));
            }
        };
        let given = self.certify(&view, &key, holder, &hosts)?;
        tracing::info!(%caller, "certificate renewed");
        Ok(agent::RenewResponse { certificate: given.certificate, ca: given.ca })
    }
}

struct Given {
    certificate: String,
    ca: String,
    cluster: ClusterId,
    controllers: Vec<String>,
}

#[tonic::async_trait]
impl EnrollService for Enroll {
    async fn enroll_node(
        &self,
        request: Request<agent::EnrollNodeRequest>,
    ) -> Result<Response<agent::EnrollNodeResponse>, Status> {
        Ok(Response::new(Self::enroll_node(self, request.into_inner()).await?))
    }

    async fn enroll_controller(
        &self,
        request: Request<agent::EnrollControllerRequest>,
    ) -> Result<Response<agent::EnrollControllerResponse>, Status> {
        Ok(Response::new(Self::enroll_controller(self, request.into_inner()).await?))
    }

    async fn renew(
        &self,
        request: Request<agent::RenewRequest>,
    ) -> Result<Response<agent::RenewResponse>, Status> {
        let caller = auth::principal(request.metadata());
        Ok(Response::new(Self::renew(self, &caller, request.get_ref())?))
    }
}

/// What a node asks for.
struct NodeWish {
    token: JoinSecret,
    name: Name,
    host_uuid: Uuid,
    address: String,
    /// See [`NodeStatus::enrolled_by`].
    enrolled_by: String,
}

/// What a controller asks for.
struct ControllerWish {
    token: JoinSecret,
    name: Name,
    address: String,
    member: u64,
}

/// Makes the node's record, or finds that of the same machine.
fn join_node(draft: &mut Draft, moment: &mut Moment, wish: &NodeWish) -> Result<NodeId, Refusal> {
    let known = draft.view().nodes.find(Scope::Cluster, wish.name.as_str()).cloned();
    // Whoever repeats it has the key that the first certificate was made for, so nothing more is given away.
    let again = known.as_ref().is_some_and(|node| {
        node.status.host_uuid == wish.host_uuid && node.status.enrolled_by == wish.enrolled_by
    });
    let token = check_token(draft, moment, &wish.token, JoinKind::Node, &wish.name)?;
    if !again {
        use_token(draft, token)?;
    }
    let twin = draft.view().nodes.iter().find(|node| node.status.host_uuid == wish.host_uuid).cloned();
    if let Some(twin) = twin.filter(|twin| twin.meta.name != wish.name) {
        let message = format!("node {:?} has the same host UUID {}", twin.meta.name.as_str(), wish.host_uuid);
        return Err(Refusal::precondition("SameHost", message).hint(
            "was the machine cloned? give it its own host_uuid in libvirtd.conf, or delete the other node",
        ));
    }
    if let Some(row) = known {
        if row.status.host_uuid != wish.host_uuid {
            return Err(Refusal::exists(Kind::Node, wish.name.as_str())
                .hint("it is another machine; choose another name, or delete the old node first"));
        }
        if !again {
            let mut node = (*row.value).clone();
            node.status.enrolled_by.clone_from(&wish.enrolled_by);
            draft.put(node);
        }
        return Ok(row.id());
    }
    recovery::admit_node(draft.view())?;
    let id: NodeId = moment.id();
    draft.create(Node {
        meta: Meta::new(id, wish.name.clone(), moment.now),
        spec: NodeSpec::default(),
        status: NodeStatus {
            phase: NodePhase::Joining,
            host_uuid: wish.host_uuid,
            address: wish.address.clone(),
            enrolled_by: wish.enrolled_by.clone(),
            phase_time: moment.now,
            ..NodeStatus::default()
        },
    });
    Ok(id)
}

/// Makes the controller's record, or finds that of the same data directory.
fn join_controller(
    draft: &mut Draft,
    moment: &mut Moment,
    wish: &ControllerWish,
) -> Result<ControllerId, Refusal> {
    // A controller is given the cluster's key too, so each of its requests needs a permission of its own.
    let token = check_token(draft, moment, &wish.token, JoinKind::Controller, &wish.name)?;
    use_token(draft, token)?;
    let all = || draft.view().controllers.iter();
    if let Some(twin) = all().find(|other| other.address == wish.address && other.meta.name != wish.name) {
        let message = format!("controller {:?} has the address {}", twin.meta.name.as_str(), wish.address);
        return Err(
            Refusal::precondition("SameAddress", message).hint("each controller needs its own address")
        );
    }
    if let Some(row) = draft.view().controllers.find(Scope::Cluster, wish.name.as_str()) {
        // The seat is made with the data directory: the same seat is the same controller, joining once more.
        if row.member != wish.member {
            return Err(Refusal::exists(Kind::Controller, wish.name.as_str()).hint(
                "it has another data directory; remove the old controller first: tamdao controller remove",
            ));
        }
        let mut controller = (*row.value).clone();
        let id = controller.id();
        if controller.address != wish.address {
            controller.address.clone_from(&wish.address);
            draft.put(controller);
        }
        return Ok(id);
    }
    let id: ControllerId = moment.id();
    draft.create(Controller {
        meta: Meta::new(id, wish.name.clone(), moment.now),
        address: wish.address.clone(),
        member: wish.member,
        version: env!("CARGO_PKG_VERSION").into(),
        level: LEVEL,
    });
    Ok(id)
}

const NEW_TOKEN: &str = "make a new one: tamdao node join-token create, or tamdao controller add";

fn denied(reason: &'static str, message: String) -> Refusal {
    Refusal::new(Code::PermissionDenied, reason, message)
}

/// Whether a token is good for this. Whoever has a wrong secret learns nothing about the token.
fn check_token(
    draft: &Draft,
    moment: &Moment,
    secret: &JoinSecret,
    kind: JoinKind,
    name: &Name,
) -> Result<JoinToken, Refusal> {
    let row = draft.view().join_tokens.get(secret.id).cloned();
    let Some(token) = row.map(|row| (*row.value).clone()).filter(|token| secret.matches(&token.digest))
    else {
        return Err(denied("UnknownToken", "the join token is not known".into()).hint(NEW_TOKEN));
    };
    if token.kind != kind {
        let for_whom = match token.kind {
            JoinKind::Node => "a node",
            JoinKind::Controller => "a controller",
        };
        return Err(denied("WrongKind", format!("the join token is for {for_whom}")));
    }
    if token.expire_time <= moment.now {
        return Err(
            denied("Expired", format!("the join token expired at {}", token.expire_time)).hint(NEW_TOKEN)
        );
    }
    if let Some(only) = token.name.as_ref().filter(|only| *only != name) {
        return Err(denied("WrongName", format!("the join token is for the name {:?} only", only.as_str())));
    }
    Ok(token)
}

/// Takes one use of a token that was checked.
fn use_token(draft: &mut Draft, mut token: JoinToken) -> Result<(), Refusal> {
    if token.uses_left == 0 {
        return Err(denied("UsedUp", "the join token has no uses left".into()).hint(NEW_TOKEN));
    }
    token.uses_left -= 1;
    draft.put::<JoinToken>(token);
    Ok(())
}

fn checked_name(name: &str) -> Result<Name, Refusal> {
    Name::new(name).map_err(|error| Refusal::field("name", error.to_string()))
}

fn checked_hosts(addresses: &[String]) -> Result<Vec<String>, Refusal> {
    if addresses.len() > HOSTS || addresses.iter().any(|address| address.len() > 253) {
        return Err(Refusal::field("addresses", format!("at most {HOSTS} names or addresses are allowed")));
    }
    Ok(addresses.to_vec())
}

impl From<PkiError> for Refusal {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::Request(message) => Self::field("csr", message),
            PkiError::Token(message) => {
                Self::field("secret", message).hint("paste the whole token as it was shown, from tdjoin1 on")
            }
            other => Self::internal(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tamdao_model::{JoinTokenId, TimeMs};

    use super::*;

    const NOW: TimeMs = TimeMs(1_000_000);

    fn token(kind: JoinKind, uses_left: u32, name: Option<&str>) -> (JoinSecret, Draft) {
        let secret = JoinSecret::generate(JoinTokenId(Uuid::new_v4()), b"ca").unwrap();
        let mut draft = Draft::new(View::default(), Uuid::new_v4());
        draft.put(JoinToken {
            id: secret.id,
            kind,
            digest: secret.digest(),
            expire_time: NOW.plus_ms(1),
            uses_left,
            name: name.map(|name| Name::new(name).unwrap()),
        });
        (secret, draft)
    }

    fn node(token: &JoinSecret, name: &str, host: u128) -> NodeWish {
        let (token, name) = (token.clone(), Name::new(name).unwrap());
        let (host_uuid, address, enrolled_by) =
            (Uuid::from_u128(host), "10.0.0.1".into(), format!("{}/{host}", token.id));
        NodeWish { token, name, host_uuid, address, enrolled_by }
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, Refusal>) -> &'static str {
        result.unwrap_err().reason
    }

    #[test]
    fn the_same_machine_gets_the_same_id_and_another_none() {
        let (token, mut draft) = token(JoinKind::Node, 5, None);
        let mut moment = Moment { now: NOW };
        let first = join_node(&mut draft, &mut moment, &node(&token, "n1", 1)).unwrap();
        assert_eq!(join_node(&mut draft, &mut moment, &node(&token, "n1", 1)), Ok(first));
        let mut trial = draft.clone();
        assert_eq!(reason(join_node(&mut trial, &mut moment, &node(&token, "n1", 2))), "AlreadyExists");
        assert_eq!(reason(join_node(&mut draft, &mut moment, &node(&token, "n2", 1))), "SameHost");
        assert_eq!(draft.view().nodes.len(), 1);
        assert_eq!(draft.view().nodes.get(first).unwrap().status.phase, NodePhase::Joining);
    }

    #[test]
    fn a_token_is_used_up_and_each_reason_is_told() {
        let (good, mut draft) = token(JoinKind::Node, 1, Some("n1"));
        let mut moment = Moment { now: NOW };
        assert_eq!(reason(join_node(&mut draft.clone(), &mut moment, &node(&good, "n2", 1))), "WrongName");
        let late = Moment { now: NOW.plus_ms(1) };
        let name = Name::new("n1").unwrap();
        assert_eq!(reason(check_token(&draft, &late, &good, JoinKind::Node, &name)), "Expired");
        assert_eq!(reason(check_token(&draft, &moment, &good, JoinKind::Controller, &name)), "WrongKind");
        let other = JoinSecret::generate(good.id, b"ca").unwrap();
        assert_eq!(reason(check_token(&draft, &moment, &other, JoinKind::Node, &name)), "UnknownToken");
        let first = join_node(&mut draft, &mut moment, &node(&good, "n1", 1)).unwrap();
        // Its answer was lost: the same request again, and no other, is still good.
        assert_eq!(join_node(&mut draft, &mut moment, &node(&good, "n1", 1)), Ok(first));
        let mut new_key = node(&good, "n1", 1);
        new_key.enrolled_by = "another".into();
        assert_eq!(reason(join_node(&mut draft, &mut moment, &new_key)), "UsedUp");
        assert_eq!(reason(join_node(&mut draft, &mut moment, &node(&good, "n1", 2))), "UsedUp");
    }

    #[test]
    fn a_controller_with_another_data_directory_is_another() {
        let (token, mut draft) = token(JoinKind::Controller, 9, None);
        let mut moment = Moment { now: NOW };
        let wish = |name: &str, member, address: &str| ControllerWish {
            token: token.clone(),
            name: Name::new(name).unwrap(),
            address: address.into(),
            member,
        };
        let id = join_controller(&mut draft, &mut moment, &wish("c2", 7, "a:1")).unwrap();
        assert_eq!(join_controller(&mut draft, &mut moment, &wish("c2", 7, "b:1")), Ok(id));
        assert_eq!(draft.view().controllers.get(id).unwrap().address, "b:1");
        assert_eq!(
            reason(join_controller(&mut draft.clone(), &mut moment, &wish("c2", 8, "c:1"))),
            "AlreadyExists"
        );
        assert_eq!(reason(join_controller(&mut draft, &mut moment, &wish("c3", 9, "b:1"))), "SameAddress");
    }
}
