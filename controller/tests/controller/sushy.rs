//! The Redfish client against somebody else's service: the emulator of sushy-tools, OpenStack's, with its fake machines,
//! which go off some seconds after they are told to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cloud::eventually;
use tamdao_controller::bmc::{Access, Bmc, Redfish};
use tamdao_model::bmc::{Power, Seen, Trust};
use tamdao_model::sealed::Unsealed;
use uuid::Uuid;

/// Pinned, because each version answers in its own way.
const VERSION: &str = "2.2.0";
const HOST: Uuid = Uuid::from_u128(0x1111_1111_2222_4333_8444_5555_5555_5555);
const OTHER: Uuid = Uuid::from_u128(0x1111_1111_2222_4333_8444_6666_6666_6666);

/// Ends with the test.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, installed on first use beside the build.
fn emulator() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let home = target.join(format!("sushy-tools-{VERSION}"));
    let program = home.join("bin/sushy-emulator");
    if !program.is_file() {
        let done = Command::new("python3").args(["-m", "venv"]).arg(&home).status().unwrap();
        assert!(done.success(), "a Python environment; Debian's package is python3-venv");
        let package = format!("sushy-tools=={VERSION}");
        let mut pip = Command::new(home.join("bin/pip"));
        let done =
            pip.args(["install", "--quiet", "--disable-pip-version-check", &package]).status().unwrap();
        assert!(done.success(), "{package} from the Python package index");
    }
    program
}

#[tokio::test]
async fn the_emulators_machine_is_looked_at_and_powered_off() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let machine =
        |uuid: Uuid| format!("{{'uuid': '{uuid}', 'name': '{uuid}', 'power_state': 'On', 'nics': []}}");
    let settings = format!(
        "SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\n\
         SUSHY_EMULATOR_STATE_DIR = '{}'\nSUSHY_EMULATOR_FAKE_SYSTEMS = [{}, {}]\n",
        directory.path().display(),
        machine(OTHER),
        machine(HOST)
    );
    let file = directory.path().join("emulator.conf");
    std::fs::write(&file, settings).unwrap();
    let program = tokio::task::spawn_blocking(emulator).await.unwrap();
    let mut command = Command::new(program);
    command.args(["--fake", "--config"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let _emulator = Emulator(command.spawn().unwrap());

    let access = Access {
        url: format!("http://127.0.0.1:{port}"),
        username: "fencer".into(),
        password: Unsealed("a word".into()),
        trust: Trust::Unverified,
    };
    let redfish = Redfish::default();
    let seen = eventually("the emulator answers", || async { redfish.look(&access, HOST).await.ok() }).await;
    assert_eq!(seen, Seen { system_uuid: HOST, power: Power::On });
    redfish.force_off(&access, HOST).await.unwrap();
    eventually("the machine is off", || async {
        let seen = redfish.look(&access, HOST).await.unwrap();
        (seen.power == Power::Off).then_some(())
    })
    .await;
    assert_eq!(redfish.look(&access, OTHER).await.unwrap(), Seen { system_uuid: OTHER, power: Power::On });
}
