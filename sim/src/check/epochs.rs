//! An agent takes nothing of a leader that took office before one that it has heard.

use super::Breach;

#[derive(Default)]
pub struct Epochs;

impl Epochs {
    pub fn taken(&self, node: usize, known: u64, taken: u64) -> Option<Breach> {
        (taken < known).then(|| {
            let what = format!("n{node} takes an assignment of epoch {taken} and knows of {known}");
            Breach { rule: "epochs", what }
        })
    }
}
