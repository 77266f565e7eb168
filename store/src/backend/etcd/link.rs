//! The way to etcd: one member at a time, and the next one when that one fails.
//!
//! Its invariant: what is repeated at another member cannot do harm: a question, a renewal, or a transaction that the
//! member before surely did not take. Whoever follows a stream here is told when the member was left. Deliberately
//! absent: balancing, which would spread one controller's ordered requests over members that are not equally far.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;

use super::EtcdConfig;
use crate::kv::StoreError;

/// Longer than the pause that etcd's servers demand between pings (`--grpc-keepalive-min-time`, 5 s).
const PING_EVERY: Duration = Duration::from_secs(6);
/// What etcd's own refusals begin with; anything else may have happened on the way.
const ETCD: &str = "etcdserver: ";

/// See the module.
pub(super) struct Link {
    endpoints: Vec<String>,
    clients: Vec<OnceCell<Client>>,
    options: ConnectOptions,
    /// The member that is asked now.
    current: watch::Sender<usize>,
    /// How long a question is repeated.
    patience: Duration,
}

/// What a failed call says.
pub(super) enum Failure {
    /// It was surely not done, and another member may do it.
    NotDone(String),
    /// etcd refuses it, whoever is asked.
    Refused(StoreError),
    /// etcd has forgotten the revisions that it asks for.
    Compacted,
    /// It may have been done.
    Unclear(String),
}

impl Link {
    pub(super) fn new(config: &EtcdConfig) -> Link {
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_EVERY, config.patience / 2)
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(config.patience / 3)
            // A member without a leader says so at once, and its streams end.
            .with_require_leader(true);
        if let Some((user, password)) = &config.user {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        if let Some(tls) = &config.tls {
            let mut ours = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                ours = ours.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(ours);
        }
        Link {
            endpoints: config.endpoints.clone(),
            clients: config.endpoints.iter().map(|_| OnceCell::new()).collect(),
            options,
            current: watch::Sender::new(0),
            patience: config.patience,
        }
    }

    /// Wakes when another member is asked than before.
    pub(super) fn moves(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// The member that is asked now.
    pub(super) fn current(&self) -> usize {
        *self.current.borrow()
    }

    /// The address of a member.
    pub(super) fn endpoint(&self, at: usize) -> &str {
        &self.endpoints[at]
    }

    /// Goes on to the next member, unless somebody has gone on from `at` already.
    pub(super) fn leave(&self, at: usize) {
        self.current.send_if_modified(|current| {
            let ours = *current == at;
            if ours {
                *current = (at + 1) % self.endpoints.len();
            }
            ours
        });
    }

    /// A client of one member. Connecting happens with its first call, or here if there is a user to be proved.
    pub(super) async fn client(&self, at: usize) -> Result<Client, Failure> {
        let connect = || Client::connect([&self.endpoints[at]], Some(self.options.clone()));
        // Not yet connected, so nothing that was meant to be done is done.
        let not_done = |reason: String| Failure::NotDone(format!("{}: {reason}", self.endpoints[at]));
        match timeout(self.patience, self.clients[at].get_or_try_init(connect)).await {
            Ok(Ok(client)) => Ok(client.clone()),
            Ok(Err(error)) => Err(not_done(chain(&error))),
            Err(_) => Err(not_done("no answer".into())),
        }
    }

    /// Asks what may be asked any number of times, of one member after the other, as long as patience lasts.
    ///
    /// # Errors
    /// `Compacted` where etcd says so, which is for the caller to explain; otherwise what the last member said.
    pub(super) async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.repeat(call, self.patience / 3, |failure| {
            !matches!(failure, Failure::Refused(_) | Failure::Compacted)
        })
        .await
    }

    /// Asks for what may be done only once; repeats it only where it surely was not done.
    ///
    /// # Errors
    /// As the one attempt that may have done something.
    pub(super) async fn tell<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.repeat(call, self.patience, |failure| matches!(failure, Failure::NotDone(_))).await
    }

    async fn repeat<T, F>(
        &self,
        call: impl Fn(Client) -> F,
        attempt: Duration,
        again: impl Fn(&Failure) -> bool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut pause = Duration::from_millis(20);
        loop {
            let at = self.current();
            let failure = match self.client(at).await {
                Ok(client) => match timeout_at(Instant::now() + attempt, call(client)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => classify(&error),
                    Err(_) => Failure::Unclear(format!("{} does not answer", self.endpoints[at])),
                },
                Err(failure) => failure,
            };
            if !matches!(failure, Failure::Refused(_) | Failure::Compacted) {
                self.leave(at);
            }
            if !again(&failure) || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

impl Failure {
    /// As the error of something that may be asked again: nothing was changed by it.
    pub(super) fn unanswered(self) -> StoreError {
        match self {
            Failure::Refused(error) => error,
            Failure::NotDone(reason) | Failure::Unclear(reason) => {
                StoreError::unavailable(format!("etcd does not answer: {reason}"))
            }
            Failure::Compacted => StoreError::unavailable("etcd has compacted what was asked for"),
        }
    }

    /// As the error of a transaction.
    pub(super) fn undone(self) -> StoreError {
        match self {
            Failure::Unclear(reason) => {
                tracing::warn!(reason, "the outcome of a transaction is unknown");
                StoreError::Unknown
            }
            other => other.unanswered(),
        }
    }
}

/// Judges by what etcd itself says; a code alone may come from a proxy or from a broken connection.
pub(super) fn classify(error: &Error) -> Failure {
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::TransportError(_) | Error::EndpointError(_) => {
            return Failure::NotDone(chain(error));
        }
        other => return Failure::Unclear(chain(other)),
    };
    let Some(message) = status.message().strip_prefix(ETCD) else {
        return match never_connected(status) {
            true => Failure::NotDone(chain(status)),
            false => Failure::Unclear(chain(status)),
        };
    };
    match status.code() {
        Code::Unavailable if message == "no leader" => Failure::NotDone(message.into()),
        Code::OutOfRange if message.contains("has been compacted") => Failure::Compacted,
        // An etcd whose limits are below its defaults.
        Code::InvalidArgument if message.contains("too large") || message.contains("too many operations") => {
            Failure::Refused(StoreError::invalid(format!("etcd refuses: {message}")))
        }
        // Out of space, too many requests, a wrong user: a person must look, and nothing was done.
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition => {
            Failure::Refused(StoreError::unavailable(format!("etcd refuses: {message}")))
        }
        _ => Failure::Unclear(message.into()),
    }
}

/// Whether a call failed because there was no connection to send it by.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
