//! The CA, and the certificates that it gives out.
//!
//! Its invariant: it signs for nodes and controllers of one cluster only, under names that it makes itself. Its key
//! is in the store, sealed with the cluster key, so that any controller can sign and none has to be asked.

use std::fmt;
use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tamdao_model::sealed::Sealed;
use tamdao_model::{ClusterId, TimeMs};
use time::OffsetDateTime;

use super::{CONTROLLER_NAME, ClusterKey, Holder, PkiError};

const CA_DAYS: i64 = 3_650;
const LEAF_DAYS: i64 = 90;
/// Certificates begin to hold a little before they are made, for clocks that are behind.
const BACKDATE: time::Duration = time::Duration::minutes(10);
const CA_KEY: &str = "cluster/ca_key";
/// The longest signing request that is looked at, bytes.
const REQUEST_BYTES: usize = 16 * 1024;

/// The CA with its key.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(hidden)")
    }
}

impl Authority {
    /// A new CA for a cluster.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn generate(cluster: ClusterId, now: TimeMs) -> Result<Self, PkiError> {
        let make = |source| PkiError::Make { what: "the CA", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Tam Dao cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = validity(now, CA_DAYS);
        let certificate = params.self_signed(&key).map_err(make)?;
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ok(Self { pem, der, issuer: Issuer::new(params, key) })
    }

    /// The CA as the store holds it.
    ///
    /// # Errors
    /// When the key does not open, or the two do not belong together.
    pub fn open(ca_pem: &str, sealed: &Sealed, key: &ClusterKey) -> Result<Self, PkiError> {
        let key_pem = key.open(CA_KEY, sealed)?;
        let key_pem =
            String::from_utf8(key_pem).map_err(|_| PkiError::read("the CA's key", "it is no text"))?;
        let pair = KeyPair::from_pem(&key_pem).map_err(|source| PkiError::read("the CA's key", source))?;
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes());
        let der = der.map_err(|source| PkiError::read("the CA", source))?;
        let issuer =
            Issuer::from_ca_cert_der(&der, pair).map_err(|source| PkiError::read("the CA", source))?;
        Ok(Self { pem: ca_pem.to_owned(), der, issuer })
    }

    /// Its key as the store may hold it.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal(&self, key: &ClusterKey) -> Result<Sealed, PkiError> {
        key.seal(CA_KEY, self.issuer.key().serialize_pem().as_bytes())
    }

    /// The certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate, DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// A certificate for this holder, PEM. `hosts` are the names and addresses at which it is reached; what is
    /// neither is left out, because the holder's own URI is what is checked.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn certify(
        &self,
        public_key: &PublicKey,
        cluster: ClusterId,
        holder: Holder,
        hosts: &[String],
        now: TimeMs,
    ) -> Result<String, PkiError> {
        let make = |source| PkiError::Make { what: "a certificate", source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, holder.common_name());
        params.is_ca = IsCa::NoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = validity(now, LEAF_DAYS);
        params.subject_alt_names.push(SanType::URI(ia5(holder.uri(cluster))?));
        if let Holder::Controller(_) = holder {
            params.subject_alt_names.push(SanType::DnsName(ia5(CONTROLLER_NAME.into())?));
        }
        for host in hosts {
            params.subject_alt_names.extend(match host.parse::<IpAddr>() {
                Ok(address) => Some(SanType::IpAddress(address)),
                Err(_) if is_dns_name(host) => Some(SanType::DnsName(ia5(host.clone())?)),
                Err(_) => None,
            });
        }
        Ok(params.signed_by(public_key, &self.issuer).map_err(make)?.pem())
    }
}

/// A new key and the request for its certificate, both PEM.
pub struct KeyAndRequest {
    pub key: String,
    pub request: String,
}

impl fmt::Debug for KeyAndRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyAndRequest(hidden)")
    }
}

