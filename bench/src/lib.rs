//! Measures the scheduler: on public streams of requests, on fleets of its own making and beside other rules. Its
//! invariant: every run on a stream writes a plan file that a program of its own judges. Deliberately absent:
//! decisions; those that are measured are the scheduler's own.

pub mod emptying;
pub mod evening;
pub mod fleet;
pub mod fragments;
pub mod ganeti;
pub mod guarded;
pub mod plan_file;
pub mod policy;
pub mod rebalance;
pub mod report;
pub mod roadef;
pub mod speed;
pub mod storm;
pub mod stream;
pub mod tightness;
pub mod turns;
