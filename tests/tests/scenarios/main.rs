//! All scenarios, in one program so that it is linked once. `api` needs controllers only; `libvirt` needs nodes, and
//! its tests run one after the other (.config/nextest.toml), because emulated guests take all that a machine has.

mod api;
mod libvirt;
