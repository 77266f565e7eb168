//! Contexts: the configuration file, and what is said when there is none.

use insta::assert_snapshot;

use crate::fake::Fake;
use crate::run::Tamdao;

#[tokio::test]
async fn without_a_context_the_next_step_is_named() {
    let tamdao = Tamdao::new(&[]);
    assert_snapshot!(tamdao.story("vm list").await, @r#"
    exit code: 2
    ----- stderr -----
    error: no context is chosen

    hint: run ./deploy/quickstart to make a cloud, or `tamdao context set NAME --endpoint HOST:PORT --ca FILE --token-file FILE` to use one
    "#);
    assert_snapshot!(tamdao.story("context list").await, @r#"
    exit code: 0
    ----- stderr -----
    there are no contexts; make one with `tamdao context set NAME --endpoint HOST:PORT …`
    "#);
    assert_snapshot!(tamdao.story("vm list --endpoint 127.0.0.1:1").await, @r#"
    exit code: 2
    ----- stderr -----
    error: there is no CA to know the controllers by

    hint: give the CA's certificate with --ca FILE, or in the context
    "#);
}

#[tokio::test]
async fn contexts_are_made_chosen_shown_and_forgotten() {
    let tamdao = Tamdao::new(&[]);
    tamdao.file("ca.pem", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n");
    let line = "context set dev --endpoint c1:7440 --endpoint c2:7440 --ca ca.pem --token-stdin -a health";
    assert_snapshot!(tamdao.story_with_input(line, b"very-secret\n").await, @r#"
    exit code: 0
    ----- stderr -----
    context dev was made, and is the current one
    "#);
    assert_snapshot!(tamdao.story("context set prod --endpoint prod:7440").await, @r#"
    exit code: 0
    ----- stderr -----
    context prod was made
    "#);
    assert_snapshot!(tamdao.story("context list").await, @r#"
    exit code: 0
    ----- stdout -----
       NAME  ENDPOINTS        AGENCY
    *  dev   c1:7440,c2:7440  health
       prod  prod:7440        -
    "#);
    assert_snapshot!(tamdao.story("context show").await, @r#"
    exit code: 0
    ----- stdout -----
    Name:        dev
    Current:     yes
    Endpoints:   c1:7440, c2:7440
    CA:          [folder]/ca.pem
    Token:       (in the configuration)
    Agency:      health
    "#);
    assert!(!tamdao.story("context show dev -o json").await.contains("very-secret"));
    assert_snapshot!(tamdao.story("context use nowhere").await, @r#"
    exit code: 2
    ----- stderr -----
    error: there is no context named nowhere

    hint: there are: dev, prod
    "#);
    assert_snapshot!(tamdao.story("context use prod").await, @r#"
    exit code: 0
    ----- stderr -----
    the current context is prod
    "#);
    assert_snapshot!(tamdao.story("context remove prod").await, @r#"
    exit code: 0
    ----- stderr -----
    warning: it was the current one; choose another with `tamdao context use NAME`
    context prod was forgotten
    "#);
    let path = tamdao.folder.path().join("config.toml");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(std::fs::read_to_string(path).unwrap().contains("very-secret"));
}

#[tokio::test]
async fn a_wrong_configuration_names_the_line() {
    let tamdao = Tamdao::new(&[]);
    tamdao.file("config.toml", b"current = \"dev\"\n[contexts.dev]\nendpoint = \"c1:7440\"\n");
    assert_snapshot!(tamdao.story("vm list").await, @r#"
    exit code: 2
    ----- stderr -----
    error: [folder]/config.toml is not a valid configuration
      TOML parse error at line 3, column 1
          |
        3 | endpoint = "c1:7440"
          | ^^^^^^^^
        unknown field `endpoint`, expected one of `endpoints`, `ca`, `token`, `token_file`, `agency`, `server_name`, `login`
    "#);
}

#[tokio::test]
async fn another_endpoint_does_not_get_the_contexts_token() {
    let fake = Fake::default();
    let endpoint = fake.serve().await;
    let tamdao = Tamdao::new(&["http://127.0.0.1:1"]);
    tamdao.output(&format!("vm list --endpoint {endpoint}")).await;
    assert_eq!(fake.world().tokens, [""]);
    tamdao.output(&format!("vm list --context test --endpoint {endpoint}")).await;
    assert_eq!(fake.world().tokens, ["", "Bearer secret-token"]);
}

#[tokio::test]
async fn the_agency_comes_from_flag_environment_or_context() {
    let fake = Fake::default();
    let endpoint = fake.serve().await;
    let tamdao = Tamdao::new(&[&endpoint]);
    for (line, environment, agency) in [
        ("vm list", None, "health"),
        ("vm list", Some("tax"), "tax"),
        ("vm list -a land", Some("tax"), "land"),
        ("vm list -A", Some("tax"), ""),
        ("vm get land/web", Some("tax"), "land"),
    ] {
        let mut command = tamdao.command(line);
        if let Some(agency) = environment {
            command.env("TAMDAO_AGENCY", agency);
        }
        command.output().await.unwrap();
        let asked = fake.world().asked.last().unwrap().1.clone();
        assert!(asked.contains(&format!("agency: {agency:?}")), "{line} asked {asked}");
    }
}
