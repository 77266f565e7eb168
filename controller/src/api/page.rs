//! Page tokens and cursors: opaque to clients, and tied to the cluster that gave them, so that one of another
//! cluster, or of this one before a restore, is refused instead of misread.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tamdao_model::{AgencyId, ClusterId, Name, Scope, limits};
use tamdao_store::kv::Revision;

use crate::refusal::Refusal;

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    #[serde(rename = "c")]
    cluster: ClusterId,
    /// The revision of the first page: a watch from it misses nothing.
    #[serde(rename = "r")]
    pub revision: u64,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    agency: Option<AgencyId>,
    /// The last name, or for events the last key, of the page before.
    #[serde(rename = "n")]
    pub last: String,
}

impl Token {
    pub fn after_name(cluster: ClusterId, revision: u64, last: &(Scope, Name)) -> Self {
        Self { cluster, revision, agency: last.0.agency(), last: last.1.to_string() }
    }

    pub fn after_key(cluster: ClusterId, revision: u64, last: &str) -> Self {
        Self { cluster, revision, agency: None, last: last.to_owned() }
    }

    /// The scope and name after which to go on.
    ///
    /// # Errors
    /// When the token is not of a list of names.
    pub fn name(&self) -> Result<(Scope, Name), Refusal> {
        let name = Name::new(&self.last).map_err(|_| foreign("page_token"))?;
        Ok((Scope::from(self.agency), name))
    }

    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("plain data"))
    }

    /// Reads a token; empty starts a list.
    ///
    /// # Errors
    /// When it is damaged or of another cluster.
    pub fn decode(cluster: ClusterId, text: &str) -> Result<Option<Self>, Refusal> {
        if text.is_empty() {
            return Ok(None);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| foreign("page_token"))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| foreign("page_token"))?;
        if token.cluster != cluster {
            return Err(foreign("page_token"));
        }
        Ok(Some(token))
    }
}

/// The cursor after a revision.
pub fn cursor(cluster: ClusterId, revision: Revision) -> String {
    format!("{}.{revision}", cluster.0.simple())
}

/// The revision behind a cursor; empty means from the present state.
///
/// # Errors
/// When it is damaged or of another cluster.
pub fn read_cursor(cluster: ClusterId, text: &str) -> Result<Option<Revision>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let (of, revision) = text.split_once('.').ok_or_else(|| foreign("cursor"))?;
    let revision = revision.parse().map_err(|_| foreign("cursor"))?;
    if of != cluster.0.simple().to_string() {
        return Err(foreign("cursor"));
    }
    Ok(Some(Revision(revision)))
}

/// The number of rows of a page.
///
/// # Errors
/// When it is above the limit.
pub fn page_size(asked: u32) -> Result<usize, Refusal> {
    match asked as usize {
        0 => Ok(limits::PAGE_SIZE_DEFAULT),
        size if size <= limits::PAGE_SIZE_MAX => Ok(size),
        size => Err(Refusal::field("page_size", format!("is {size}, {} are allowed", limits::PAGE_SIZE_MAX))),
    }
}

fn foreign(field: &str) -> Refusal {
    Refusal::field(field, "is not one of this cluster's").hint("leave it empty to begin anew")
}
