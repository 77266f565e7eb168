//! What a token whose signature is good must say, and whom it means. Pure.
//!
//! Its invariant: a token counts only if the issuer made it for this cloud, and only in its time, give or take
//! [`SKEW_S`]. A claim of another type than the standard's is a fault, never one that is absent.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};
use tamdao_model::limits::SUBJECT_CHARS;
use tamdao_model::{TimeMs, composed};

use super::Settings;

/// How far the issuer's clock and ours may be apart, seconds.
pub const SKEW_S: u64 = 60;

/// Whom an issuer vouches for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Person {
    pub name: String,
    pub groups: BTreeSet<String>,
    /// From then on the issuer's word counts no longer.
    pub until: TimeMs,
}

/// Why a token does not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it has expired")]
    Expired,
    #[error("{0}")]
    Other(String),
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    azp: Option<String>,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Judges a token's payload.
///
/// # Errors
/// Why it does not count.
pub fn person(settings: &Settings, payload: &[u8], now: TimeMs) -> Result<Person, Fault> {
    let wrong = |message: String| Err(Fault::Other(message));
    let claims: Claims =
        serde_json::from_slice(payload).map_err(|error| Fault::Other(format!("its claims: {error}")))?;
    if claims.iss != settings.issuer {
        return wrong(format!("its issuer is {:?} and not {:?}", short(&claims.iss), settings.issuer));
    }
    let audience = match claims.aud {
        Audience::One(one) => vec![one],
        Audience::Several(all) => all,
    };
    // Made for several, it must have been made for us first.
    let asked_by_us = audience.len() == 1 || claims.azp.is_none_or(|by| by == settings.client_id);
    if !audience.contains(&settings.client_id) || !asked_by_us {
        return wrong(format!("it was not made for {:?}", settings.client_id));
    }
    // What an issuer signs to say that somebody has left.
    if claims.others.contains_key("events") {
        return wrong("it is no token to come in with".into());
    }
    let now_s = now.0 as f64 / 1_000.0;
    let skew_s = SKEW_S as f64;
    if claims.exp + skew_s <= now_s {
        return Err(Fault::Expired);
    }
    if claims.nbf.into_iter().chain(claims.iat).any(|from| from > now_s + skew_s) {
        return wrong("its time has not come yet".into());
    }
    let mut others = claims.others;
    let unverified = others.get("email_verified").is_some_and(|word| *word != Value::Bool(true));
    if settings.name_claim == "email" && unverified {
        return wrong("the issuer has not verified its email".into());
    }
    let name = match others.remove(&settings.name_claim) {
        Some(Value::String(name)) => name,
        _ => return wrong(format!("it has no text {:?}", settings.name_claim)),
    };
    let groups = match others.remove(&settings.groups_claim) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.into_iter().filter_map(text).collect(),
        Some(_) => return wrong(format!("its {:?} is no list of texts", settings.groups_claim)),
    };
    let name = composed(&name);
    if name.is_empty() || name.chars().count() > SUBJECT_CHARS || name.chars().any(char::is_control) {
        return wrong(format!("its {:?} is no name: {:?}", settings.name_claim, short(&name)));
    }
    let until = TimeMs(((claims.exp + skew_s) * 1_000.0) as u64);
    Ok(Person { name, groups: groups.iter().map(|group| composed(group)).collect(), until })
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: TimeMs = TimeMs(1_000_000_000);

    fn settings() -> Settings {
        Settings {
            issuer: "https://id.example".into(),
            client_id: "tamdao".into(),
            name_claim: "sub".into(),
            groups_claim: "groups".into(),
            ca_pem: String::new(),
        }
    }

    /// A good token's claims with others instead; null takes one away.
    fn judged(change: Value) -> Result<Person, Fault> {
        let mut claims = json!({"iss": "https://id.example", "aud": "tamdao", "exp": 1_000_300, "iat": 1_000_000,
            "sub": "lan", "groups": ["Sở Y tế", "staff"], "email": "lan@example", "email_verified": true});
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        person(&settings(), claims.to_string().as_bytes(), NOW)
    }

    #[test]
    fn a_person_has_a_name_and_groups_until_the_token_ends() {
        let lan = judged(json!({})).unwrap();
        assert_eq!((lan.name.as_str(), lan.until), ("lan", TimeMs(1_000_360_000)));
        assert_eq!(lan.groups, ["Sở Y tế".to_owned(), "staff".to_owned()].into());
        // Written with combining characters it is the same group.
        let apart = judged(json!({"groups": "So\u{31b}\u{309} Y te\u{302}\u{301}"})).unwrap();
        assert_eq!(apart.groups, [composed("Sở Y tế")].into());
        assert_eq!(judged(json!({"groups": null})).unwrap().groups.len(), 0);
        assert!(judged(json!({"aud": ["other", "tamdao"], "azp": "tamdao"})).is_ok());
    }

    #[test]
    fn what_does_not_fit_does_not_count() {
        for (change, why) in [
            (json!({"iss": "https://id.example/"}), "issuer"),
            (json!({"iss": null}), "iss"),
            (json!({"aud": "other"}), "not made for"),
            (json!({"aud": []}), "not made for"),
            (json!({"aud": null}), "aud"),
            (json!({"aud": ["tamdao", "other"], "azp": "other"}), "not made for"),
            (json!({"exp": null}), "exp"),
            (json!({"exp": "1000300"}), "invalid type"),
            (json!({"nbf": "0"}), "invalid type"),
            (json!({"nbf": 1_000_061}), "not come"),
            (json!({"iat": 1_000_061}), "not come"),
            (json!({"events": {}}), "come in"),
            (json!({"sub": null}), "sub"),
            (json!({"sub": 7}), "sub"),
            (json!({"sub": ""}), "no name"),
            (json!({"sub": "a\nb"}), "no name"),
            (json!({"sub": "x".repeat(201)}), "no name"),
            (json!({"groups": 7}), "groups"),
        ] {
            let fault = judged(change.clone()).unwrap_err().to_string();
            assert!(fault.contains(why), "{change}: {fault}");
        }
        assert_eq!(judged(json!({"exp": 999_940})), Err(Fault::Expired));
        assert!(judged(json!({"exp": 999_941, "nbf": 1_000_060})).is_ok(), "clocks differ a little");
        let by_email = Settings { name_claim: "email".into(), ..settings() };
        let claims = json!({"iss": "https://id.example", "aud": "tamdao", "exp": 1_000_300, "email": "lan@example",
            "email_verified": false});
        let told = person(&by_email, claims.to_string().as_bytes(), NOW).unwrap_err().to_string();
        assert!(told.contains("verified"), "{told}");
    }
}
