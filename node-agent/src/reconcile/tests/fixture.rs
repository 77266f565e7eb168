//! The fixtures' text form. A line is a noun, a number where it needs one, and words or key=value pairs:
//! `boot b1`, `now 100000`, `away`, `pool 1 free=500`, `image a`, `file 1`, `exit 1 crashed`, `busy 1`,
//! `answered 99000`, `no-keeper`, `lease 1 since=10`, `guarded 1 i=1`, `unreaped 1`, `vm 1 i=1 g=1 on run=always cut`, `volume 1 make size=100 image=a`, `domain 1 i=1 g=1 paused=io-error`,
//! `ledger 1 i=1 running stop=5000 under=10`, `made 1 size=100`, `failed 1 start attempts=3`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tamdao_proto::v1::{Platform, Power, RunPolicy};
use uuid::Uuid;

use crate::desired::{
    ActionKind, Desired, Digest, Intent, VolumeIntent, WantedAction, WantedMove, WantedPool, WantedVm,
    WantedVolume, Way,
};
use crate::hypervisor::{Domain, DomainState, Exit, PauseReason};
use crate::keeper::{KeeperFact, Lease};
use crate::ledger::{End, Incoming, Life, Outgoing, State, Stop, VmRecord, VolumeRecord, Word};
use crate::reconcile::{Decision, Efforts, FileFact, PoolFact, Step, Subject, View, decide, problem};

/// A node that owns what a view borrows.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub now_ms: u64,
    pub boot_id: String,
    pub desired: Desired,
    pub domains: BTreeMap<Uuid, Domain>,
    pub away: Option<String>,
    pub unobserved: bool,
    pub exits: BTreeMap<Uuid, Exit>,
    pub ledger: State,
    pub pools: BTreeMap<Uuid, PoolFact>,
    pub files: BTreeMap<Uuid, FileFact>,
    pub images: BTreeSet<Digest>,
    pub efforts: Efforts,
    pub busy: BTreeMap<Subject, Step>,
    pub keeper: KeeperFact,
    pub answered_ms: Option<u64>,
}

pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub fn digest(name: &str) -> Digest {
    Digest::parse(&name.repeat(64)).unwrap()
}

pub fn domain(vm: Uuid, incarnation: u64, generation: u64, state: DomainState) -> Domain {
    Domain {
        vm,
        incarnation,
        generation,
        state,
        platform: Platform { machine_type: "q35".into(), cpu_model: "max".into() },
        vcpus: 1,
        memory_mib: 128,
        started: UNIX_EPOCH + Duration::from_secs(5),
        guest_agent_connected: false,
    }
}

pub fn wanted_vm() -> WantedVm {
    WantedVm {
        incarnation: 1,
        generation: 1,
        intent: Intent::Wanted,
        power: Power::On,
        run: RunPolicy::OnFailure,
        machine: Arc::default(),
        volumes: Vec::new(),
        images: Vec::new(),
        action: None,
        stop_force: false,
        stop_ms: 120_000,
        priority: 0,
        moving: None,
        fresh: true,
        fault: None,
    }
}

