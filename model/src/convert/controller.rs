//! Controllers in the contract: only shown, for they join by themselves. Role, reachability and lag are the Raft
//! group's to say: the caller fills them.

use tamdao_proto::v1;

use super::{Shown, metadata};
use crate::cluster::Controller;
use crate::lookup::Lookup;

impl Shown for Controller {
    type Proto = v1::Controller;
    const MESSAGE: &'static str = "tamdao.v1.Controller";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Controller {
        v1::Controller {
            metadata: metadata::show(self, revision, lookup),
            status: Some(v1::ControllerStatus {
                address: self.address.clone(),
                member: self.member,
                version: self.version.clone(),
                ..Default::default()
            }),
        }
    }
}
