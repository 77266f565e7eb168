//! BackupService: all records at one revision, and the cluster key, encrypted before they leave this process.

use bytes::Bytes;
use tamdao_backup::{About, Content, Entry, Recipients};
use tamdao_proto::v1;
use tamdao_proto::v1::backup_service_server::BackupService;
use tamdao_store::kv::{Key, Prefix, Read};
use tonic::{Request, Response, Status};

use super::{Api, Events};
use crate::access::Asking;
use crate::refusal::Refusal;

/// Bytes of one part.
const CHUNK: usize = 256 << 10;
/// Who can read one backup, at most.
const RECIPIENTS: usize = 16;

impl Api {
    /// The whole file.
    async fn backup(&self, recipients: Recipients) -> Result<Bytes, Refusal> {
        let (entries, revision) = self.shared.kv.list(&Prefix::all(), Read::Linearizable).await?;
        let view = self.shared.cache.view();
        let cluster = view.cluster().ok_or_else(|| Refusal::unavailable("the cluster is being made"))?;
        let about = About {
            cluster: cluster.id.0,
            cluster_name: cluster.name.clone(),
            revision: revision.0,
            level: self.shared.kv.status().level.max(cluster.level),
            time_ms: self.shared.clock.now().0,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let cluster_key = *self.shared.key.expose();
        // A large cloud's records take a while, in which others want to be served.
        let written = tokio::task::spawn_blocking(move || {
            // Who leads is of no interest to a cloud that has other controllers.
            let entries = entries.into_iter().filter(|entry| entry.key != Key::leader());
            let entries = entries.map(|entry| Entry {
                key: entry.key.as_str().to_owned(),
                value: entry.value,
                create_revision: entry.create_revision.0,
                mod_revision: entry.mod_revision.0,
            });
            let content = Content { cluster_key, entries: entries.collect() };
            tamdao_backup::write(about, &content, &recipients)
        });
        let file =
            written.await.map_err(|error| Refusal::internal(format!("the backup ended early: {error}")))?;
        Ok(Bytes::from(file.map_err(|error| Refusal::internal(error.to_string()))?))
    }
}

#[tonic::async_trait]
impl BackupService for Api {
    type TakeBackupStream = Events<v1::TakeBackupResponse>;

    async fn take_backup(
        &self,
        request: Request<v1::TakeBackupRequest>,
    ) -> Result<Response<Self::TakeBackupStream>, Status> {
        let asking = Asking::of(&request);
        self.admitted(&asking).await?;
        let texts = request.into_inner().recipients;
        if texts.len() > RECIPIENTS {
            return Err(Refusal::field("recipients", format!("are more than {RECIPIENTS}")).into());
        }
        let recipients = Recipients::parse(texts.iter().map(String::as_str))
            .map_err(|error| Refusal::field("recipients", error.to_string()))?;
        let file = self.backup(recipients).await?;
        tracing::info!(by = %asking.principal, bytes = file.len(), "backup taken");
        let count = file.len().div_ceil(CHUNK);
        let part = move |at: usize| file.slice(at * CHUNK..file.len().min((at + 1) * CHUNK));
        let parts = (0..count).map(move |at| Ok(v1::TakeBackupResponse { chunk: part(at) }));
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }
}