impl Node {
    pub fn parse(text: &str) -> Self {
        let mut node =
            Self { boot_id: "b1".into(), now_ms: 100_000, answered_ms: Some(99_000), ..Self::default() };
        node.desired.complete = true;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            node.line(line);
        }
        node
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = || words.get(1).and_then(|word| word.parse::<u128>().ok()).map(id).unwrap_or_default();
        let value = |key: &str| {
            words.iter().find_map(|word| word.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')))
        };
        let count = |key: &str, default: u64| value(key).map_or(default, |text| text.parse().unwrap());
        let has = |word: &str| words.contains(&word);
        match words[0] {
            "boot" => self.boot_id = words[1].into(),
            "now" => self.now_ms = words[1].parse().unwrap(),
            "away" => self.away = Some("libvirt is away".into()),
            "unobserved" => self.unobserved = true,
            "before-assignment" => self.desired.complete = false,
            "image" => drop(self.images.insert(digest(words[1]))),
            "file" => drop(self.files.insert(number(), FileFact { exists: true, used_mib: 1 })),
            "pool" => {
                let wanted = WantedPool { name: "p".into(), path: "/p".into(), shared: has("shared") };
                self.desired.pools.insert(number(), wanted);
                let free = count("free", 1000);
                let fact = PoolFact {
                    ready: !has("absent"),
                    capacity_mib: 1000,
                    used_mib: 1000 - free,
                    message: String::new(),
                };
                self.pools.insert(number(), fact);
            }
            "exit" => {
                let exit = match words[2] {
                    "shutdown" => Exit::Shutdown,
                    "destroyed" => Exit::Destroyed,
                    "crashed" => Exit::Crashed,
                    "migrated" => Exit::Migrated,
                    other => panic!("{other}"),
                };
                self.exits.insert(number(), exit);
            }
            "no-keeper" => self.keeper.away = Some("it does not answer".into()),
            "answered" => self.answered_ms = Some(words[1].parse().unwrap()),
            "lease" => {
                let lease = Lease { lease_ms: 60_000, held_since_ms: count("since", 10) };
                self.keeper.leases.insert(number(), lease);
            }
            "guarded" => drop(self.keeper.guests.insert(number(), count("i", 1))),
            "unreaped" => drop(self.keeper.unreaped.get_or_insert_default().insert(number())),
            "busy" => {
                let vm = number();
                let step = if has("send") { Step::Send { vm } } else { Step::Start { vm, again: false } };
                drop(self.busy.insert(Subject::Vm(vm), step))
            }
            "failed" => {
                for _ in 0..count("attempts", 1) {
                    let problem = problem("Tried", "it did not work", has("permanent"));
                    self.efforts.fail(
                        Subject::Vm(number()),
                        "start",
                        (count("i", 1), count("g", 1)),
                        problem,
                        count("at", 100_000),
                    );
                }
            }
            "made" => {
                let size_mib = u32::try_from(count("size", 100)).unwrap();
                let record = VolumeRecord {
                    pool: id(1),
                    made: true,
                    size_mib,
                    deleted: has("deleted"),
                    copy: count("copy", 0),
                    ..Default::default()
                };
                self.ledger.volumes.insert(number(), record);
            }
            "volume" => {
                let intent = match words[2] {
                    "make" => VolumeIntent::Make,
                    "keep" => VolumeIntent::Keep,
                    "delete" => VolumeIntent::Delete,
                    "receive" => VolumeIntent::Receive,
                    other => panic!("{other}"),
                };
                let wanted = WantedVolume {
                    pool: id(1),
                    intent,
                    size_mib: u32::try_from(count("size", 100)).unwrap(),
                    image: value("image").map(digest),
                    copy: count("copy", 0),
                    fresh: !has("cut"),
                };
                self.desired.volumes.insert(number(), wanted);
            }
            "vm" => drop(self.desired.vms.insert(number(), parse_vm(&value, &count, &has))),
            "domain" => {
                let state = match value("paused") {
                    _ if has("shutting-down") => DomainState::ShuttingDown,
                    None => DomainState::Running,
                    Some("not-yet-run") => DomainState::Paused(PauseReason::NotYetRun),
                    Some("on-demand") => DomainState::Paused(PauseReason::OnDemand),
                    Some("io-error") => DomainState::Paused(PauseReason::IoError),
                    Some("migration") => DomainState::Paused(PauseReason::Migration),
                    Some(_) => DomainState::Paused(PauseReason::Other),
                };
                self.domains.insert(number(), domain(number(), count("i", 1), count("g", 1), state));
            }
            "ledger" => drop(self.ledger.vms.insert(number(), self.parse_record(&value, &count, &has))),
            other => panic!("unknown noun {other}"),
        }
    }

