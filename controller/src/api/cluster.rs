//! ClusterService: the cluster as a whole, and the tokens by which others join it.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tamdao_model::JoinTokenId;
use tamdao_model::cluster::{Disarmed, JoinToken};
use tamdao_model::convert::{cluster as shown, metadata::timestamp};
use tamdao_proto::v1;
use tamdao_proto::v1::cluster_service_server::ClusterService;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{Api, Events};
use crate::access::Asking;
use crate::pki;
use crate::refusal::Refusal;

/// The longest time for which automatic restarts elsewhere can be turned off, seconds.
const DISARM_MAX_S: u32 = 604_800;

impl Api {
    /// Turns automatic restarts elsewhere off for some seconds, or on.
    async fn arm(
        &self,
        asking: Asking,
        disarm: Option<(u32, String)>,
    ) -> Result<Response<v1::Cluster>, Status> {
        let decided = self.shared.writer.submit(move |draft, moment| {
            asking.judge(draft.view(), moment.now)?;
            let cluster = draft.view().cluster().map(|row| (*row.value).clone());
            let mut cluster = cluster.ok_or_else(|| Refusal::unavailable("the cluster is being made"))?;
            cluster.disarmed = disarm.clone().map(|(ttl_s, by)| {
                let until = moment.now.plus_ms(u64::from(ttl_s) * 1_000);
                tracing::warn!(%until, by, "automatic restarts elsewhere are off");
                Disarmed { until, by }
            });
            draft.put(cluster.clone());
            Ok(cluster)
        });
        let (cluster, revision) = decided.await?;
        Ok(Response::new(shown::show(&cluster, revision.0)))
    }
}

#[tonic::async_trait]
impl ClusterService for Api {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::Cluster>, Status> {
        let (view, _) = self.admitted(&Asking::of(&request)).await?;
        let cluster = view.cluster().ok_or_else(|| Refusal::unavailable("the cluster is being made"))?;
        let status = self.shared.kv.status();
        Ok(Response::new(v1::Cluster {
            version: env!("CARGO_PKG_VERSION").into(),
            leader: status.leader.map(|leader| leader.name).unwrap_or_default(),
            controller: self.shared.me.name.to_string(),
            store: status.backend.into(),
            ..shown::show(cluster, view.revision.0)
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let asking = Asking::of(&request);
        let (view, _) = self.admitted(&asking).await?;
        let wanted = shown::read_join_token(request.get_ref()).map_err(Refusal::from)?;
        let cluster = view.cluster().ok_or_else(|| Refusal::unavailable("the cluster is being made"))?;
        let ca = CertificateDer::from_pem_slice(cluster.ca_certificate.as_bytes())
            .map_err(|error| Refusal::internal(format!("the CA's certificate is damaged: {error}")))?;
        let id = JoinTokenId(Uuid::new_v4());
        let secret =
            pki::JoinSecret::generate(id, &ca).map_err(|error| Refusal::internal(error.to_string()))?;
        let digest = secret.digest();
        let decided = self.shared.writer.submit(move |draft, moment| {
            asking.judge(draft.view(), moment.now)?;
            let token = JoinToken {
                id,
                kind: wanted.kind,
                digest: digest.clone(),
                expire_time: moment.now.plus_ms(wanted.ttl_ms),
                uses_left: wanted.uses,
                name: wanted.name.clone(),
            };
            draft.put(token.clone());
            Ok(token)
        });
        let (token, _) = decided.await?;
        let response = v1::CreateJoinTokenResponse {
            join_token: Some(shown::show_join_token(&token)),
            secret: secret.expose(),
        };
        Ok(Response::new(response))
    }

    async fn list_join_tokens(
        &self,
        request: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::ListJoinTokensResponse>, Status> {
        let (view, _) = self.admitted(&Asking::of(&request)).await?;
        let now = self.shared.clock.now();
        let usable = view.join_tokens.iter().filter(|token| token.expire_time > now && token.uses_left > 0);
        let join_tokens = usable.map(|token| shown::show_join_token(token)).collect();
        Ok(Response::new(v1::ListJoinTokensResponse { join_tokens }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<v1::RevokeJoinTokenRequest>,
    ) -> Result<Response<v1::JoinToken>, Status> {
        let asking = Asking::of(&request);
        self.admitted(&asking).await?;
        let id: JoinTokenId =
            request.get_ref().id.parse().map_err(|_| Refusal::field("id", "is not a UUID"))?;
        let decided = self.shared.writer.submit(move |draft, moment| {
            asking.judge(draft.view(), moment.now)?;
            let row = draft.view().join_tokens.get(id).cloned().ok_or_else(|| {
                Refusal::new(Code::NotFound, "NotFound", format!("there is no join token {id}"))
            })?;
            draft.delete::<JoinToken>(id);
            Ok((*row.value).clone())
        });
        let (token, _) = decided.await?;
        Ok(Response::new(shown::show_join_token(&token)))
    }

    async fn disarm_ha(
        &self,
        request: Request<v1::DisarmHaRequest>,
    ) -> Result<Response<v1::Cluster>, Status> {
        let ttl_s = match request.get_ref().ttl_s {
            0 => 3_600,
            ttl_s @ 1..=DISARM_MAX_S => ttl_s,
            _ => return Err(Refusal::field("ttl_s", format!("is more than {DISARM_MAX_S}")).into()),
        };
        let asking = Asking::of(&request);
        let by = asking.principal.to_string();
        self.arm(asking, Some((ttl_s, by))).await
    }

    async fn arm_ha(&self, request: Request<v1::ArmHaRequest>) -> Result<Response<v1::Cluster>, Status> {
        self.arm(Asking::of(&request), None).await
    }

    async fn list_loops(
        &self,
        request: Request<v1::ListLoopsRequest>,
    ) -> Result<Response<v1::ListLoopsResponse>, Status> {
        self.admitted(&Asking::of(&request)).await?;
        let rows = self.shared.board.rows();
        let loops = rows.into_iter().map(|row| v1::Loop {
            name: row.name.into(),
            running: row.running,
            passes: row.passes,
            last_success: row.last_success.and_then(timestamp),
            last_error: row.last_error,
            backlog: row.backlog,
            last_duration_ms: row.last_duration_ms,
        });
        Ok(Response::new(v1::ListLoopsResponse { loops: loops.collect() }))
    }

    type DumpClusterStream = Events<v1::DumpClusterResponse>;

    async fn dump_cluster(
        &self,
        request: Request<v1::DumpClusterRequest>,
    ) -> Result<Response<Self::DumpClusterStream>, Status> {
        self.admitted(&Asking::of(&request)).await?;
        let parts = self.dump().await?.into_iter().map(|text| Ok(v1::DumpClusterResponse { text }));
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn replay_decisions(
        &self,
        request: Request<v1::ReplayDecisionsRequest>,
    ) -> Result<Response<v1::ReplayDecisionsResponse>, Status> {
        self.admitted(&Asking::of(&request)).await?;
        Ok(Response::new(self.replay(request.into_inner()).await?))
    }
}
