//! The hosts that nodes are: the scripts of deploy/testbed, called with the prefix and the network of one place.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};

use crate::Result;
use crate::binaries::deploy;
use crate::process::{output, run};

/// Looks twice at each guest's processor, for a guest that hangs and one that works look alike from outside.
const AUTOPSY: &str = r#"
virsh='timeout 5 virsh -q -c qemu:///system'
for guest in $($virsh list --name); do
    echo "$guest: $($virsh domstate --reason "$guest"), $($virsh domjobinfo "$guest" | head -n 1)"
    for look in 'info status' 'info registers' 'info cpus' 'info chardev' 'info registers'; do
        $virsh qemu-monitor-command "$guest" --hmp "$look" | grep -vE '^(.S|LDT|TR|GDT|IDT|FPR|XMM|YMM|ST|CR|DR)' | head -n 12
    done
    $virsh domstats --vcpu --state "$guest"
done
tail -n 12 "$serial"/*.log /var/log/libvirt/qemu/*.log 2>/dev/null
true"#;

/// The hosts of one cloud.
#[derive(Clone)]
pub struct Testbed {
    pub prefix: String,
    pub directory: PathBuf,
    number: u8,
}

impl Testbed {
    /// The hosts of the place with this number; nothing is started.
    pub fn of(number: u8, directory: &Path) -> Self {
        Self { prefix: format!("tt{number}"), directory: directory.join("nodes"), number }
    }

    /// An address in the testbed's network, 10.91.N.0/24.
    pub fn address(&self, host: u8) -> String {
        format!("10.91.{}.{host}", self.number)
    }

    /// Makes the bridge that joins the nodes and this host; its address is the host's.
    ///
    /// # Errors
    /// When it cannot be made, or something that guests need is missing and cannot be installed.
    pub fn up(&self) -> Result<()> {
        install()?;
        let (bridge, address) = (self.bridge(), format!("{}/24", self.address(1)));
        self.script("network", &["up", "--bridge", &bridge, "--address", &address])?;
        Ok(())
    }

    /// Joins the network of a process to the bridge, by a link that is eth0 there.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn join(&self, name: &str, process: u32) -> Result<()> {
        let (link, process) = (format!("{}-{name}", self.prefix), process.to_string());
        let ip = |words: &[&str]| run(Command::new("ip").args(words));
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &process])?;
        // By this mark the testbed knows what is its own.
        ip(&["link", "set", &link, "alias", &format!("tamdao-testbed {}", self.prefix)])?;
        ip(&["link", "set", &link, "master", &self.bridge(), "up"]).map(drop)
    }

    /// Starts a host, or starts it again after a cut.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&self, node: &str, index: u8) -> Result<()> {
        let (bridge, address) = (self.bridge(), format!("{}/24", self.address(10 + index)));
        let uuid = format!("7a6d0000-0000-4000-8000-{:06}{index:06}", self.number);
        self.script("node", &["up", node, "--bridge", &bridge, "--address", &address, "--uuid", &uuid])?;
        Ok(())
    }

    /// What stands in for the watchdog's hardware of a host.
    pub fn watchdog(&self, node: &str, seconds: &str) -> Command {
        let mut command = self.command("watchdog");
        command.args([node, "--", seconds]);
        command
    }

    /// The power of a host goes.
    ///
    /// # Errors
    /// When its processes stay.
    pub fn cut(&self, node: &str) -> Result<()> {
        self.script("node", &["cut", node]).map(drop)
    }

    /// # Errors
    /// When libvirtd does not come back.
    pub fn restart_libvirtd(&self, node: &str) -> Result<()> {
        self.script("node", &["restart-libvirtd", node]).map(drop)
    }

    /// The shell line that restarts libvirtd of the host whose name this shell word is.
    pub fn restarts_libvirtd(&self, node: &str) -> String {
        let script = deploy().join("testbed/node");
        let (prefix, directory, script) = (&self.prefix, self.directory.display(), script.display());
        format!(
            "TAMDAO_TESTBED_PREFIX={prefix} TAMDAO_TESTBED_DIR='{directory}' '{script}' restart-libvirtd {node}"
        )
    }

    /// A command that runs inside a host and dies when its own process does.
    pub fn inside(&self, node: &str) -> Command {
        let mut command = self.command("node");
        command.args(["exec", node, "--"]);
        command
    }

    /// Runs a shell line inside a host; its stdout.
    ///
    /// # Errors
    /// When the line fails.
    pub fn shell(&self, node: &str, line: &str) -> Result<String> {
        run(self.inside(node).args(["bash", "-c", line]))
    }

    /// The same, however it ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn try_shell(&self, node: &str, line: &str) -> Result<Output> {
        output(self.inside(node).args(["bash", "-c", line]))
    }

    /// The names of the running guests of a host.
    ///
    /// # Errors
    /// When libvirt does not answer.
    pub fn domains(&self, node: &str) -> Result<Vec<String>> {
        let names = self.shell(node, "virsh -q -c qemu:///system list --all --name")?;
        Ok(names.lines().filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// The process ids of a host's QEMUs, as this host sees them.
    ///
    /// # Errors
    /// When the host does not run.
    pub fn qemus(&self, node: &str) -> Result<Vec<u32>> {
        let init = self.script("node", &["pid", node])?;
        let space = |id: u32| std::fs::read_link(format!("/proc/{id}/ns/pid")).ok();
        let home = space(init.parse()?).context("the host's init has ended")?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            if name.starts_with("qemu-system") && space(id).as_ref() == Some(&home) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// What a host's guests do, for the output of a failed test: their state as libvirt and QEMU tell it, where their
    /// processor is, and the ends of their serial logs and of QEMU's.
    ///
    /// # Errors
    /// When the host does not run.
    pub fn autopsy(&self, node: &str, data_dir: &Path) -> Result<String> {
        let line = format!("serial={}/serial\n{AUTOPSY}", data_dir.display());
        let output = self.try_shell(node, &line)?;
        Ok(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
    }

    /// Removes the hosts and the bridge; nothing is left.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn down(&self) -> Result<()> {
        self.script("network", &["down", "--purge"]).map(drop)
    }

    fn bridge(&self) -> String {
        format!("{}-br", self.prefix)
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(deploy().join("testbed").join(script));
        command.env("TAMDAO_TESTBED_PREFIX", &self.prefix).env("TAMDAO_TESTBED_DIR", &self.directory);
        command
    }

    fn script(&self, script: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(script).args(arguments))
    }
}

/// Installs what deploy/packages names and is missing.
fn install() -> Result<()> {
    let programs = [
        "ip",
        "nft",
        "virsh",
        "libvirtd",
        "virtlogd",
        "qemu-system-x86_64",
        "qemu-img",
        "genisoimage",
        "nsenter",
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if programs.iter().all(|program| directories.iter().any(|directory| directory.join(program).is_file())) {
        return Ok(());
    }
    run(&mut Command::new(deploy().join("install-packages"))).map(drop)
}

/// The tiny guest's directory: kernel, initrd, cmdline, tiny.qcow2.
///
/// # Errors
/// When it cannot be built.
pub fn tiny() -> Result<PathBuf> {
    install()?;
    let answer = run(&mut Command::new(deploy().join("images/tiny")))?;
    let directory = PathBuf::from(answer);
    if !directory.join("tiny.qcow2").is_file() {
        bail!("deploy/images/tiny made no tiny.qcow2 in {}", directory.display());
    }
    Ok(directory)
}
