//! The OpenAPI document against what is served: schemathesis makes up requests, good and bad, and every answer has to
//! be one that the document tells, and none a fault of the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use tamdao_tests::process::{output, run, said};
use tamdao_tests::{Cloud, Result};

/// Pinned, because each version makes up other requests.
const VERSION: &str = "4.32.5";
/// The same requests each time.
const SEED: &str = "20261121";
/// Examples of one operation, if the environment does not say it.
const EXAMPLES: &str = "10";
/// Where the environment says it: a long run makes up more.
const EXAMPLES_VARIABLE: &str = "TAMDAO_TEST_EXAMPLES";

#[tokio::test]
async fn the_contract_holds_under_made_up_requests() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let address = &cloud.controllers[0].address;
    let mut command = Command::new(schemathesis()?);
    let examples = std::env::var(EXAMPLES_VARIABLE).unwrap_or_else(|_| EXAMPLES.to_owned());
    command
        .args(["run", &format!("https://{address}/openapi.json"), "--url", &format!("https://{address}")])
        .arg("--tls-verify")
        .arg(cloud.controllers[0].data_dir.join("ca.pem"))
        .args(["--header", &format!("Authorization: Bearer {}", cloud.token)])
        .args(["--phases", "coverage,fuzzing", "--max-examples", &examples, "--seed", SEED])
        .args(["--checks", "not_a_server_error,content_type_conformance,response_schema_conformance"])
        // A watch does not end by itself.
        .args([
            "--exclude-path-regex",
            ":watch$",
            "--request-timeout",
            "20",
            "--no-shrink",
            "--warnings",
            "off",
        ])
        .args(["--suppress-health-check", "all"])
        .current_dir(&cloud.slot.directory)
        .env("NO_COLOR", "1");
    let output = tokio::task::spawn_blocking(move || output(&mut command)).await??;
    if !output.status.success() {
        bail!("{}", said(&output));
    }
    cloud.done()
}

/// The program, installed on first use beside the build.
fn schemathesis() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let home = target.join(format!("schemathesis-{VERSION}"));
    let program = home.join("bin/schemathesis");
    if !program.is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))
            .context("a Python environment; Debian's package is python3-venv")?;
        run(Command::new(home.join("bin/pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            &format!("schemathesis=={VERSION}"),
        ]))
        .context("schemathesis from the Python package index")?;
    }
    Ok(program)
}
