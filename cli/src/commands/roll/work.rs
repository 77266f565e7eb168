//! The work on drained nodes, and how it is known to be over: the operator's command has ended well, or the nodes say
//! what the update is for, or that something of them has changed, or the operator says so. A node is taken into use
//! again only when its agent is heard and it can run VMs.

use std::process::Stdio;

use anyhow::{Context, Result};
use futures::future::join_all;
use tamdao_proto::v1::{Node, NodePhase};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::{Mutex, mpsc};

use super::{Roll, goal};
use crate::app::App;
use crate::problem::Problem;
use crate::quantity::duration;
use crate::resource::{Place, Resource};
use crate::wait::{Goal as Wanted, Verdict, until};

/// Lines that the operator has typed; read from the first need of them on.
#[derive(Default)]
pub struct Confirmed(Mutex<Option<mpsc::UnboundedReceiver<()>>>);

impl Confirmed {
    /// Waits for the next line, or for ever if nobody is there.
    async fn next(&self) {
        let mut lines = self.0.lock().await;
        let lines = lines.get_or_insert_with(|| {
            let (said, lines) = mpsc::unbounded_channel();
            // A thread of its own: nothing waits for it when the command ends.
            std::thread::spawn(move || {
                for _line in std::io::stdin().lines().map_while(Result::ok) {
                    if said.send(()).is_err() {
                        return;
                    }
                }
            });
            lines
        });
        if lines.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

impl Roll<'_> {
    /// Has drained nodes worked on, and waits until they can be taken into use again.
    pub async fn work(&self, drained: &[Node]) -> Result<()> {
        // Of a run that was broken off some may have been worked on.
        let open: Vec<&Node> = drained.iter().filter(|node| !self.has_all(node)).collect();
        if let Some(command) = &self.args.run {
            self.run_on(command, &open).await?;
        }
        let names: Vec<&str> = open.iter().map(|node| node.name()).collect();
        if self.args.run.is_some() || !self.goals.is_empty() {
            return self.ready(drained).await;
        }
        let all = names.join(", ");
        self.app.output.note(&format!("{all}: nothing runs there; waiting for a new boot or version"));
        if self.args.moves.yes || !self.app.output.can_ask() {
            return self.ready(drained).await;
        }
        self.app.output.note("press Enter when the work there is done");
        let changed = self.ready(drained);
        tokio::select! {
            changed = changed => changed,
            () = self.confirmed.next() => self.heard(drained).await,
        }
    }

    /// Waits until each node is as it shall be.
    async fn ready(&self, drained: &[Node]) -> Result<()> {
        for before in drained {
            let judge = |now: &Node| {
                let over = match (&self.args.run, self.goals.as_slice()) {
                    (None, []) => goal::said(now) != goal::said(before),
                    (_, goals) => goals.iter().all(|goal| goal.lacks(now).is_none()),
                };
                if over && is_ready(now) { Verdict::Reached } else { Verdict::Going }
            };
            self.until(before, &judge).await?;
        }
        Ok(())
    }

    async fn heard(&self, drained: &[Node]) -> Result<()> {
        let judge = |now: &Node| if is_ready(now) { Verdict::Reached } else { Verdict::Going };
        for before in drained {
            self.until(before, &judge).await?;
        }
        Ok(())
    }

    async fn until(&self, before: &Node, judge: &dyn Fn(&Node) -> Verdict) -> Result<()> {
        let place = Place { agency: String::new(), name: before.name().to_owned() };
        let now = Node::fetch(self.app.client()?, &place).await?;
        let ended = until(self.app, now, &self.wait(), Wanted::State(judge)).await;
        let Err(error) = ended else { return Ok(()) };
        // What it lacks says more than its phase.
        let now = Node::fetch(self.app.client()?, &place).await?;
        let lacks = self.goals.iter().filter_map(|goal| goal.lacks(&now));
        let mut problem = crate::problem::problem_of(error);
        for lack in lacks {
            problem = problem.detail(format!("{}: {lack}", now.name()));
        }
        Err(problem.into())
    }

    /// Runs the operator's command for each node, all of a group at the same time. Those that go on are awaited when one
    /// has failed.
    async fn run_on(&self, command: &str, nodes: &[&Node]) -> Result<()> {
        let runs = nodes.iter().map(|node| async {
            let ran = tokio::time::timeout(self.args.timeout, run(self.app, command, node)).await;
            let late = || Problem::in_progress(format!("runs for {} already", duration(self.args.timeout)));
            ran.unwrap_or_else(|_| Err(late().into()))
        });
        let mut problems = Vec::new();
        for (node, ran) in nodes.iter().zip(join_all(runs).await) {
            match ran {
                Ok(()) => self.app.output.note(&format!("{}: the command has ended well", node.name())),
                Err(error) => problems.push((node.name(), crate::problem::problem_of(error))),
            }
        }
        let Some((first, mut problem)) = problems.pop() else { return Ok(()) };
        problem.what = format!("the command for {first} {}", problem.what);
        for (name, other) in problems {
            problem = problem.detail(format!("that for {name} {}", other.what));
        }
        Err(problem.into())
    }
}

fn is_ready(node: &Node) -> bool {
    node.status.as_ref().is_some_and(|status| status.phase() == NodePhase::Ready)
}

/// Runs a command for one node; what it says is told line by line.
async fn run(app: &App, command: &str, node: &Node) -> Result<()> {
    let name = node.name();
    let address = node.status.as_ref().map(|status| status.address.as_str()).unwrap_or_default();
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("TAMDAO_NODE", name)
        .env("TAMDAO_NODE_ADDRESS", address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot be started: sh")?;
    let (out, err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
    let (_, _, status) = tokio::join!(tell(app, name, out), tell(app, name, err), child.wait());
    let status = status?;
    if status.success() {
        return Ok(());
    }
    Err(Problem::failed(format!("ended with {status}")).into())
}

async fn tell(app: &App, name: &str, output: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        app.output.note(&format!("{name}: {line}"));
    }
}