    fn parse_record<'a>(
        &self,
        value: &dyn Fn(&str) -> Option<&'a str>,
        count: &dyn Fn(&str, u64) -> u64,
        has: &dyn Fn(&str) -> bool,
    ) -> VmRecord {
        let (life, end) = if has("running") {
            (Life::Running, None)
        } else if has("starting") {
            (Life::Starting, None)
        } else if let Some(end) = value("ended") {
            let end = match end {
                "by-itself" => End::ByItself,
                "on-order" => End::OnOrder,
                "failed" => End::Failed,
                "migrated" => End::Migrated,
                other => panic!("{other}"),
            };
            (Life::Ended, Some(end))
        } else {
            (Life::New, None)
        };
        VmRecord {
            incarnation: count("i", 1),
            generation: count("g", 1),
            life,
            end,
            boot_id: value("boot").unwrap_or(&self.boot_id).into(),
            stop: value("stop")
                .map(|at| Stop { deadline_ms: at.parse().unwrap(), asked_ms: count("asked", 95_000) }),
            reboot: has("reboot"),
            paused: has("paused-by-us"),
            action: value("action").map(|n| id(n.parse().unwrap())),
            streak: u32::try_from(count("streak", 0)).unwrap(),
            ended_ms: count("at", 100_000),
            leases: value("under").map(|since| (id(1), since.parse().unwrap())).into_iter().collect(),
            untidy: has("untidy"),
            outgoing: value("out").map(|n| Outgoing {
                id: id(n.parse().unwrap()),
                word: match () {
                    () if has("kept") => Word::Kept,
                    () if has("gone") => Word::Gone,
                    () => Word::Sending,
                },
                reason: String::new(),
                files: has("files"),
            }),
            incoming: value("in").map(|n| Incoming { id: id(n.parse().unwrap()), go: has("go") }),
            ..Default::default()
        }
    }

    pub fn view(&self) -> View<'_> {
        const NO_GUESTS: &BTreeMap<Uuid, tamdao_proto::v1::GuestStatus> = &BTreeMap::new();
        View {
            now_ms: self.now_ms,
            boot_id: &self.boot_id,
            desired: &self.desired,
            domains: &self.domains,
            foreign: 0,
            hypervisor_away: self.away.as_deref(),
            observed: !self.unobserved,
            exits: &self.exits,
            ledger: &self.ledger,
            pools: &self.pools,
            files: &self.files,
            images: &self.images,
            guests: NO_GUESTS,
            efforts: &self.efforts,
            keeper: &self.keeper,
            answered_ms: self.answered_ms,
            busy: &self.busy,
        }
    }

    pub fn decide(&self) -> Decision {
        decide(&self.view())
    }
}

fn parse_vm<'a>(
    value: &dyn Fn(&str) -> Option<&'a str>,
    count: &dyn Fn(&str, u64) -> u64,
    has: &dyn Fn(&str) -> bool,
) -> WantedVm {
    let volumes = value("volumes")
        .map_or(Vec::new(), |list| list.split(',').map(|n| (id(n.parse().unwrap()), id(1))).collect());
    let action = |key, kind| {
        value(key).map(|n| WantedAction { id: id(n.parse().unwrap()), kind, deadline_ms: 60_000 })
    };
    WantedVm {
        incarnation: count("i", 1),
        generation: count("g", 1),
        intent: match () {
            () if has("stop") => Intent::Stop,
            () if has("stale") => Intent::Stale,
            () if has("incoming") => Intent::Incoming,
            () if has("outgoing") => Intent::Outgoing,
            () => Intent::Wanted,
        },
        power: match () {
            () if has("off") => Power::Off,
            () if has("paused") => Power::Paused,
            () => Power::On,
        },
        run: match value("run") {
            Some("always") => RunPolicy::Always,
            Some("stopped") => RunPolicy::Stopped,
            _ => RunPolicy::OnFailure,
        },
        volumes,
        images: value("iso").map(digest).into_iter().collect(),
        action: action("reboot", ActionKind::Reboot).or(action("reset", ActionKind::Reset)),
        stop_force: has("force"),
        moving: value("move").map(|n| WantedMove {
            id: id(n.parse().unwrap()),
            peer: id(99),
            address: "peer:7444".into(),
            from: 1,
            to: 2,
            way: match () {
                () if has("cold-with-disks") => Way::ColdWithDisks,
                () if has("cold") => Way::Cold,
                () => Way::Live,
            },
            recall: has("recall"),
            auto_converge: true,
            stays_off: false,
        }),
        fresh: !has("cut"),
        ..wanted_vm()
    }
}

