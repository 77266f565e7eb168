//! What went wrong, as it is told: one sentence, the details below it, and a hint of what to try. Every error that a
//! user sees is a `Problem` or becomes one here; how it is written is the output's matter. A server's answer is never
//! guessed at: what it sent as `google.rpc` details is shown, and hints by code are added only where it sent none.

use std::fmt;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::quantity::duration;

/// How the command ends, as an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: failed, as the user can see.
    Failed,
    /// 2: wrong usage, or something unexpected.
    Usage,
    /// 2 too: a plan has changes, where that was asked for (`--detailed-exitcode`).
    Changes,
    /// 3: still in progress when the time was over.
    InProgress,
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(match status {
            ExitStatus::Done => 0,
            ExitStatus::Failed => 1,
            ExitStatus::Usage | ExitStatus::Changes => 2,
            ExitStatus::InProgress => 3,
        })
    }
}

/// Something that went wrong.
#[derive(Debug)]
pub struct Problem {
    pub exit: ExitStatus,
    /// One sentence without a full stop.
    pub what: String,
    /// Lines below it.
    pub details: Vec<String>,
    /// What to try, the most useful first.
    pub hints: Vec<String>,
    /// The server's code, where a server spoke.
    pub code: Option<Code>,
    /// The server's reason, one word, where it gave one.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Problem {}

impl Problem {
    /// The command makes no sense as given.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, what.into())
    }

    /// It was understood and could not be done.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::Failed, what.into())
    }

    /// It goes on, but the time to wait is over.
    pub fn in_progress(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::InProgress, what.into())
    }

    fn new(exit: ExitStatus, what: String) -> Self {
        Self { exit, what, details: Vec::new(), hints: Vec::new(), code: None, reason: String::new() }
    }

    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Says first what was being done: "vm web: not found".
    pub fn about(mut self, subject: &str) -> Self {
        if !self.what.contains(subject) {
            self.what = format!("{subject}: {}", self.what);
        }
        self
    }

    /// No endpoint gave an answer; each with what it said last.
    pub fn unreachable(tried: Vec<(String, String)>) -> Self {
        let no_quorum = tried.iter().any(|(_, said)| said.starts_with("answers"));
        let mut problem = Self::failed(if no_quorum {
            "no controller could serve the request"
        } else {
            "no controller could be reached"
        });
        problem.code = Some(Code::Unavailable);
        problem.details = tried.into_iter().map(|(address, said)| format!("{address}: {said}")).collect();
        problem.hint(if no_quorum {
            "the controllers are up but cannot decide; see their logs, and whether a majority of them runs"
        } else {
            "check that a controller runs there, and that `tamdao context show` names the right endpoints"
        })
    }

    /// What a server answered.
    pub fn from_status(status: &Status) -> Self {
        let sent = status.get_error_details();
        let exit = match status.code() {
            Code::Internal | Code::Unknown | Code::DataLoss | Code::Unimplemented => ExitStatus::Usage,
            _ => ExitStatus::Failed,
        };
        let what = if status.message().is_empty() {
            code_sentence(status.code()).to_owned()
        } else {
            status.message().to_owned()
        };
        let mut problem = Self::new(exit, what);
        problem.code = Some(status.code());
        if let Some(bad) = sent.bad_request() {
            let lines = bad
                .field_violations
                .iter()
                .map(|violation| format!("{}: {}", violation.field, violation.description));
            // A single wrong field is often the sentence itself.
            problem.details.extend(lines.filter(|line| *line != problem.what));
        }
        if let Some(failure) = sent.precondition_failure() {
            for violation in &failure.violations {
                problem.details.push(format!("{}: {}", violation.subject, violation.description));
            }
        }
        if let Some(failure) = sent.quota_failure() {
            for violation in &failure.violations {
                problem.details.push(format!("{}: {}", violation.subject, violation.description));
            }
        }
        if let Some(info) = sent.error_info() {
            problem.reason.clone_from(&info.reason);
            let mut pairs: Vec<_> = info.metadata.iter().filter(|(key, _)| *key != "hint").collect();
            pairs.sort();
            problem.details.extend(pairs.into_iter().map(|(key, value)| format!("{key}: {value}")));
            problem.hints.extend(info.metadata.get("hint").cloned());
        }
        if let Some(debug) = sent.debug_info().filter(|debug| !debug.detail.is_empty()) {
            problem.details.push(format!("detail: {}", debug.detail));
        }
        if let Some(help) = sent.help() {
            problem.hints.extend(help.links.iter().map(|link| {
                if link.url.is_empty() {
                    link.description.clone()
                } else {
                    format!("{} {}", link.description, link.url)
                }
            }));
        }
        if let Some(delay) = sent.retry_info().and_then(|retry| retry.retry_delay) {
            problem.hints.push(format!("try again in {}", duration(delay)));
        }
        if problem.hints.is_empty() {
            problem.hints.extend(code_hint(status.code()).map(str::to_owned));
        }
        problem
    }
}

/// Said when the server sent no message.
fn code_sentence(code: Code) -> &'static str {
    match code {
        Code::NotFound => "not found",
        Code::AlreadyExists => "it exists already",
        Code::Unauthenticated => "the controller does not know you",
        Code::PermissionDenied => "you may not do this",
        Code::ResourceExhausted => "there is no room",
        Code::DeadlineExceeded => "the controller did not answer in time",
        Code::Unimplemented => "the controller does not know this request",
        _ => "the request failed",
    }
}

/// Said when the server sent nothing that would help.
fn code_hint(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Unauthenticated => {
            "give a valid token with `tamdao context set NAME --token-stdin` or --token-file"
        }
        Code::PermissionDenied => "ask an admin of the cloud, or use another context (`tamdao context list`)",
        Code::NotFound => "see what there is with `list`, and which agency is meant (-a)",
        Code::AlreadyExists => "take another name, or change what exists with `update`",
        Code::Aborted => "it has changed in the meantime; look at it again and repeat the command",
        Code::ResourceExhausted => "see where the room went with `tamdao node list -o wide`",
        Code::DeadlineExceeded => "see `tamdao controller list`; the command may be repeated safely",
        Code::Unimplemented => {
            "the controllers may be older than this command line; compare `tamdao debug cluster`"
        }
        Code::Internal | Code::Unknown | Code::DataLoss => "see the controllers' logs",
        _ => return None,
    })
}

/// Any error as a problem; what is not one already is unexpected.
pub fn problem_of(error: anyhow::Error) -> Problem {
    match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(other) => {
            let chain: Vec<String> = other.chain().map(ToString::to_string).collect();
            Problem::usage(chain.join(": "))
        }
    }
}
