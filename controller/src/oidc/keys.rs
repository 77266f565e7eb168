//! An issuer's keys, and whether a token was signed with one of them.
//!
//! Its invariant: what a key can verify is said by the key alone. A token's header only chooses among the signatures of
//! public keys that are listed in [`verifies`]: there is no `none` and no HMAC here that it could ask for. Deliberately
//! absent: what a token says (`claims`). It stands on ring, which all else here stands on (decision 0184).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;

/// Keys of one issuer that are looked at.
const MOST: usize = 64;
/// A token's length, bytes.
const TOKEN_BYTES: usize = 16 * 1024;

/// The keys that an issuer signs with now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The only algorithm that it is for, if it says so.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// A token in its parts; nothing of it is believed yet.
#[derive(Debug)]
pub struct Jws<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    header: Header,
    pub payload: Vec<u8>,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Whether a text has the form of such a token; ours have another.
pub fn is_jws(text: &str) -> bool {
    text.starts_with("ey") && text.split('.').count() == 3
}

impl<'a> Jws<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn read(token: &'a str) -> Result<Self, &'static str> {
        if token.len() > TOKEN_BYTES {
            return Err("it is too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("it has not three parts")?;
        let (header, payload) = signed.split_once('.').ok_or("it has not three parts")?;
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| "a part of it is not base64url");
        let header: Header =
            serde_json::from_slice(&part(header)?).map_err(|_| "its header cannot be read")?;
        if header.crit.is_some() {
            return Err("its header wants something that is not known here");
        }
        Ok(Self { signed, signature: part(signature)?, payload: part(payload)?, header })
    }
}

impl Keys {
    /// The keys of a set that can verify; others, such as those for encryption, are left out.
    ///
    /// # Errors
    /// When it is no set of keys.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let set: Set = serde_json::from_slice(json)?;
        Ok(Self(set.keys.into_iter().filter_map(Key::read).take(MOST).collect()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of these has signed it; none when no key is there that it could have been.
    pub fn signed(&self, token: &Jws<'_>) -> Option<bool> {
        let named = |key: &&Key| {
            let is_meant = token.header.kid.is_none() || key.id.is_none() || key.id == token.header.kid;
            is_meant && key.algorithm.as_ref().is_none_or(|only| *only == token.header.alg)
        };
        let verdicts = self.0.iter().filter(named).filter_map(|key| {
            verifies(&token.header.alg, &key.material, token.signed.as_bytes(), &token.signature)
        });
        verdicts.reduce(|one, other| one || other)
    }
}

impl Key {
    fn read(json: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        if jwk.r#use.is_some_and(|meant| meant != "sig") {
            return None;
        }
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let point = |x, y, length| {
            let (x, y) = (bytes(x)?, bytes(y)?);
            (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
        };
        // ring wants a number without zeros before it.
        let number = |text| {
            let bytes = bytes(text)?;
            Some(bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>())
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => Material::Rsa { n: number(jwk.n)?, e: number(jwk.e)? },
            ("EC", Some("P-256")) => Material::P256(point(jwk.x, jwk.y, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(jwk.x, jwk.y, 48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(jwk.x)?),
            _ => return None,
        };
        Some(Self { id: jwk.kid, algorithm: jwk.alg, material })
    }
}

/// Whether a key has signed this; none where it is no key for this algorithm.
fn verifies(algorithm: &str, key: &Material, message: &[u8], signature: &[u8]) -> Option<bool> {
    let by_point = |how: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
        UnparsedPublicKey::new(how, key).verify(message, signature).is_ok()
    };
    Some(match (algorithm, key) {
        ("ES256", Material::P256(point)) => by_point(&ECDSA_P256_SHA256_FIXED, point),
        ("ES384", Material::P384(point)) => by_point(&ECDSA_P384_SHA384_FIXED, point),
        ("EdDSA", Material::Ed25519(point)) => by_point(&ED25519, point),
        (algorithm, Material::Rsa { n, e }) => {
            let how = match algorithm {
                "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                _ => return None,
            };
            RsaPublicKeyComponents { n, e }.verify(how, message, signature).is_ok()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, appendix A.2.
    const RSA: &str = r#"{"keys":[{"kty":"RSA","kid":"rfc","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#;
    const RS256: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    /// RFC 7515, appendix A.3.
    const EC: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    /// RFC 8037, appendix A.4.
    const ED: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    const EDDSA: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

    fn signed(keys: &str, token: &str) -> Option<bool> {
        Keys::read(keys.as_bytes()).unwrap().signed(&Jws::read(token).unwrap())
    }

    /// The token with another header.
    fn headed(header: &str, token: &str) -> String {
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), token.split_once('.').unwrap().1)
    }

    #[test]
    fn what_the_standards_show_as_signed_is() {
        for (keys, token) in [(RSA, RS256), (EC, ES256), (ED, EDDSA)] {
            assert_eq!(signed(keys, token), Some(true), "{token}");
            let (begin, signature) = token.rsplit_once('.').unwrap();
            let forged = begin.replacen('X', "Y", 1).replacen("Ij", "Ik", 1);
            assert_eq!(signed(keys, &format!("{forged}.{signature}")), Some(false), "{forged}");
        }
    }

    #[test]
    fn a_header_chooses_no_other_meaning_of_a_key() {
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"ES256"}"#,
            r#"{"alg":"rs256"}"#,
            r#"{"alg":""}"#,
        ] {
            assert_eq!(signed(RSA, &headed(header, RS256)), None, "{header}");
        }
        assert_eq!(signed(EC, RS256), None);
        // Of one family, but not what was signed.
        assert_eq!(signed(RSA, &headed(r#"{"alg":"PS256"}"#, RS256)), Some(false));
        // A key that is for one algorithm, or not for signatures, or the secret of an HMAC, is no key for this.
        assert_eq!(signed(&RSA.replace("\"kid\"", "\"alg\":\"RS512\",\"kid\""), RS256), None);
        assert_eq!(signed(&RSA.replace("\"kid\"", "\"use\":\"enc\",\"kid\""), RS256), None);
        assert_eq!(
            signed(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, &headed(r#"{"alg":"HS256"}"#, RS256)),
            None
        );
        // Another key's name; and a header that must be understood and is not.
        assert_eq!(signed(RSA, &headed(r#"{"alg":"RS256","kid":"other"}"#, RS256)), None);
        let critical = headed(r#"{"alg":"RS256","crit":["b64"]}"#, RS256);
        assert!(Jws::read(&critical).is_err());
        for wrong in ["ey", "ey.a", "ey.é.a", &RS256.replace("eyJh", "!!!!"), &"e".repeat(20_000)] {
            assert!(Jws::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_used_in_a_set_is_left_out() {
        let mixed = format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-521","x":"","y":""}},{{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}},7,{}"#,
            RSA.strip_prefix(r#"{"keys":["#).unwrap()
        );
        assert_eq!(signed(&mixed, RS256), Some(true));
        assert!(Keys::read(b"{}").is_err());
    }
}
