//! Why a request is refused, and how that is told: one type for every face, turned into a `google.rpc.Status`
//! with details at the very edge.

use std::collections::HashMap;
use std::time::Duration;

use tamdao_model::Kind;
use tamdao_model::convert::Invalid;
use tamdao_store::kv::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of our reasons, as `google.rpc.ErrorInfo` wants one.
pub const DOMAIN: &str = "tamdao";

/// A refused request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: Code,
    /// One CamelCase word for programs.
    pub reason: &'static str,
    /// What happened, in one sentence without a full stop.
    pub message: String,
    /// Fields that are wrong, by proto path, and what is wrong with each.
    pub fields: Vec<(String, String)>,
    /// What would help; empty when nothing is known to.
    pub hint: String,
    /// Further facts for programs, such as counts of reasons.
    pub facts: Vec<(String, String)>,
    /// When the same request may be let in, ms; 0 where that is not known.
    pub retry_after_ms: u32,
}

impl Refusal {
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let (fields, facts) = (Vec::new(), Vec::new());
        let hint = String::new();
        Self { code, reason, message: message.into(), fields, hint, facts, retry_after_ms: 0 }
    }

    /// Whether it says that things have changed since a decision was made, and not that the store cannot take it.
    pub fn is_overtaken(&self) -> bool {
        matches!(self.code, Code::FailedPrecondition | Code::ResourceExhausted | Code::NotFound)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub fn fact(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.facts.push((name.into(), value.to_string()));
        self
    }

    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        // Rounded up, so that whoever waits so long is let in.
        self.retry_after_ms = u32::try_from(wait.as_millis() + 1).unwrap_or(u32::MAX);
        self
    }

    /// How long to wait, where that is known.
    pub fn wait(&self) -> Option<Duration> {
        (self.retry_after_ms > 0).then(|| Duration::from_millis(self.retry_after_ms.into()))
    }

    /// One field is wrong.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        let (field, message) = (field.into(), message.into());
        let mut refusal = Self::new(Code::InvalidArgument, "InvalidArgument", format!("{field}: {message}"));
        refusal.fields.push((field, message));
        refusal
    }

    pub fn not_found(kind: Kind, name: &str) -> Self {
        Self::new(Code::NotFound, "NotFound", format!("there is no {kind} named {name:?}"))
            .hint(format!("tamdao {} list shows what there is", kind.word().replace('_', "-")))
    }

    pub fn exists(kind: Kind, name: &str) -> Self {
        Self::new(Code::AlreadyExists, "AlreadyExists", format!("a {kind} named {name:?} exists already"))
    }

    /// The resource has changed since the revision that the caller based the request on.
    pub fn stale(kind: Kind, name: &str, theirs: u64, ours: u64) -> Self {
        Self::new(
            Code::Aborted,
            "StaleRevision",
            format!("{kind} {name:?} is at revision {ours}, the request was based on {theirs}"),
        )
        .hint("read it again and repeat the change")
        .fact("revision", ours)
    }

    /// The resource is not in a state for this.
    pub fn precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, "Unavailable", message).hint("try again; running VMs are not touched")
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "Internal", message)
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        let mut refusal = Self::new(Code::InvalidArgument, "InvalidArgument", invalid.to_string());
        refusal.fields = invalid.violations.into_iter().map(|v| (v.field, v.message)).collect();
        refusal
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } | StoreError::Ahead { .. } => Self::unavailable(error.to_string()),
            StoreError::Unknown => {
                Self::new(Code::Aborted, "OutcomeUnknown", "the outcome of the change is unknown")
                    .hint("read the resource to see whether it happened, or repeat with the same request_id")
            }
            StoreError::Compacted { .. } => {
                Self::new(Code::OutOfRange, "Compacted", "the cursor is older than the kept history")
                    .hint("list again and watch from the list's cursor")
            }
            StoreError::Conflict { .. } => {
                Self::new(Code::Aborted, "Conflict", "others changed the same records at the same time")
                    .hint("try again")
            }
            StoreError::TooLarge { .. } | StoreError::Invalid { .. } => Self::internal(error.to_string()),
            other => Self::internal(other.to_string()),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let wait = refusal.wait();
        let mut facts: HashMap<String, String> = refusal.facts.into_iter().collect();
        if !refusal.hint.is_empty() {
            facts.insert("hint".into(), refusal.hint);
        }
        let mut details = ErrorDetails::with_error_info(refusal.reason, DOMAIN, facts);
        for (field, message) in refusal.fields {
            details.add_bad_request_violation(field, message);
        }
        if wait.is_some() {
            details.set_retry_info(wait);
        }
        Status::with_error_details(refusal.code, refusal.message, details)
    }
}
