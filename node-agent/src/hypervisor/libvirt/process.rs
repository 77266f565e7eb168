//! The process of a domain: libvirtd writes its id to a file of its own, and the process itself says on its command
//! line which domain it is, so that a file that a crash left is never believed.

use std::path::Path;

use tamdao_keeper::process::start_time;
use tamdao_keeper::protocol::ProcessId;
use uuid::Uuid;

use super::super::{HypervisorError, domain_name};

/// The QEMU of a VM's domain.
///
/// # Errors
/// There is none, or it cannot be told which it is.
pub fn find(directory: &Path, vm: Uuid) -> Result<ProcessId, HypervisorError> {
    let unknown =
        |message: String| HypervisorError::Refused { reason: "ProcessUnknown", message, permanent: false };
    let name = domain_name(vm);
    let file = directory.join(format!("{name}.pid"));
    let text =
        std::fs::read_to_string(&file).map_err(|error| unknown(format!("{}: {error}", file.display())))?;
    let pid = text.trim().parse().map_err(|_| unknown(format!("{}: no process id", file.display())))?;
    // When it started is read first: a process that takes its place later has another command line or start.
    let start_time = start_time(pid).map_err(|error| unknown(error.to_string()))?;
    let command =
        std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|error| unknown(error.to_string()))?;
    let is_it = command.windows(name.len()).any(|part| part == name.as_bytes());
    is_it
        .then_some(ProcessId { pid, start_time })
        .ok_or_else(|| unknown(format!("process {pid} is not {name}")))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_file_that_names_another_process_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let vm = Uuid::from_u128(7);
        assert!(find(dir.path(), vm).is_err(), "no file");
        let file = dir.path().join(format!("{}.pid", domain_name(vm)));
        std::fs::write(&file, format!("{}\n", std::process::id())).unwrap();
        assert!(find(dir.path(), vm).unwrap_err().to_string().contains("is not tamdao-"));
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo; read line", &domain_name(vm)])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A process may be seen for a moment without its arguments; one that speaks has them.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        std::fs::write(&file, format!("{}\n", child.id())).unwrap();
        let found = find(dir.path(), vm);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap().pid, i32::try_from(child.id()).unwrap());
    }
}
