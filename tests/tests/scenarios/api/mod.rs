//! Scenarios of the control plane alone.

mod backups;
mod cluster;
mod creates;
mod etcd;
mod fuzz;
mod input;
mod leader;
mod linear;
mod manifests;
mod people;
mod placement;
mod province;
mod roll;
mod simulate;
mod upgrade;
