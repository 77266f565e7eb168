//! The help pages and the completion scripts are part of the contract with people: frozen as golden text.

use crate::run::Tamdao;

#[tokio::test]
async fn help_pages_are_golden() {
    let tamdao = Tamdao::new(&[]);
    for page in [
        "",
        "agency",
        "apply",
        "audit",
        "audit export",
        "audit list",
        "completion",
        "context",
        "context set",
        "controller",
        "controller add",
        "debug",
        "events",
        "failure-domain",
        "failure-domain drain",
        "flavor",
        "image",
        "image import",
        "login",
        "move",
        "network",
        "network create",
        "node",
        "node drain",
        "node join-token",
        "node remove",
        "node return",
        "node roll",
        "node update",
        "placement-group",
        "placement-group create",
        "plan",
        "pool",
        "pool create",
        "role-binding",
        "role-binding create",
        "scheduling-policy",
        "scheduling-policy update",
        "simulate",
        "simulate fit",
        "simulate place",
        "simulate survive",
        "token",
        "token create",
        "vm",
        "vm console",
        "vm create",
        "vm delete",
        "vm log",
        "vm migrate",
        "vm update",
        "volume",
        "volume create",
    ] {
        let name = format!("help-{}", page.replace(' ', "-")).trim_end_matches('-').to_owned();
        insta::assert_snapshot!(name, tamdao.story(&format!("{page} --help")).await);
    }
}

#[tokio::test]
async fn every_shell_gets_a_completion_script() {
    let tamdao = Tamdao::new(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let output = tamdao.output(&format!("completion {shell}")).await;
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("transfer-leader"));
    }
}

#[tokio::test]
async fn a_closed_stdout_is_no_failure() {
    let tamdao = Tamdao::new(&[]);
    let mut child = tamdao.command("completion bash").spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
