//! One member in a process of its own, which can be killed and stopped like any other; and its links, which it cuts
//! itself when it is told to. Both ends talk in lines of JSON.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tamdao_store::backend::raft::RaftStore;
use tamdao_store::kv::{Key, Kv as _, Member, Membership as _, Read, Revision, StoreError, Txn};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::cluster::{Cluster, Running};

const TEST: &str = "linear::process::a_member_by_itself";
const FOLDER: &str = "TAMDAO_TEST_MEMBER";

#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Where it is, and who it is.
    Seat,
    Init(Uuid),
    Join(Uuid),
    Add {
        id: u64,
        name: String,
        address: String,
    },
    Put {
        key: String,
        value: u64,
        /// The revision that the key must have.
        guard: Option<u64>,
    },
    Get {
        key: String,
    },
    /// Cuts the links from this member to these; those from them are theirs to cut.
    Cut(Vec<String>),
    /// Holds back what comes on the links from this member to these.
    Hold(Vec<String>),
    Heal,
    /// Gives the lead to somebody, if it has it.
    Yield(u64),
    /// Why its store has stopped, if it has.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Seat {
        id: u64,
        address: String,
    },
    /// A number and the revision that wrote it.
    Found(Option<(u64, u64)>),
    Stopped(Option<String>),
    Conflict,
    /// Nothing was written.
    Refused,
    Unknown,
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    said: T,
}

/// Who waits for the answer to which number; none when there will be no more.
type Waiting = Option<HashMap<u64, oneshot::Sender<Answer>>>;

/// A member's process, as a test has it.
pub struct Process {
    child: Mutex<Child>,
    pid: Pid,
    input: tokio::sync::Mutex<ChildStdin>,
    waiting: Arc<Mutex<Waiting>>,
    numbers: AtomicU64,
}

impl Process {
    /// Starts a member on what its folder holds.
    pub fn start(folder: &Path, name: &str, address: &str) -> Process {
        Process::run(Command::new(std::env::current_exe().unwrap()), folder, name, address)
    }

    /// The same with the files that the process `of` sees.
    pub fn start_with_files(of: u32, folder: &Path, name: &str) -> Process {
        let mut command = Command::new("nsenter");
        command.args(["--target", &of.to_string(), "--user", "--mount", "--preserve-credentials"]);
        command.arg(std::env::current_exe().unwrap());
        Process::run(command, folder, name, "127.0.0.1:0")
    }

