//! Tokens: the secret by which a node or a controller joins, and the one by which an admin rules.
//!
//! Its invariant: only digests of secrets are stored, and comparing takes the same time wherever two differ. A join
//! token carries the digest of the CA, so that the joiner knows whom it speaks to before it shows the secret.

use std::fmt;
use std::hint::black_box;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tamdao_model::{JoinTokenId, TokenId};
use uuid::Uuid;

use super::{PkiError, random, sha256, sha256_hex};

const JOIN: &str = "tdjoin1";
const ADMIN: &str = "tdadmin1";
const TOKEN: &str = "tdtoken1";

/// What a joiner presents: `tdjoin1.<token uuid>.<secret>.<sha256 of the CA's DER>`.
#[derive(Clone)]
pub struct JoinSecret {
    pub id: JoinTokenId,
    secret: [u8; 32],
    /// SHA-256 of the CA's certificate, DER.
    pub ca_digest: [u8; 32],
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinSecret({}, hidden)", self.id)
    }
}

impl JoinSecret {
    /// A new secret for the token of this id, in the cluster with this CA.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate(id: JoinTokenId, ca_der: &[u8]) -> Result<Self, PkiError> {
        Ok(Self { id, secret: random()?, ca_digest: sha256(ca_der) })
    }

    /// Reads a token as it was given out.
    ///
    /// # Errors
    /// When it is not one; the message does not repeat it.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        let mut parts = text.trim().split('.');
        let mut part = |what| parts.next().ok_or(PkiError::Token(what));
        if part("it is empty")? != JOIN {
            return Err(PkiError::Token("it must begin with tdjoin1"));
        }
        let id = Uuid::parse_str(part("its id is missing")?);
        let id = id.map_err(|_| PkiError::Token("its id is no UUID"))?;
        let secret = URL_SAFE_NO_PAD.decode(part("its secret is missing")?).ok();
        let secret = secret.and_then(|secret| secret.try_into().ok());
        let secret = secret.ok_or(PkiError::Token("its secret is not 32 bytes in base64url"))?;
        let digest = hex::decode(part("the digest of the CA is missing")?).ok();
        let ca_digest = digest.and_then(|digest| digest.try_into().ok());
        let ca_digest = ca_digest.ok_or(PkiError::Token("the digest of the CA is not 32 bytes in hex"))?;
        if parts.next().is_some() {
            return Err(PkiError::Token("it has more than four parts"));
        }
        Ok(Self { id: JoinTokenId(id), secret, ca_digest })
    }

    /// The whole token, to be shown once.
    pub fn expose(&self) -> String {
        let secret = URL_SAFE_NO_PAD.encode(self.secret);
        format!("{JOIN}.{}.{secret}.{}", self.id, hex::encode(self.ca_digest))
    }

    /// What is stored of the secret, hex.
    pub fn digest(&self) -> String {
        sha256_hex(&self.secret)
    }

    /// Whether the stored digest is this secret's.
    pub fn matches(&self, digest: &str) -> bool {
        same(self.digest().as_bytes(), digest.as_bytes())
    }
}

/// What the holder of a token presents: `tdtoken1.<token uuid>.<secret>`.
#[derive(Clone)]
pub struct TokenSecret {
    pub id: TokenId,
    whole: String,
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSecret({}, hidden)", self.id)
    }
}

impl TokenSecret {
    /// A new secret for the token of this id.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate(id: TokenId) -> Result<Self, PkiError> {
        let secret: [u8; 32] = random()?;
        Ok(Self { id, whole: format!("{TOKEN}.{id}.{}", URL_SAFE_NO_PAD.encode(secret)) })
    }

    /// What a caller presents, if it has the form.
    pub fn presented(text: &str) -> Option<Self> {
        let (id, _) = text.strip_prefix(TOKEN)?.strip_prefix('.')?.split_once('.')?;
        Some(Self { id: id.parse().ok()?, whole: text.to_owned() })
    }

    /// The whole token, to be shown once.
    pub fn expose(&self) -> String {
        self.whole.clone()
    }

    /// What is stored of it, hex.
    pub fn digest(&self) -> String {
        sha256_hex(self.whole.as_bytes())
    }

    /// Whether the stored digest is this token's.
    pub fn matches(&self, digest: &str) -> bool {
        same(self.digest().as_bytes(), digest.as_bytes())
    }
}

/// What an admin presents: `tdadmin1.<secret>`.
#[derive(Clone)]
pub struct AdminToken(String);

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(hidden)")
    }
}

impl AdminToken {
    /// A new token.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, PkiError> {
        let secret: [u8; 32] = random()?;
        Ok(Self(format!("{ADMIN}.{}", URL_SAFE_NO_PAD.encode(secret))))
    }

    /// What a caller presents, whatever it is.
    pub fn presented(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The whole token, to be shown once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored of it, hex.
    pub fn digest(&self) -> String {
        sha256_hex(self.0.as_bytes())
    }

    /// The stored digest that is this token's. All are compared, so that the time tells nothing.
    pub fn among<'a>(&self, digests: &'a [String]) -> Option<&'a str> {
        let ours = self.digest();
        let mut found = None;
        for digest in digests {
            if same(ours.as_bytes(), digest.as_bytes()) {
                found = Some(digest.as_str());
            }
        }
        found
    }
}

/// Compares without telling by time where two texts differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && black_box(a.iter().zip(b).fold(0u8, |sum, (a, b)| black_box(sum | (a ^ b)))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_reads_back_and_shows_nothing() {
        let token = JoinSecret::generate(JoinTokenId(Uuid::from_u128(9)), b"the ca").unwrap();
        let text = token.expose();
        let back = JoinSecret::parse(&format!(" {text}\n")).unwrap();
        assert_eq!((back.id, back.ca_digest, back.digest()), (token.id, sha256(b"the ca"), token.digest()));
        assert!(back.matches(&token.digest()));
        assert!(!back.matches(&sha256_hex(b"x")));
        assert!(!format!("{token:?}").contains(text.split('.').nth(2).unwrap()));
        assert!(!token.digest().contains(text.split('.').nth(2).unwrap()));
    }

    #[test]
    fn what_is_no_join_token_is_refused_without_being_repeated() {
        let good = JoinSecret::generate(JoinTokenId(Uuid::from_u128(9)), b"ca").unwrap().expose();
        let parts: Vec<&str> = good.split('.').collect();
        let bad = [
            String::new(),
            "tdjoin2.x".into(),
            parts[..3].join("."),
            format!("{good}.more"),
            format!("tdjoin1.{}.c2hvcnQ.{}", parts[1], parts[3]),
            format!("tdjoin1.{}.{}.abcd", parts[1], parts[2]),
            format!("tdjoin1.nouuid.{}.{}", parts[2], parts[3]),
        ];
        for text in bad {
            let error = JoinSecret::parse(&text).unwrap_err().to_string();
            assert!(!error.contains(parts[2]), "{error}");
        }
    }

    #[test]
    fn an_admin_token_is_found_by_its_digest() {
        let (a, b) = (AdminToken::generate().unwrap(), AdminToken::generate().unwrap());
        let digests = vec![a.digest(), b.digest()];
        assert_eq!(AdminToken::presented(b.expose()).among(&digests), Some(b.digest().as_str()));
        assert_eq!(AdminToken::presented("tdadmin1.x").among(&digests), None);
        assert_eq!(a.among(&[]), None);
    }

    #[test]
    fn sameness_is_equality() {
        assert!(same(b"abc", b"abc") && same(b"", b""));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab"));
    }
}
