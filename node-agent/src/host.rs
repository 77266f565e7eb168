//! The host's identity as libvirt has it: unlike the board's serial number it can be set, so that several nodes of
//! one machine are told apart.
//!
//! Deliberately absent: everything about guests, which is `hypervisor`'s.

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("libvirt: {0}")]
    Libvirt(String),
    #[error("libvirt's capabilities name no host UUID")]
    None,
}

/// libvirt's host UUID.
///
/// # Errors
/// libvirt does not answer, or names none.
pub async fn uuid(libvirt_uri: &str) -> Result<String, HostError> {
    let uri = libvirt_uri.to_owned();
    let ask = tokio::task::spawn_blocking(move || virt::connect::Connect::open(Some(&uri))?.capabilities());
    let text = ask
        .await
        .map_err(|error| HostError::Libvirt(error.to_string()))?
        .map_err(|error: virt::error::Error| HostError::Libvirt(error.to_string()))?;
    read(&text).ok_or(HostError::None)
}

/// The host's UUID is the first in the document.
fn read(capabilities: &str) -> Option<String> {
    let (_, rest) = capabilities.split_once("<uuid>")?;
    let (uuid, _) = rest.split_once("</uuid>")?;
    uuid::Uuid::try_parse(uuid.trim()).ok().map(|uuid| uuid.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_uuid_is_the_host_s() {
        let text = "<capabilities>\n <host>\n  <uuid>a9e7cd59-2f3f-4d2c-8a0f-1a2b3c4d5e6f</uuid></host></capabilities>";
        assert_eq!(super::read(text).as_deref(), Some("a9e7cd59-2f3f-4d2c-8a0f-1a2b3c4d5e6f"));
        assert_eq!(super::read("<host/>"), None);
    }
}
