//! Scenarios with real libvirt, real QEMU and the tiny guest.

mod agent;
mod cold;
mod controllers;
mod drains;
mod faults;
mod leader;
mod life;
mod long;
mod loss;
mod moves;
mod network;
mod restore;
mod roll;
mod upgrade;