/// A decision in the form of the fixtures.
pub fn show(decision: &Decision) -> String {
    use tamdao_proto::agent::v1::{GuestExit, GuestState, VolumeState};
    let number = |text: &str| Uuid::try_parse(text).map_or(0, |id| id.as_u128());
    let mut lines = Vec::new();
    for step in &decision.steps {
        lines.push(format!("  do {}", brief(step)));
    }
    for vm in &decision.report.vms {
        let state = GuestState::try_from(vm.state).unwrap().as_str_name().trim_start_matches("GUEST_STATE_");
        let mut line = format!(
            "  say vm {} i={} g={} {}",
            number(&vm.vm_id),
            vm.incarnation,
            vm.generation,
            state.to_lowercase()
        );
        if vm.exit != 0 {
            let exit = GuestExit::try_from(vm.exit).unwrap().as_str_name().trim_start_matches("GUEST_EXIT_");
            line += &format!(" exit={}", exit.to_lowercase());
        }
        for (flag, word) in [(vm.gone, "gone"), (vm.unknown, "unknown"), (vm.guarded, "guarded")] {
            if flag {
                line += &format!(" {word}");
            }
        }
        if !vm.pause_reason.is_empty() {
            line += &format!(" paused-for={}", vm.pause_reason);
        }
        if let Some(told) = &vm.r#move {
            let state = told.state().as_str_name().trim_start_matches("MOVE_STATE_").to_lowercase();
            line += &format!(" move={state}");
            if let Some(problem) = &told.problem {
                line += &format!("({})", problem.reason);
            }
        }
        if let Some(problem) = &vm.problem {
            line += &format!(" problem={}({})", problem.reason, problem.attempts);
        }
        lines.push(line);
    }
    for volume in &decision.report.volumes {
        let state =
            VolumeState::try_from(volume.state).unwrap().as_str_name().trim_start_matches("VOLUME_STATE_");
        let mut line = format!("  say volume {} {}", number(&volume.volume_id), state.to_lowercase());
        if let Some(problem) = &volume.problem {
            line += &format!(" problem={}", problem.reason);
        }
        lines.push(line);
    }
    if !decision.report.complete {
        lines.push("  say incomplete".into());
    }
    if let Some(at) = decision.wake_ms {
        lines.push(format!("  wake {at}"));
    }
    if lines.is_empty() {
        lines.push("  nothing".into());
    }
    lines.join("\n")
}

fn brief(step: &Step) -> String {
    let subject = match step.subject() {
        Subject::Vm(id) | Subject::Volume(id) | Subject::Move(id) => id.as_u128().to_string(),
        Subject::Image(digest) => digest.as_str()[..1].to_owned(),
    };
    let more = match step {
        Step::RecordEnd { end, .. } => format!(" {end:?}"),
        Step::Recognise { paused: true, .. } => " paused".into(),
        Step::Tidy { incarnation, .. } => format!(" i={incarnation}"),
        Step::Start { again: true, .. } => " again".into(),
        Step::Resume { why, .. } => format!(" {why:?}"),
        Step::Shutdown { deadline_ms, reboot, .. } => {
            format!(" until={deadline_ms}{}", if *reboot { " reboot" } else { "" })
        }
        Step::Destroy { incarnation, stale, .. } => {
            format!(" i={incarnation}{}", if *stale { " stale" } else { "" })
        }
        Step::Reboot { action, deadline_ms, .. } => {
            format!(" action={} until={deadline_ms}", action.as_u128())
        }
        Step::Reset { action, .. } => format!(" action={}", action.as_u128()),
        Step::Keep { reason, .. } => format!(" {reason}"),
        Step::GrowVolume { size_mib, .. } => format!(" size={size_mib}"),
        _ => String::new(),
    };
    format!("{} {subject}{more}", step.kind())
}
