//! Joining a cluster, and staying in it.

use std::sync::Arc;

use super::bed::Bed;
use super::controller::{Ca, Controller};
use crate::dial::Dial;
use crate::enroll::{self, EnrollError};
use crate::pki::Files;
use crate::token::Token;

async fn bed() -> (Arc<Ca>, Controller, Bed) {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::new(&[]);
    (ca, controller, bed)
}

#[tokio::test]
async fn a_token_makes_a_node_that_runs() {
    use std::os::unix::fs::PermissionsExt;
    let (ca, controller, bed) = bed().await;
    let token = Token::parse(&ca.token()).unwrap();
    // The first controller is down; the second answers.
    let controllers = ["127.0.0.1:1".to_owned(), controller.address()];
    let member = enroll::join(&bed.config, &token, &controllers, "host").await.unwrap();
    assert_eq!((member.name.as_str(), member.cluster_id.as_str()), ("n1", "c"));
    let mode = std::fs::metadata(&bed.config.key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = enroll::join(&bed.config, &token, &controllers, "host").await;
    assert!(matches!(again, Err(EnrollError::Joined { .. })));
    let _agent = bed.start();
    controller.wait("session", |p| p.up).await;
}

#[tokio::test]
async fn a_server_of_another_ca_never_sees_the_token() {
    let (_, controller, bed) = bed().await;
    let other = Token::parse(&Ca::new().token()).unwrap();
    let error = enroll::join(&bed.config, &other, &[controller.address()], "host").await.unwrap_err();
    assert!(matches!(error, EnrollError::Unanswered(_)), "{error}");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    assert!(!bed.config.certificate.exists());
}

#[tokio::test]
async fn a_token_that_the_cluster_does_not_know_is_refused_in_its_words() {
    let (ca, controller, bed) = bed().await;
    let token = Token::parse(&ca.token().replace("secret", "guess")).unwrap();
    let error = enroll::join(&bed.config, &token, &[controller.address()], "host").await.unwrap_err();
    assert!(error.to_string().contains("the token is not known"), "{error}");
}

#[tokio::test]
async fn an_agent_that_has_not_joined_says_so() {
    let (_, _, bed) = bed().await;
    let outside = crate::agent::Outside {
        hypervisor: bed.hypervisor.clone(),
        host_uuid: String::new(),
        recorder: None,
    };
    let error = crate::agent::run(&bed.config, outside, Default::default()).await.unwrap_err();
    assert!(error.to_string().contains("tamdao-agent join"), "{error}");
}

#[tokio::test]
async fn a_renewal_keeps_the_session() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.wait("session", |p| p.up).await;
    let files = Files::from(&bed.config);
    let old = files.load().unwrap();
    enroll::renew(&Dial::new(files.clone()), &[controller.address()], "n1").await.unwrap();
    let new = files.load().unwrap();
    assert!(old.certificate != new.certificate && old.key == new.key);
    // The new one opens a session too.
    controller.hang_up();
    controller.wait("another session", |p| p.sessions == 2).await;
}
