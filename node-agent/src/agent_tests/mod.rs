//! The whole agent in this process: real TLS, real files and qemu-img, against a controller in memory and the fake
//! hypervisor. An agent is killed by dropping it, and started again on what it left.

mod bed;
mod carrying;
mod controller;
mod crashes;
mod enrolment;
mod images;
mod lives;
mod sessions;
mod tunnels;
