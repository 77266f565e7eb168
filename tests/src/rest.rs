//! The REST client: one controller, the cloud's own CA, a token or none.

use anyhow::Context;
use reqwest::{Certificate, Client, Method};
use serde_json::Value;

use crate::Result;

/// One controller over HTTPS.
pub struct Rest {
    client: Client,
    base: String,
    token: Option<String>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    /// The body as text.
    pub text: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

impl Rest {
    /// # Errors
    /// When the CA cannot be used.
    pub fn new(address: &str, ca: &str, token: Option<&str>) -> Result<Self> {
        // A second call finds the provider of the first, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .use_rustls_tls()
            .tls_built_in_root_certs(false)
            .add_root_certificate(Certificate::from_pem(ca.as_bytes())?)
            .no_proxy()
            .build()?;
        Ok(Self { client, base: format!("https://{address}"), token: token.map(str::to_owned) })
    }

    /// Sends a body as it is, as `application/json`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn send(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Result<Answer> {
        let method: Method = method.parse().context("the method")?;
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = request.send().await.with_context(|| format!("{path} was not answered"))?;
        let code = answer.status().as_u16();
        Ok(Answer { code, text: answer.text().await? })
    }

    /// # Errors
    /// When there is no answer at all.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, None).await
    }

    /// # Errors
    /// When there is no answer at all.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send("POST", path, Some(serde_json::to_vec(body)?)).await
    }
}
