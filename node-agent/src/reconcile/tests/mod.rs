//! Tests of the decision: fixtures in a small text form with the decision as a snapshot, properties over generated
//! nodes, and a model world in which every decision is carried out until nothing is left to do.

pub mod fixture;
mod properties;
mod scenes;
mod world;
