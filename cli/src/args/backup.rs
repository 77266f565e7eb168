//! `tamdao backup …` and `tamdao recovery …`, as clap types.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::quantity::parse_duration;

#[derive(Debug, Subcommand)]
pub enum BackupVerb {
    /// Write a backup of all records where you say
    Create {
        /// Directory, which is made if it is not there, or s3://BUCKET/PREFIX
        #[arg(long, value_name = "DEST")]
        to: String,
        /// Public key of who can read it ("age1…", as age-keygen shows it); repeat for more
        #[arg(long = "recipient", required = true, value_name = "KEY")]
        recipients: Vec<String>,
        #[command(flatten)]
        s3: S3Args,
    },
    /// List the backups that the cloud makes by itself, or those of a destination, the newest last
    #[command(visible_alias = "ls")]
    List {
        /// Read this directory or s3://BUCKET/PREFIX and ask no controller
        #[arg(long, value_name = "DEST")]
        destination: Option<String>,
        #[command(flatten)]
        s3: S3Args,
    },
    /// Read a backup back: its checksum, and every record
    Verify {
        /// The backup: a file, or its name in the destination
        #[arg(value_name = "FILE|NAME")]
        backup: String,
        /// Where it lies, if it is no file here: a directory or s3://BUCKET/PREFIX
        #[arg(long, value_name = "DEST")]
        destination: Option<String>,
        /// File with the secret key, as age-keygen writes it
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
        #[command(flatten)]
        s3: S3Args,
    },
    /// Write a backup of a destination into a file here, for a restore
    Fetch {
        /// Its name in the destination
        name: String,
        /// Where it lies: a directory or s3://BUCKET/PREFIX
        #[arg(long, value_name = "DEST")]
        destination: String,
        /// File to write, which must not exist
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        s3: S3Args,
    },
    /// Restore the newest good backup into a scratch directory, compare all of it, and leave nothing
    Drill {
        /// Where the backups lie: a directory or s3://BUCKET/PREFIX
        #[arg(long, value_name = "DEST")]
        destination: String,
        /// File with the secret key, as age-keygen writes it
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
        /// Only backups of the cluster with this UUID, where those of several lie
        #[arg(long, value_name = "UUID")]
        cluster: Option<Uuid>,
        /// Fail if the newest good one is older, such as 2h
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        max_age: Option<Duration>,
        /// The program that would restore it
        #[arg(long, value_name = "PROGRAM", default_value = "tamdao-controller")]
        controller: PathBuf,
        /// The directory below which it is restored [default: the system's for temporary files]
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
        #[command(flatten)]
        s3: S3Args,
    },
}

/// How a bucket is reached; a directory needs none of it.
#[derive(Debug, Args)]
pub struct S3Args {
    /// URL of the S3 service [default: Amazon's own]
    #[arg(long = "s3-endpoint", value_name = "URL", env = "AWS_ENDPOINT_URL", hide_env_values = true)]
    pub endpoint: Option<String>,
    /// Its region
    #[arg(
        long = "s3-region",
        value_name = "REGION",
        env = "AWS_REGION",
        hide_env_values = true,
        default_value = "us-east-1"
    )]
    pub region: String,
    /// File with the lines aws_access_key_id = … and aws_secret_access_key = …
    /// [default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY]
    #[arg(long = "s3-credentials", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Certificates of CAs, PEM, that are trusted beside the system's
    #[arg(long = "s3-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
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
