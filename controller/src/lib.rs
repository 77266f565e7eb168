//! The control plane's imperative shell.

pub mod access;
pub mod admission;
pub mod answer;
pub mod api;
pub mod assembly;
pub mod auth;
pub mod clock;
pub mod config;
pub mod decide;
pub mod engine;
pub mod enroll;
pub mod forward;
pub mod identity;
pub mod images;
pub mod join;
pub mod journals;
pub mod methods;
pub mod metrics;
pub mod office;
pub mod peers;
pub mod pki;
pub mod reconcile;
pub mod refusal;
pub mod serve;
pub mod sessions;
pub mod shared;
