//! Coming in by the identity provider: authorization code with PKCE (RFC 7636, RFC 8252). The provider sends the browser
//! back to a port of loopback that is open for this one answer; what it gives is kept in the context, and is exchanged
//! for newer by the refresh token when its time is over. Deliberately absent: judging the token, which the controllers do.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::url::Url;
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, CsrfToken, EndpointNotSet, EndpointSet, ExtraTokenFields,
    PkceCodeChallenge, RedirectUrl, RefreshToken, RequestTokenError, Scope, StandardRevocableToken,
    StandardTokenResponse, TokenResponse, TokenUrl,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::app::now_s;
use crate::context::{Login, is_pem};
use crate::output::Output;
use crate::problem::Problem;

/// For one answer of the provider.
const ANSWER: Duration = Duration::from_secs(15);
/// How long somebody may take in the browser.
const PATIENCE: Duration = Duration::from_secs(300);
/// A token is exchanged so long before its end, seconds.
const AHEAD_S: i64 = 30;
/// What a browser asks us, bytes.
const REQUEST_BYTES: usize = 16 * 1024;
const CALLBACK: &str = "/callback";

/// Of what a provider says of itself.
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Beside {
    id_token: Option<String>,
}

impl ExtraTokenFields for Beside {}

type Given = StandardTokenResponse<Beside, BasicTokenType>;
type Provider = oauth2::Client<
    BasicErrorResponse,
    Given,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// Lets somebody come in, by the browser that is opened, or that he opens himself.
pub async fn come_in(login: &mut Login, browser: bool, output: &Output) -> Result<()> {
    let http = http(login)?;
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port of loopback is free")?;
    let back = format!("http://127.0.0.1:{}{CALLBACK}", listener.local_addr()?.port());
    let provider = provider(login, &http).await?.set_redirect_uri(RedirectUrl::new(back)?);
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let scopes = login.scopes.split_whitespace().map(|scope| Scope::new(scope.to_owned()));
    let asked = provider.authorize_url(CsrfToken::new_random).add_scopes(scopes);
    let (url, state) = asked.set_pkce_challenge(challenge).url();
    if !(browser && opened(&url)) {
        output.note("open this in a browser on this machine:");
        output.line(url.as_str())?;
    }
    let code = tokio::time::timeout(PATIENCE, called_back(&listener, state.secret(), &login.issuer))
        .await
        .map_err(|_| Problem::failed("nobody came back from the browser in five minutes"))??;
    let exchange = provider.exchange_code(AuthorizationCode::new(code)).set_pkce_verifier(verifier);
    let given = exchange.request_async(&http).await.map_err(|error| refused(login, &error))?;
    keep(login, &given)
}

/// Whether the token is over, or nearly so, and can be exchanged.
pub fn is_stale(login: &Login) -> bool {
    !login.id_token.is_empty() && !login.refresh_token.is_empty() && login.expires <= now_s() + AHEAD_S
}

/// Exchanges it for a new one.
pub async fn refresh(login: &mut Login) -> Result<()> {
    let http = http(login)?;
    let provider = provider(login, &http).await?;
    let token = RefreshToken::new(login.refresh_token.clone());
    let given = provider.exchange_refresh_token(&token).request_async(&http).await;
    let given = given.map_err(|error| refused(login, &error))?;
    keep(login, &given)
}

