//! The Redfish client against a service that is honest, lies, hangs or breaks: every answer is what was said of the right
//! machine, or a fault; nothing but that machine is ever told to power off.

use std::time::Duration;

use crate::cloud::bmc::{FakeBmc, Manner, PASSWORD, USER};
use tamdao_controller::bmc::{Access, Bmc, Fault, Redfish};
use tamdao_controller::clock::{Clock, SystemClock};
use tamdao_controller::pki;
use tamdao_controller::serve::Listener;
use tamdao_model::bmc::{Power, Seen, Trust};
use tamdao_model::sealed::Unsealed;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const HOST: Uuid = Uuid::from_u128(0x4c4c_4544_0042_3010_8052_b4c0_4f4a_3232);
const OTHER: Uuid = Uuid::from_u128(0x1234);

fn access(url: &str) -> Access {
    Access {
        url: url.into(),
        username: USER.into(),
        password: Unsealed(PASSWORD.into()),
        trust: Trust::Unverified,
    }
}

fn client() -> Redfish {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Only what hangs takes so long.
    Redfish::within(Duration::from_secs(2), Duration::from_secs(2))
}

#[tokio::test]
async fn a_machine_is_looked_at_and_powered_off() {
    let bmc = FakeBmc::new(HOST, Manner::Honest);
    let access = access(&bmc.serve().await);
    let seen = client().look(&access, HOST).await;
    assert_eq!(seen, Ok(Seen { system_uuid: HOST, power: Power::On }));
    assert_eq!(client().force_off(&access, HOST).await, Ok(()));
    let seen = client().look(&access, HOST).await;
    assert_eq!(seen, Ok(Seen { system_uuid: HOST, power: Power::Off }));
    assert_eq!(bmc.with(|machine| machine.commands), 1);
}

#[tokio::test]
async fn the_right_one_of_several_machines_is_meant() {
    let bmc = FakeBmc::new(HOST, Manner::Honest);
    bmc.with(|machine| machine.neighbour = Some(OTHER));
    let url = bmc.serve().await;
    client().force_off(&access(&url), HOST).await.unwrap();
    assert!(bmc.is_off());
    assert_eq!(client().look(&access(&url), OTHER).await.unwrap().power, Power::On, "the neighbour runs on");
    // The url may name one system; it is held to that.
    let one = access(&format!("{url}/redfish/v1/Systems/2"));
    assert_eq!(client().look(&one, HOST).await.unwrap().system_uuid, OTHER);
    assert_eq!(client().force_off(&one, HOST).await, Err(Fault::WrongMachine(OTHER)));
}

#[tokio::test]
async fn the_wrong_machine_is_never_powered_off() {
    let bmc = FakeBmc::new(OTHER, Manner::Honest);
    let access = access(&bmc.serve().await);
    assert_eq!(client().look(&access, HOST).await.unwrap().system_uuid, OTHER);
    assert_eq!(client().force_off(&access, HOST).await, Err(Fault::WrongMachine(OTHER)));
    assert_eq!(bmc.with(|machine| (machine.commands, machine.off_at)), (0, None));
}

#[tokio::test]
async fn what_is_no_answer_is_a_fault() {
    let cases = [
        (Manner::Hangs, "TooSlow"),
        (Manner::Status(500), "Failed"),
        (Manner::Status(503), "Failed"),
        (Manner::Status(204), "Failed"),
        (Manner::Status(401), "Denied"),
        (Manner::Status(403), "Denied"),
        (Manner::HalfJson, "Malformed"),
        (Manner::NotJson, "Malformed"),
        (Manner::NoPowerState, "Malformed"),
        (Manner::Redirects, "Redirected"),
        (Manner::LeadsElsewhere, "Malformed"),
        (Manner::Endless, "Malformed"),
    ];
    let (client, bmc) = (client(), FakeBmc::new(HOST, Manner::Honest));
    let access = access(&bmc.serve().await);
    for (manner, reason) in cases {
        bmc.with(|machine| machine.manner = manner);
        let looked = client.look(&access, HOST).await.unwrap_err();
        let told = client.force_off(&access, HOST).await.unwrap_err();
        assert_eq!((looked.reason(), told.reason()), (reason, reason), "{manner:?}: {looked}; {told}");
    }
    assert_eq!(bmc.with(|machine| machine.commands), 0);
    bmc.with(|machine| machine.manner = Manner::Honest);
    let stranger = Access { password: Unsealed("another".into()), ..access.clone() };
    assert_eq!(client.look(&stranger, HOST).await, Err(Fault::Denied(401)));
    let nobody = Access { url: "http://127.0.0.1:1".into(), ..access };
    assert_eq!(client.look(&nobody, HOST).await.unwrap_err().reason(), "Unreachable");
}

#[tokio::test]
async fn a_command_that_is_refused_is_told_as_it_is() {
    let bmc = FakeBmc::new(HOST, Manner::RefusesWhenOff);
    let access = access(&bmc.serve().await);
    assert_eq!(client().force_off(&access, HOST).await, Ok(()));
    assert_eq!(client().force_off(&access, HOST).await, Err(Fault::Status(409)));
    assert_eq!(client().look(&access, HOST).await.unwrap().power, Power::Off, "and is off all the same");
}

#[tokio::test]
async fn only_who_is_trusted_is_told_the_password() {
    let client = client();
    let directory = tempfile::tempdir().unwrap();
    let config = crate::cloud::config(directory.path(), "bmc");
    let found = |name: &str| {
        let config = crate::cloud::config(directory.path(), name);
        tamdao_controller::identity::found(&config, "test", SystemClock.now()).unwrap().0
    };
    let (identity, stranger) = (found("bmc"), found("stranger"));
    let bmc = FakeBmc::new(HOST, Manner::Honest);
    let listener = Listener::bind(config.listen, &identity.credentials().unwrap()).await.unwrap();
    let plain = access(&format!("https://{}", listener.address()));
    tokio::spawn(listener.run(bmc.router(), CancellationToken::new()));
    let leaf = std::fs::read_to_string(config.data_dir.join("controller.pem")).unwrap();
    let leaf = pki::sha256_hex(&pki::der_of(&leaf).unwrap());
    let other = pki::sha256_hex(b"another certificate");
    for (trust, reason) in [
        (Trust::Ca(identity.ca.clone()), None),
        (Trust::Fingerprint(leaf), None),
        (Trust::Unverified, None),
        (Trust::Ca(stranger.ca.clone()), Some("Untrusted")),
        (Trust::Ca("no certificate".into()), Some("Untrusted")),
        (Trust::Fingerprint(other), Some("Untrusted")),
    ] {
        let access = Access { trust: trust.clone(), ..plain.clone() };
        let looked = client.look(&access, HOST).await;
        assert_eq!(looked.as_ref().err().map(Fault::reason), reason, "{trust:?}: {looked:?}");
    }
    assert_eq!(format!("{plain:?}").matches(PASSWORD).count(), 0);
}
