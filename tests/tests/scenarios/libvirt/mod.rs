//! Scenarios with real libvirt, real QEMU and the tiny guest.

mod agent;
mod controllers;
mod faults;
mod life;
mod loss;
mod moves;
mod network;
