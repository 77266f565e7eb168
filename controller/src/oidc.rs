//! People from an identity provider, by OpenID Connect: tokens that it has signed are checked here, with its own keys.
//!
//! Its invariant: only what the issuer's keys have signed, for this cloud and in its time, makes a person. The keys are
//! fetched by this controller itself, from the issuer over TLS, in bounded time; those that it has go on to count while
//! the issuer cannot be asked. Deliberately absent: what a person may do (`access`), sessions, and asking the issuer about
//! single tokens: who is to be shut out at once loses his role binding here.

mod claims;
mod keys;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde::Deserialize;
use tamdao_model::TimeMs;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::auth;
use crate::peers::chain;
use crate::refusal::Refusal;
use claims::Fault;
use keys::{Jws, Keys};

pub use claims::Person;
pub use keys::is_jws;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one answer of the issuer as a whole.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An issuer's answer, bytes.
const ANSWER_BYTES: usize = 256 * 1024;
/// How often the keys are fetched, so that one that is withdrawn stops counting.
const PERIOD: Duration = Duration::from_secs(300);
/// The soonest that they are fetched again for keys that are not known, or after a failure.
const PAUSE: Duration = Duration::from_secs(10);

/// What a controller is told of the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its URL, exactly as its tokens have it.
    pub issuer: String,
    /// This cloud at the issuer; tokens must be made for it.
    pub client_id: String,
    /// The claim that names a person, for ever and no other one.
    pub name_claim: String,
    pub groups_claim: String,
    /// Certificates of CAs, PEM, that are trusted beside the public ones; empty for none.
    pub ca_pem: String,
}

/// The issuer, as this controller knows it.
pub struct Issuer {
    settings: Settings,
    client: reqwest::Client,
    keys: RwLock<Arc<Keys>>,
    /// When the keys were last fetched for a token, and how that went.
    asked: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// Of what an issuer says of itself.
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up with these CAs.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        // The library takes the process's provider; a second call finds it set, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder();
        for certificate in reqwest::Certificate::from_pem_bundle(settings.ca_pem.as_bytes())? {
            builder = builder.add_root_certificate(certificate);
        }
        let client = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tamdao-controller/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { settings, client, keys: RwLock::default(), asked: Mutex::default() })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whom a token means.
    ///
    /// # Errors
    /// `Unauthenticated` for a token that does not count; `Unavailable` when it was signed with a key that is not known
    /// here and the issuer cannot be asked.
    pub async fn verify(&self, token: &str, now: TimeMs) -> Result<Person, Refusal> {
        let jws = Jws::read(token).map_err(|fault| bad(fault.to_string()))?;
        let signed = match self.keys().signed(&jws) {
            Some(signed) => signed,
            None => {
                let fetched = self.fetch_for_one().await;
                match (self.keys().signed(&jws), fetched) {
                    (Some(signed), _) => signed,
                    (None, Ok(())) => return Err(bad("it was signed with no key of the issuer".into())),
                    (None, Err(error)) => return Err(self.unreachable(&error)),
                }
            }
        };
        if !signed {
            return Err(bad("its signature is not the issuer's".into()));
        }
        claims::person(&self.settings, &jws.payload, now).map_err(|fault| match fault {
            Fault::Expired => auth::expired(),
            Fault::Other(why) => bad(why),
        })
    }

    /// Keeps the keys fresh until it is stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let pause = match self.fetch().await {
                Ok(()) => PERIOD,
                Err(error) => {
                    let issuer = self.settings.issuer.as_str();
                    tracing::warn!(issuer, error, "the identity provider's keys are not fetched");
                    PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().expect("no holder of the lock panics").clone()
    }

    async fn fetch(&self) -> Result<(), String> {
        let keys = self.ask().await?;
        *self.keys.write().expect("no holder of the lock panics") = Arc::new(keys);
        Ok(())
    }

    /// Fetches the keys for a token whose key is not known, unless that was done for another one a moment ago; then it
    /// says how that went. So whoever makes up keys has the issuer asked no oftener.
    async fn fetch_for_one(&self) -> Result<(), String> {
        let mut asked = self.asked.lock().await;
        if let Some((when, outcome)) = &*asked
            && when.elapsed() < PAUSE
        {
            return outcome.clone();
        }
        let outcome = self.fetch().await;
        *asked = Some((Instant::now(), outcome.clone()));
        outcome
    }

    async fn ask(&self) -> Result<Keys, String> {
        let issuer = &self.settings.issuer;
        let about = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovered: Discovered = serde_json::from_slice(&self.get(&about).await?)
            .map_err(|error| format!("{about} answers no configuration: {error}"))?;
        if discovered.issuer != *issuer {
            return Err(format!("{about} speaks of another issuer, {:?}", discovered.issuer));
        }
        let keys = Keys::read(&self.get(&discovered.jwks_uri).await?)
            .map_err(|error| format!("{} answers no keys: {error}", discovered.jwks_uri))?;
        if keys.is_empty() {
            return Err(format!("{} has no key that can be used here", discovered.jwks_uri));
        }
        Ok(keys)
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| chain(&error);
        let mut response = self
            .client
            .get(url)
            .send()
            .await
            .and_then(|response| response.error_for_status())
            .map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err(format!("{url} answers more than {ANSWER_BYTES} bytes"));
            }
        }
        Ok(body)
    }

    fn unreachable(&self, error: &str) -> Refusal {
        let issuer = &self.settings.issuer;
        let message = format!("the keys of the identity provider {issuer} cannot be fetched: {error}");
        Refusal::new(Code::Unavailable, "IssuerUnreachable", message)
            .hint("tokens that the cloud has made itself work all the same: tamdao token")
    }
}

fn bad(why: String) -> Refusal {
    let message = format!("the token of the identity provider does not count: {why}");
    Refusal::new(Code::Unauthenticated, "BadToken", message).hint("come in again: tamdao login")
}
