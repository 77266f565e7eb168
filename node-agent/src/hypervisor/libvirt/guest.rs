//! What the guest agent says, from its JSON to [`GuestStatus`].
//!
//! Invariant: what a guest says is the guest's word only, and bounded: a hostile one cannot fill a report.

use serde::Deserialize;
use tamdao_proto::v1::GuestStatus;

/// Addresses and bytes of a name taken from a guest at most.
const MAX_ADDRESSES: usize = 64;
const MAX_NAME: usize = 255;

pub const HOST_NAME: &str = r#"{"execute":"guest-get-host-name"}"#;
pub const INTERFACES: &str = r#"{"execute":"guest-network-get-interfaces"}"#;

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: T,
}

#[derive(Deserialize)]
struct HostName {
    #[serde(rename = "host-name")]
    name: String,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(rename = "ip-addresses", default)]
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "ip-address")]
    address: String,
    prefix: u8,
}

/// Reads the two answers; one that cannot be read counts as empty.
pub fn read(host_name: &str, interfaces: &str) -> GuestStatus {
    let mut hostname = serde_json::from_str::<Answer<HostName>>(host_name)
        .map(|answer| answer.value.name)
        .unwrap_or_default();
    hostname.retain(|character| !character.is_control());
    while hostname.len() > MAX_NAME {
        hostname.pop();
    }
    let mut addresses: Vec<String> = serde_json::from_str::<Answer<Vec<Interface>>>(interfaces)
        .map(|answer| answer.value)
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| interface.name != "lo")
        .flat_map(|interface| interface.addresses)
        .filter_map(|address| {
            let parsed: std::net::IpAddr = address.address.parse().ok()?;
            (!parsed.is_loopback()).then(|| format!("{parsed}/{}", address.prefix))
        })
        .take(MAX_ADDRESSES)
        .collect();
    addresses.sort();
    addresses.dedup();
    GuestStatus { ready: true, hostname, addresses }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_answers_are_read() {
        let status = read(
            r#"{"return":{"host-name":"web\u001b"}}"#,
            r#"{"return":[
                {"name":"lo","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"127.0.0.1","prefix":8}]},
                {"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[
                    {"ip-address-type":"ipv6","ip-address":"fd00::7","prefix":64},
                    {"ip-address-type":"ipv4","ip-address":"10.20.0.7","prefix":24}]},
                {"name":"sit0"}]}"#,
        );
        assert!(status.ready);
        assert_eq!(status.hostname, "web");
        assert_eq!(status.addresses, ["10.20.0.7/24", "fd00::7/64"]);
    }

    #[test]
    fn nonsense_is_empty() {
        let status = read("", "[1,2]");
        assert!(status.ready && status.hostname.is_empty() && status.addresses.is_empty());
    }
}
