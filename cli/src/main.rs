//! The command `tamdao`: installs the TLS provider and hands everything to the library. Nothing else is here.

use std::process::ExitCode;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Only another call before this one could have installed one, and then there is one.
    }
    tamdao_cli::run().into()
}
