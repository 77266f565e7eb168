//! BackupService: a backup for who asks, and those that the leader has made by itself.

use tamdao_backup::{Destination, Recipients};
use tamdao_model::TimeMs;
use tamdao_model::convert::metadata::timestamp;
use tamdao_proto::v1;
use tamdao_proto::v1::backup_service_server::BackupService;
use tamdao_store::view::View;
use tonic::{Request, Response, Status};

use super::{Api, Events};
use crate::access::Asking;
use crate::backups;
use crate::refusal::Refusal;

/// Bytes of one part.
const CHUNK: usize = 256 << 10;
/// Who can read one backup, at most.
const RECIPIENTS: usize = 16;

impl Api {
    /// All that is kept, read anew: what the archivist has read may be damaged since.
    async fn backups(&self, view: &View) -> Result<v1::ListBackupsResponse, Refusal> {
        let backups = &self.shared.backups;
        let settings = backups.settings.as_ref().ok_or_else(|| {
            let message = "the leader's configuration has no [backup]: it makes none by itself";
            Refusal::precondition("NoSchedule", message)
                .hint("list a destination without the leader: tamdao backup list --destination DEST")
        })?;
        let outcome = backups.outcome().clone();
        let opened = Destination::open(settings.place.clone(), &settings.access);
        let survey = async { opened?.survey(&[]).await };
        // When it does not answer, who asks wants to know what is known all the same.
        let (kept, error) = match survey.await {
            Ok(kept) => (kept, outcome.error),
            Err(error) => (Vec::new(), error.to_string()),
        };
        let (now, cluster) = (self.shared.clock.now(), view.cluster().map(|cluster| cluster.id.0));
        let ours = kept.iter().filter_map(|(_, verdict)| verdict.whole());
        let ours = ours.filter(|name| Some(name.cluster) == cluster && name.time_ms <= now.0);
        let newest = ours.map(|name| TimeMs(name.time_ms)).max().or(outcome.newest);
        Ok(v1::ListBackupsResponse {
            destination: settings.place.to_string(),
            every_minutes: u32::try_from(settings.every.as_secs() / 60).unwrap_or(u32::MAX),
            next_time: outcome.next.and_then(timestamp),
            overdue: settings.is_overdue(newest, now),
            error,
            backups: kept.iter().map(|(found, verdict)| verdict.shown(found)).collect(),
        })
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
        let file = backups::take(&self.shared, recipients).await?;
        tracing::info!(by = %asking.principal, bytes = file.len(), "backup taken");
        let count = file.len().div_ceil(CHUNK);
        let part = move |at: usize| file.slice(at * CHUNK..file.len().min((at + 1) * CHUNK));
        let parts = (0..count).map(move |at| Ok(v1::TakeBackupResponse { chunk: part(at) }));
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn list_backups(
        &self,
        request: Request<v1::ListBackupsRequest>,
    ) -> Result<Response<v1::ListBackupsResponse>, Status> {
        let (view, _) = self.admitted(&Asking::of(&request)).await?;
        Ok(Response::new(self.backups(&view).await?))
    }
}