    fn run(mut command: Command, folder: &Path, name: &str, address: &str) -> Process {
        command.args(["--exact", TEST, "--nocapture"]);
        command.env(FOLDER, format!("{}\n{name}\n{address}", folder.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let waiting = Arc::new(Mutex::new(Waiting::Some(HashMap::new())));
        let answered = Arc::clone(&waiting);
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The test harness says a few words of its own.
                let said = line.find('{').map_or("", |at| &line[at..]);
                let Ok(answer) = serde_json::from_str::<Numbered<Answer>>(said) else { continue };
                let sender = answered.lock().unwrap().as_mut().and_then(|all| all.remove(&answer.number));
                let _ = sender.map(|sender| sender.send(answer.said));
            }
            // It is dead: nobody waits for it any more.
            answered.lock().unwrap().take();
        });
        let (child, input) = (Mutex::new(child), tokio::sync::Mutex::new(input));
        Process { child, pid, input, waiting, numbers: AtomicU64::new(0) }
    }

    /// Asks it something; none when it died before it answered.
    pub async fn ask(&self, ask: Ask) -> Option<Answer> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().as_mut()?.insert(number, sender);
        let mut line = serde_json::to_string(&Numbered { number, said: ask }).unwrap();
        line.push('\n');
        self.input.lock().await.write_all(line.as_bytes()).await.ok()?;
        answer.await.ok()
    }

    /// Takes its processor away, or gives it back.
    pub fn pause(&self, pause: bool) {
        // One that is dead already is no matter.
        let _ = kill_process(self.pid, if pause { Signal::STOP } else { Signal::CONT });
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&self) {
        let _ = kill_process(self.pid, Signal::KILL);
        self.gone().await;
    }

    /// Waits until it has ended.
    pub async fn gone(&self) {
        loop {
            if !matches!(self.child.lock().unwrap().try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The other end: what a process does that [`Process::start`] made. Called by anybody else it has no folder and is
/// nothing, since a test program has no other entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_by_itself() {
    let Ok(setting) = std::env::var(FOLDER) else { return };
    let [folder, name, address] = setting.lines().collect::<Vec<_>>()[..] else { panic!("{setting}") };
    let cluster = Cluster::at(PathBuf::from(folder), |config| {
        config.commit_timeout = Duration::from_secs(2);
        config.read_timeout = Duration::from_secs(2);
        (config.heartbeat, config.election_min) = (Duration::from_millis(50), Duration::from_millis(250));
        config.election_max = Duration::from_millis(500);
        (config.snapshot_entries, config.keep_entries) = (100, 50);
    });
    let member = Arc::new(cluster.start_at(name, address).await);
    let store = member.store.clone();
    tokio::spawn(async move {
        store.ended().await;
        std::process::exit(1);
    });
    let (links, output) = (cluster.links.clone(), Arc::new(tokio::sync::Mutex::new(tokio::io::stdout())));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let ask: Numbered<Ask> = serde_json::from_str(&line).unwrap();
        let (member, links, output) = (Arc::clone(&member), links.clone(), Arc::clone(&output));
        tokio::spawn(async move {
            let said = match ask.said {
                Ask::Cut(those) => {
                    those.iter().for_each(|that| links.isolate(that));
                    Answer::Done
                }
                Ask::Hold(those) => {
                    those.iter().for_each(|that| links.hold(that));
                    Answer::Done
                }
                Ask::Heal => {
                    links.heal();
                    Answer::Done
                }
                ask => answer(&member, ask).await,
            };
            let mut line = serde_json::to_string(&Numbered { number: ask.number, said }).unwrap();
            line.push('\n');
            let mut output = output.lock().await;
            output.write_all(line.as_bytes()).await.unwrap();
            output.flush().await.unwrap();
        });
    }
}

async fn answer(member: &Running, ask: Ask) -> Answer {
    let store: &RaftStore = &member.store;
    let told = match ask {
        Ask::Seat => return Answer::Seat { id: store.id(), address: member.address().into() },
        Ask::Init(cluster) => store.init(cluster).await,
        Ask::Join(cluster) => store.join(cluster).await,
        Ask::Add { id, name, address } => {
            store.add_member(Member { id, name, address, voter: false }).await.map(drop)
        }
        Ask::Put { key, value, guard } => {
            let key = Key::new(key).unwrap();
            let txn = match guard {
                Some(revision) => Txn::new().unchanged(key.clone(), Revision(revision)),
                None => Txn::new(),
            };
            store.commit(txn.put(key, value.to_string())).await.map(drop)
        }
        Ask::Get { key } => match store.get(&Key::new(key).unwrap(), Read::Linearizable).await {
            Ok(found) => {
                let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse().unwrap();
                return Answer::Found(found.map(|entry| (number(&entry.value), entry.mod_revision.0)));
            }
            Err(error) => Err(error),
        },
        Ask::Stopped => return Answer::Stopped(store.status().error),
        Ask::Yield(to) => store.transfer_leadership(to).await,
        Ask::Cut(_) | Ask::Hold(_) | Ask::Heal => Ok(()),
    };
    match told {
        Ok(()) => Answer::Done,
        Err(StoreError::Conflict { .. }) => Answer::Conflict,
        Err(StoreError::Unknown) => Answer::Unknown,
        Err(_) => Answer::Refused,
    }
}
