//! Scenarios of the control plane alone.

mod cluster;
