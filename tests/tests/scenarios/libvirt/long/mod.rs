//! Scenarios that take longer than a change should wait for: `cargo xtask ci --long` plays them, in the profile `long`.

mod losses;
mod records;
mod returns;
mod storage;
