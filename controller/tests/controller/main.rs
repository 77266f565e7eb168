//! Tests of real controllers in one process, all in one program so that it is linked once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod access;
mod agencies;
mod audit;
mod backups;
mod cloud;
mod cluster;
mod faces;
mod fencing;
mod handover;
mod links;
mod local;
mod moves;
mod people;
mod redfish;
mod restore;
mod stacks;
mod sushy;
mod syslog;