/// Makes a key and asks for its certificate. The names in the request are of no account.
///
/// # Errors
/// When they cannot be made.
pub fn request() -> Result<KeyAndRequest, PkiError> {
    let make = |source| PkiError::Make { what: "a certificate signing request", source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(make)?;
    Ok(KeyAndRequest { key: key.serialize_pem(), request: request.pem().map_err(make)? })
}

/// The public key of a request whose signature proves that its sender has the private one.
///
/// # Errors
/// When it is no request, its signature is wrong, or its key is not ECDSA on P-256.
pub fn public_key_of(request: &str) -> Result<PublicKey, PkiError> {
    if request.len() > REQUEST_BYTES {
        return Err(PkiError::Request(format!(
            "it has {} bytes, {REQUEST_BYTES} are allowed",
            request.len()
        )));
    }
    let request = CertificateSigningRequestParams::from_pem(request)
        .map_err(|error| PkiError::Request(error.to_string()))?;
    match *request.public_key.algorithm() == PKCS_ECDSA_P256_SHA256 {
        true => Ok(request.public_key),
        false => Err(PkiError::Request("its key must be ECDSA on P-256".into())),
    }
}

fn validity(now: TimeMs, days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let nanos = i128::from(now.0) * 1_000_000;
    let now = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    (now - BACKDATE, now + time::Duration::days(days))
}

fn ia5(text: String) -> Result<rcgen::string::Ia5String, PkiError> {
    text.try_into().map_err(|source| PkiError::Make { what: "a certificate's name", source })
}

fn is_dns_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use tamdao_model::{ControllerId, NodeId};
    use uuid::Uuid;

    use super::*;

    const NOW: TimeMs = TimeMs(1_800_000_000_000);

    #[test]
    fn a_certificate_names_its_holder_and_nothing_of_the_request() {
        let cluster = ClusterId(Uuid::from_u128(1));
        let authority = Authority::generate(cluster, NOW).unwrap();
        let holder = Holder::Node(NodeId(Uuid::from_u128(2)));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut wish = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        wish.distinguished_name.push(DnType::CommonName, "controller:evil");
        let wish = wish.serialize_request(&key).unwrap().pem().unwrap();
        let public_key = public_key_of(&wish).unwrap();
        let hosts = ["10.0.0.7".to_owned(), "n1.example".to_owned(), "not a name".to_owned()];
        let pem = authority.certify(&public_key, cluster, holder, &hosts, NOW).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(Holder::of(&der), Some((cluster, holder)));
        assert!(!der.windows(4).any(|window| window == b"evil"));
        assert!(der.windows(10).any(|window| window == b"n1.example"));
    }

    #[test]
    fn the_ca_comes_back_from_its_sealed_key() {
        let (cluster, key) = (ClusterId(Uuid::from_u128(1)), ClusterKey::generate().unwrap());
        let authority = Authority::generate(cluster, NOW).unwrap();
        let sealed = authority.seal(&key).unwrap();
        let again = Authority::open(authority.pem(), &sealed, &key).unwrap();
        let made = request().unwrap();
        let holder = Holder::Controller(ControllerId(Uuid::from_u128(3)));
        let public_key = public_key_of(&made.request).unwrap();
        assert!(again.certify(&public_key, cluster, holder, &[], NOW).is_ok());
        assert!(Authority::open(authority.pem(), &sealed, &ClusterKey::generate().unwrap()).is_err());
        assert!(!format!("{again:?}{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_request_with_a_wrong_signature_or_key_is_refused() {
        let made = request().unwrap().request;
        let mut lines: Vec<String> = made.lines().map(str::to_owned).collect();
        let last = lines.len() - 2;
        let swapped = if lines[last].starts_with('A') { "B" } else { "A" };
        lines[last].replace_range(0..1, swapped);
        assert!(public_key_of(&lines.join("\n")).is_err());
        assert!(public_key_of("no pem").is_err());
        assert!(public_key_of(&"x".repeat(REQUEST_BYTES + 1)).is_err());
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let other = CertificateParams::default().serialize_request(&other).unwrap().pem().unwrap();
        assert!(public_key_of(&other).unwrap_err().to_string().contains("P-256"));
    }
}
