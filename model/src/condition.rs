//! Conditions: observed facts about a resource, each with its reason.

use serde::{Deserialize, Serialize};

use crate::TimeMs;

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// One observed fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// CamelCase, unique in its resource.
    #[serde(rename = "type")]
    pub kind: String,
    pub status: ConditionStatus,
    /// One CamelCase word for programs.
    pub reason: String,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub observed_generation: u64,
    pub last_transition_time: TimeMs,
}

/// Conditions in the order of their types.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Conditions(pub Vec<Condition>);

impl Conditions {
    pub fn get(&self, kind: &str) -> Option<&Condition> {
        self.0.iter().find(|c| c.kind == kind)
    }

    /// Writes one condition; the transition time moves only when the status changes. Says whether anything but
    /// the observed generation changed.
    pub fn set(
        &mut self,
        kind: &str,
        status: ConditionStatus,
        reason: &str,
        message: &str,
        generation: u64,
        now: TimeMs,
    ) -> bool {
        let new = |time| Condition {
            kind: kind.into(),
            status,
            reason: reason.into(),
            message: message.into(),
            observed_generation: generation,
            last_transition_time: time,
        };
        match self.0.binary_search_by(|c| c.kind.as_str().cmp(kind)) {
            Ok(at) => {
                let old = &mut self.0[at];
                let same = old.status == status;
                let changed = !same || old.reason != reason || old.message != message;
                *old = new(if same { old.last_transition_time } else { now });
                changed
            }
            Err(at) => {
                self.0.insert(at, new(now));
                true
            }
        }
    }

    /// Takes one condition away; says whether it was there.
    pub fn clear(&mut self, kind: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|c| c.kind != kind);
        self.0.len() != before
    }
}
