//! What every command has at hand: the output, the connection (made at the first need of it), and the rules by which a
//! NAME becomes a place in the cloud.

use std::cell::OnceCell;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::args::GlobalArgs;
use crate::client::Client;
use crate::context::{self, Connection};
use crate::output::Output;
use crate::problem::Problem;
use crate::resource::{Owner, Place, Resource};

/// One run of the command line.
pub struct App {
    pub output: Output,
    pub global: GlobalArgs,
    connected: OnceCell<(Connection, Client)>,
}

impl App {
    pub fn new(global: GlobalArgs) -> Self {
        Self { output: Output::new(global.output, global.quiet), global, connected: OnceCell::new() }
    }

    /// The cloud that is meant.
    pub fn client(&self) -> Result<&Client> {
        Ok(&self.connected()?.1)
    }

    fn connected(&self) -> Result<&(Connection, Client)> {
        if let Some(connected) = self.connected.get() {
            return Ok(connected);
        }
        let connection = context::connection(&self.global)?;
        let client = Client::new(&connection, self.global.retry_for, &self.output)?;
        Ok(self.connected.get_or_init(|| (connection, client)))
    }

    /// The agency that is meant when none is named; empty when there is none.
    pub fn agency(&self) -> Result<&str> {
        Ok(&self.connected()?.0.agency)
    }

    /// The agency of a list: the default one, unless all are wanted.
    pub fn agency_unless(&self, all: bool) -> Result<String> {
        Ok(if all { String::new() } else { self.agency()?.to_owned() })
    }

    /// Where a resource named so is. What belongs to the cluster or to an agency is the cluster's, unless it is
    /// said to be private or named as AGENCY/NAME.
    pub fn place<R: Resource>(&self, name: &str, private: bool) -> Result<Place> {
        let place = |agency: &str, name: &str| Place { agency: agency.to_owned(), name: name.to_owned() };
        if let Some((agency, name)) = name.split_once('/') {
            if R::OWNER == Owner::Cluster {
                let problem = Problem::usage(format!("{} {agency}/{name}: belongs to no agency", R::noun()));
                return Err(problem.hint(format!("write {name}")).into());
            }
            if agency.is_empty() || name.is_empty() || name.contains('/') {
                return Err(Problem::usage(format!("{agency}/{name} is not AGENCY/NAME")).into());
            }
            return Ok(place(agency, name));
        }
        if name.is_empty() {
            return Err(Problem::usage("the name is empty").into());
        }
        match R::OWNER {
            Owner::Cluster => Ok(place("", name)),
            Owner::Either if !private => Ok(place("", name)),
            Owner::Agency | Owner::Either => match self.agency()? {
                "" => Err(Problem::usage(format!("{} {name}: which agency owns it?", R::noun()))
                    .hint(format!("add -a AGENCY, or write AGENCY/{name}"))
                    .hint("`tamdao context set NAME --agency AGENCY` makes one the default")
                    .into()),
                agency => Ok(place(agency, name)),
            },
        }
    }

    /// Asks before something is destroyed; `yes` is the answer given on the command line.
    pub fn confirm(&self, yes: bool, question: &str) -> Result<()> {
        if yes {
            return Ok(());
        }
        if !self.output.can_ask() {
            let problem = Problem::usage(format!("{question}: nobody is there to answer"));
            return Err(problem.hint("add --yes to answer yes").into());
        }
        if self.output.ask(&format!("{question}?"))? {
            return Ok(());
        }
        Err(Problem::failed("nothing was changed: the answer was no").into())
    }
}

/// Seconds since 1970.
pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}
