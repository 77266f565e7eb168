//! Who no longer leads writes nothing.

use tamdao_store::kv::Revision;

use super::Breach;

#[derive(Default)]
pub struct Deposed;

impl Deposed {
    /// A transaction of this controller was applied while another one, perhaps, has the office.
    pub fn wrote(&self, from: usize, office: Option<(usize, Revision, u64)>) -> Option<Breach> {
        let (holder, epoch, _) = office?;
        (holder != from).then(|| {
            let what = format!("c{} wrote under c{}, epoch {epoch}", from + 1, holder + 1);
            Breach { rule: "deposed", what }
        })
    }
}
