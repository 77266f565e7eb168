//! `tamdao backup …` and `tamdao recovery …`, as clap types.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum BackupVerb {
    /// Write a backup of all records into a directory
    Create {
        /// Directory that the file is written into; it is made if it is not there
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Public key of who can read it ("age1…", as age-keygen shows it); repeat for more
        #[arg(long = "recipient", required = true, value_name = "KEY")]
        recipients: Vec<String>,
    },
    /// List the backups in a directory, the newest last
    #[command(visible_alias = "ls")]
    List {
        /// Directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Read a backup back: its checksum, and every record
    Verify {
        /// The backup
        file: PathBuf,
        /// File with the secret key, as age-keygen writes it
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum RecoveryVerb {
    /// Show which nodes are awaited, and where what runs differs from the backup
    Status,
    /// Let the cloud act again, once all is accounted for
    End {
        /// End it although nodes are heard that no record knows
        #[arg(long)]
        leave_strangers: bool,
        /// Answer yes to the question
        #[arg(long, short = 'y')]
        yes: bool,
    },
}
