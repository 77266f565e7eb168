//! People come in by a real identity provider: a browser, a command line that waits for it, controllers that check what
//! it got, and a token that is exchanged when its time is over.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use tamdao_tests::cli::Cli;
use tamdao_tests::process::said;
use tamdao_tests::provider::Provider;
use tamdao_tests::{Cloud, Result};

/// Less than the command line leaves to a token before it exchanges it: so each command does.
const TTL_S: u32 = 20;

#[tokio::test]
async fn a_person_comes_in_by_the_browser_and_stays() -> Result<()> {
    let mut cloud = Cloud::builder().start().await?;
    let mut provider = Provider::start(&cloud.slot, TTL_S).await?;
    cloud.controllers[0].stop().await?;
    cloud.controllers[0].configure(&provider.section())?;
    cloud.start_controller(0)?;
    let admin = &cloud.cli;
    for agency in ["health", "works"] {
        admin.run(&["--retry-for", "60s", "agency", "create", agency]).await?;
    }
    admin
        .run(&["role-binding", "create", "health/doctors", "--role", "member", "--group", "Sở Y tế"])
        .await?;

    let config = cloud.slot.directory.join("lan.toml");
    let ca = cloud.controllers[0].data_dir.join("ca.pem");
    let endpoints = [cloud.controllers[0].address.clone()];
    let lan = Cli::new(&config, &endpoints, &ca, &cloud.slot.directory.join("none"), "health").await?;
    let issuer_ca = provider.ca.display().to_string();
    let login = ["login", "--no-browser", "--issuer", &provider.issuer, "--client-id", "tamdao"];
    let login = [&login[..], &["--issuer-ca", &issuer_ca]].concat();
    let said_at_last = lan
        .answered(&login, async |url| {
            // Whoever comes without what the provider gave is not taken for it.
            let back = url.split("redirect_uri=").nth(1).and_then(|rest| rest.split('&').next());
            let back = back.context("a way back")?.replace("%3A", ":").replace("%2F", "/");
            ensure!(provider.browse(&format!("{back}?code=x&state=forged")).await.is_err());
            let page = provider.browse(url).await?;
            ensure!(page.contains("You are in"), "{page}");
            Ok(())
        })
        .await?;
    ensure!(said_at_last.contains("you have come in"), "{said_at_last}");
    let mode = std::fs::metadata(&config)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");

    let kept = std::fs::read_to_string(&config)?;
    let seen = lan.run(&["agency", "list"]).await?;
    ensure!(seen.contains("health") && !seen.contains("works"), "{seen}");
    let exchanged = std::fs::read_to_string(&config)?;
    ensure!(kept != exchanged, "the token was not exchanged");
    ensure!(!lan.run(&["context", "show"]).await?.contains("eyJ"));
    let refused = lan.attempt(&["agency", "create", "own"]).await?;
    ensure!(!refused.status.success() && said(&refused).contains("role"), "{}", said(&refused));

    // What cannot be exchanged is told as what it is.
    provider.stop().await?;
    let alone = lan.attempt(&["agency", "list"]).await?;
    ensure!(!alone.status.success() && said(&alone).contains("does not answer"), "{}", said(&alone));
    lan.run(&["logout"]).await?;
    ensure!(!std::fs::read_to_string(&config)?.contains("eyJ"));
    cloud.done()
}