/// One command at a time exchanges: a provider takes a refresh token that is used twice for a stolen one.
pub fn alone(folder: &std::path::Path) -> Result<File> {
    let path = folder.join("login.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn http(login: &Login) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder();
    if !login.ca.is_empty() {
        let pem = if is_pem(&login.ca) { login.ca.clone() } else { std::fs::read_to_string(&login.ca)? };
        for certificate in reqwest::Certificate::from_pem_bundle(pem.as_bytes())? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    let builder = builder.timeout(ANSWER).https_only(true).redirect(reqwest::redirect::Policy::none());
    Ok(builder.build()?)
}

async fn provider(login: &Login, http: &reqwest::Client) -> Result<Provider> {
    let about = format!("{}/.well-known/openid-configuration", login.issuer.trim_end_matches('/'));
    let unreachable = |error: reqwest::Error| {
        let mut problem = Problem::failed(format!("the identity provider {} does not answer", login.issuer));
        let mut next: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = next {
            problem = problem.detail(error.to_string());
            next = error.source();
        }
        problem.hint("--issuer-ca FILE names a CA that it is known by")
    };
    let answer = http.get(&about).send().await.and_then(reqwest::Response::error_for_status);
    let body = answer.map_err(unreachable)?.bytes().await.map_err(unreachable)?;
    let found: Discovered =
        serde_json::from_slice(&body).with_context(|| format!("{about} is no configuration"))?;
    if found.issuer != login.issuer {
        let what = format!("{about} speaks of another issuer, {}", found.issuer);
        return Err(Problem::failed(what).hint("give --issuer exactly as the provider calls itself").into());
    }
    let (ask, exchange) = (AuthUrl::new(found.authorization_endpoint)?, TokenUrl::new(found.token_endpoint)?);
    Ok(oauth2::Client::new(ClientId::new(login.client_id.clone())).set_auth_uri(ask).set_token_uri(exchange))
}

fn refused<E: std::error::Error + 'static>(
    login: &Login,
    error: &RequestTokenError<E, BasicErrorResponse>,
) -> Problem {
    let problem = Problem::failed(format!("the identity provider {} gave no token", login.issuer));
    let problem = match error {
        RequestTokenError::ServerResponse(said) => problem.detail(said.to_string()),
        other => problem.detail(other.to_string()),
    };
    problem.hint("come in again: tamdao login")
}

fn keep(login: &mut Login, given: &Given) -> Result<()> {
    let Some(token) = given.extra_fields().id_token.clone() else {
        let problem = Problem::failed("the identity provider gave no ID token");
        return Err(problem.hint("the scope openid must be asked for and allowed").into());
    };
    login.expires = end_of(&token).context("the ID token of the identity provider cannot be read")?;
    login.id_token = token;
    if let Some(refresh) = given.refresh_token() {
        login.refresh_token.clone_from(refresh.secret());
    }
    Ok(())
}

/// When a token ends, as it says itself; seconds since 1970.
fn end_of(token: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    Some(claims.exp as i64)
}

fn opened(url: &Url) -> bool {
    use std::process::{Command, Stdio};
    let mut command = Command::new("xdg-open");
    command.arg(url.as_str()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Waits for the browser that comes back with our own state; whatever else asks here is sent away.
async fn called_back(listener: &TcpListener, state: &str, issuer: &str) -> Result<String> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let Ok(Ok(Some(url))) = tokio::time::timeout(ANSWER, asked(&mut stream)).await else { continue };
        let find =
            |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        // A provider that names itself must be the one that was asked (RFC 9207).
        let other = find("iss").is_some_and(|named| named != issuer);
        if url.path() != CALLBACK || find("state").as_deref() != Some(state) || other {
            answer(&mut stream, "404 Not Found", "There is nothing here.").await;
            continue;
        }
        if let Some(code) = find("code") {
            answer(&mut stream, "200 OK", "You are in. This page can be closed.").await;
            return Ok(code);
        }
        answer(&mut stream, "200 OK", "You were not let in. This page can be closed.").await;
        let why = find("error_description").or_else(|| find("error")).unwrap_or_default();
        return Err(Problem::failed("the identity provider did not let you in").detail(why).into());
    }
}

/// The URL of a browser's request.
async fn asked(stream: &mut TcpStream) -> std::io::Result<Option<Url>> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
    Ok(path.and_then(|path| Url::parse(&format!("http://127.0.0.1{path}")).ok()))
}

async fn answer(stream: &mut TcpStream, status: &str, text: &str) {
    let body = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    // Whoever closes the page early has come in all the same.
    let _ = stream.write_all(body.as_bytes()).await;
    let _ = stream.shutdown().await;
}
