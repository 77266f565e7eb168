//! Looks at all QEMU processes of this machine, in whatever namespace, again and again while a test goes on: a VM must
//! never have two at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::Result;
use crate::process::start_time;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A look that goes on until it is ended.
pub struct Lookout {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Lookout {
    /// Begins to look.
    #[must_use]
    pub fn start() -> Self {
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), looks.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let running = running()?;
                counted.fetch_add(1, Ordering::Relaxed);
                if let Some((vm, processes)) = running.into_iter().find(|(_, processes)| processes.len() > 1)
                {
                    bail!("vm {vm} runs {} times at once: processes {processes:?}", processes.len());
                }
                std::thread::sleep(PAUSE); // interval
            }
            Ok(())
        });
        Self { stop, looks, thread }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When a VM ran twice at any look, or nobody looked.
    pub fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the lookout has panicked")??;
        ensure!(self.looks.load(Ordering::Relaxed) > 0, "nobody looked");
        Ok(())
    }
}

/// The QEMU processes of each VM; one that is a zombie runs nothing any more.
///
/// # Errors
/// When /proc cannot be read.
pub fn running() -> Result<BTreeMap<String, Vec<u32>>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        if !name.starts_with("qemu-system") || start_time(id).is_none() {
            continue;
        }
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        // "-name\0guest=tamdao-UUID,…"
        if let Some(vm) = command.split("guest=tamdao-").nth(1).and_then(|rest| rest.get(..36)) {
            found.entry(vm.to_owned()).or_default().push(id);
        }
    }
    Ok(found)
}
