//! Looks at every QEMU of every node again and again: a guest may have two processes while it moves, and only one of
//! them may run. Whether one runs is told by the CPU time of its virtual CPUs' threads, which stand still when it is
//! paused; so the guest must be kept busy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, ensure};

use crate::Result;

/// How often it looks: a kernel's tick is 10 ms, so a busy guest gains several.
const PAUSE: Duration = Duration::from_millis(50);

/// What was seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Looks in which the guest had a process.
    pub looks: u64,
    /// Looks in which it had two or more.
    pub two_processes: u64,
    /// Looks in which no process of it ran since the look before, in a row, at most.
    pub longest_still: u64,
    /// What two running processes looked like; empty if there never were two.
    pub twice: String,
    /// Looks in which some process of it ran.
    pub running: u64,
}

/// Watches one VM until it is asked what it saw.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Watcher {
    /// Begins to watch the VM with this id.
    #[must_use]
    pub fn begin(vm: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, vm) = (stop.clone(), vm.to_owned());
        let thread = std::thread::spawn(move || watch(&vm, &asked));
        Self { stop, thread: Some(thread) }
    }

    /// Ends, and says what was seen.
    ///
    /// # Errors
    /// When it ran twice at any moment, or was hardly seen at all.
    pub fn end(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("it is watched once"))?;
        let seen = thread.join().map_err(|_| anyhow!("the watcher has died"))?;
        ensure!(seen.twice.is_empty(), "it ran twice: {}", seen.twice);
        ensure!(seen.looks > 20 && seen.running > 10, "it was hardly seen to run: {seen:?}");
        Ok(seen)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(vm: &str, stop: &AtomicBool) -> Seen {
    let (mut seen, mut still) = (Seen::default(), 0);
    let mut before: BTreeMap<u32, u64> = BTreeMap::new();
    // Who ran between the last two looks: at a handover both may have, one after the other, but not twice in a row.
    let mut ran_before: Vec<u32> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now: BTreeMap<u32, u64> =
            qemus(vm).into_iter().filter_map(|process| Some((process, vcpu_ticks(process)?))).collect();
        let ran: Vec<u32> = now
            .iter()
            .filter(|(process, ticks)| before.get(process).is_some_and(|then| **ticks > then + 1))
            .map(|(process, _)| *process)
            .collect();
        seen.looks += u64::from(!now.is_empty());
        seen.two_processes += u64::from(now.len() > 1);
        seen.running += u64::from(!ran.is_empty());
        still = if ran.is_empty() { still + 1 } else { 0 };
        seen.longest_still = seen.longest_still.max(still);
        let twice: Vec<u32> = ran.iter().filter(|process| ran_before.contains(process)).copied().collect();
        if twice.len() > 1 && seen.twice.is_empty() {
            seen.twice = format!("processes {twice:?}, {before:?} became {now:?}");
        }
        ran_before = ran;
        before = now;
        std::thread::sleep(PAUSE);
    }
    seen
}

/// The QEMU processes of a VM, in whatever namespaces.
fn qemus(vm: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let name = format!("guest=tamdao-{vm}");
    ids.filter(|id| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.starts_with(b"/usr/bin/qemu") && String::from_utf8_lossy(&line).contains(&name)
    })
    .collect()
}

/// CPU time of a QEMU's virtual CPUs, kernel ticks.
fn vcpu_ticks(process: u32) -> Option<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if !name.starts_with("CPU ") {
            continue;
        }
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        sum += fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    }
    Some(sum)
}
