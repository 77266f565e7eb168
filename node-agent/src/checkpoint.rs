//! Named places at which tests may kill the agent, to show that every restart finds one whole state.
//!
//! Invariant: without tests or the feature `test-hooks` a checkpoint is nothing at all. The names, in order of a
//! create: volume-aside, volume-renamed, volume (in the ledger), seed (start recorded, filter perhaps not written),
//! define (no domain yet), start (domain paused), resumed (runs, not in the ledger), running, report (first report that says RUNNING, not
//! sent), reported (sent). Of a move, on the source: move-sending
//! (recorded, nothing sent), move-sent (libvirt has answered), move-gone (recorded, nobody told), move-said (target told);
//! of one that is off: move-loaded (the target
//! expects it, nothing recorded), move-piece (after each piece of a file), and move-sending to move-said as above;
//! on the target: move-receive (nothing let in yet), move-ready, move-heard (recorded, guest paused), and resumed and
//! running as above. Of a disk that is carried to it:
//! disk-piece, disk-aside (whole, aside), disk-placed. Others: image-fetched, volume-removed, action (recorded, not done).

/// Kills the process here if `TAMDAO_CRASH_AT` names the checkpoint; a test inside the process can hang it.
#[cfg(any(test, feature = "test-hooks"))]
pub async fn checkpoint(name: &'static str) {
    if std::env::var("TAMDAO_CRASH_AT").is_ok_and(|at| at == name) {
        if name == "reported" {
            // What was handed to the connection has to be on its way before the process dies.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    #[cfg(test)]
    hang::here(name).await;
}

/// Nothing, outside tests.
#[cfg(not(any(test, feature = "test-hooks")))]
#[allow(clippy::unused_async)]
pub async fn checkpoint(_name: &'static str) {}

#[cfg(test)]
pub mod hang {
    //! Instead of dying, a test's agent stands still at the checkpoint until the test drops it.

    use std::sync::Mutex;

    use tokio::sync::oneshot;

    static AT: Mutex<Option<(&'static str, oneshot::Sender<()>)>> = Mutex::new(None);

    /// Arms one checkpoint; the receiver hears when it is reached.
    pub fn at(name: &'static str) -> oneshot::Receiver<()> {
        let (reached, heard) = oneshot::channel();
        *AT.lock().unwrap() = Some((name, reached));
        heard
    }

    pub(super) async fn here(name: &'static str) {
        let armed = AT.lock().unwrap().take_if(|(at, _)| *at == name);
        if let Some((_, reached)) = armed {
            let _ = reached.send(());
            std::future::pending::<()>().await;
        }
    }
}
