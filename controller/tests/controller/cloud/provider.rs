//! An identity provider on loopback that says what a test wants it to say, and signs it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use tamdao_controller::clock::{Clock, SystemClock};
use tamdao_controller::identity;
use tamdao_controller::serve::Listener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Provider {
    pub url: String,
    ca: PathBuf,
    /// The name of the key that it signs with, and the key.
    signing: Mutex<(String, EcdsaKeyPair)>,
    /// What it publishes.
    keys: Arc<Mutex<Vec<Value>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn pair() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).unwrap()
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

impl Provider {
    pub async fn start(directory: &Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = super::config(directory, "provider");
        let (own, _) = identity::found(&config, "provider", SystemClock.now()).unwrap();
        let ca = directory.join("provider.pem");
        std::fs::write(&ca, &own.ca).unwrap();
        let listener = Listener::bind(config.listen, &own.credentials().unwrap()).await.unwrap();
        let (url, keys) = (format!("https://{}", config.address), Arc::new(Mutex::new(Vec::new())));
        let about = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let published: Arc<Mutex<Vec<Value>>> = keys.clone();
        let router = axum::Router::new()
            .route("/.well-known/openid-configuration", get(move || async move { Json(about) }))
            .route("/keys", get(move || async move { Json(json!({"keys": *published.lock().unwrap()})) }));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(listener.run(router, stopped));
        let signing = Mutex::new((String::new(), pair()));
        let provider = Self { url, ca, signing, keys, stop, task };
        provider.turn("first");
        provider
    }

    /// Signs with a new key from now on, and publishes that one alone.
    pub fn turn(&self, name: &str) {
        let key = pair();
        let point = key.public_key().as_ref()[1..].to_vec();
        let coordinate = |half: &[u8]| URL_SAFE_NO_PAD.encode(half);
        *self.keys.lock().unwrap() = vec![json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": name,
            "x": coordinate(&point[..32]), "y": coordinate(&point[32..])})];
        *self.signing.lock().unwrap() = (name.to_owned(), key);
    }

    /// The section of a controller's configuration.
    pub fn section(&self) -> String {
        format!("[oidc]\nissuer = '{}'\nclient_id = 'tamdao'\nca_file = '{}'", self.url, self.ca.display())
    }

    /// A token with these claims beside, and in place of, the usual ones.
    pub fn token(&self, more: Value) -> String {
        let (name, key) = &*self.signing.lock().unwrap();
        let header = json!({"alg": "ES256", "kid": name});
        let signed = format!("{}.{}", part(&header), part(&self.claims(more)));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The same with a signature that is none.
    pub fn forged(&self, algorithm: &str) -> String {
        let name = self.signing.lock().unwrap().0.clone();
        let header = json!({"alg": algorithm, "kid": name});
        format!("{}.{}.{}", part(&header), part(&self.claims(json!({}))), URL_SAFE_NO_PAD.encode([7; 64]))
    }

    fn claims(&self, more: Value) -> Value {
        let now = SystemClock.now().0 / 1_000;
        let mut claims =
            json!({"iss": self.url, "aud": "tamdao", "sub": "lan", "iat": now, "exp": now + 300});
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
