//! Scenarios of the control plane alone.

mod cluster;
mod input;
mod leader;
