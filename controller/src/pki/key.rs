//! The cluster key: what seals the secret fields of records.
//!
//! Its invariant: it lies in each controller's data directory and in its memory, never in the store, a log or an
//! answer other than that to an enrolled controller. What is sealed for one place does not open in another.

use std::fmt;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tamdao_model::sealed::Sealed;

use super::{PkiError, random};

/// 32 bytes that every controller has; a clone is another handle on the same bytes.
#[derive(Clone)]
pub struct ClusterKey(Arc<[u8; 32]>);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(hidden)")
    }
}

impl ClusterKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, PkiError> {
        Ok(Self(Arc::new(random()?)))
    }

    /// A key from its bytes.
    ///
    /// # Errors
    /// Unless there are 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PkiError> {
        let bytes =
            bytes.try_into().map_err(|_| PkiError::read("the cluster key", "it must have 32 bytes"))?;
        Ok(Self(Arc::new(bytes)))
    }

    /// The bytes, for the key's own file and for a controller that joins.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals a secret for one place, such as "vm/<uuid>/user_data": only the same context opens it again.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Sealed, PkiError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut sealed = nonce.to_vec();
        let mut text = secret.to_vec();
        self.cipher()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut text)
            .map_err(|_| PkiError::Sealed)?;
        sealed.append(&mut text);
        Ok(Sealed(sealed))
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// When it was sealed with another key or for another place, or is damaged.
    pub fn open(&self, context: &str, sealed: &Sealed) -> Result<Vec<u8>, PkiError> {
        let (nonce, text) = sealed.0.split_at_checked(NONCE_LEN).ok_or(PkiError::Sealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| PkiError::Sealed)?;
        let mut text = text.to_vec();
        let length = self
            .cipher()
            .open_in_place(nonce, Aad::from(context), &mut text)
            .map_err(|_| PkiError::Sealed)?
            .len();
        text.truncate(length);
        Ok(text)
    }

    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*self.0).expect("the key has the cipher's length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_own_place_only() {
        let key = ClusterKey::generate().unwrap();
        let sealed = key.seal("vm/1/user_data", b"secret").unwrap();
        assert!(!sealed.0.windows(6).any(|window| window == b"secret"));
        assert_eq!(key.open("vm/1/user_data", &sealed).unwrap(), b"secret");
        assert!(key.open("vm/2/user_data", &sealed).is_err());
        assert!(ClusterKey::generate().unwrap().open("vm/1/user_data", &sealed).is_err());
        let mut damaged = sealed.clone();
        *damaged.0.last_mut().unwrap() ^= 1;
        assert!(key.open("vm/1/user_data", &damaged).is_err());
        assert!(key.open("vm/1/user_data", &Sealed(vec![0; 5])).is_err());
        assert_ne!(key.seal("x", b"secret").unwrap(), key.seal("x", b"secret").unwrap());
    }

    #[test]
    fn a_key_hides_itself() {
        let key = ClusterKey::from_bytes(&[7; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "ClusterKey(hidden)");
        assert!(ClusterKey::from_bytes(&[7; 31]).is_err());
    }
}
