//! A network of its own for one controller, whose links to others can be cut while it runs: a namespace that ends with the
//! process that holds it, joined to the testbed's bridge. Only what goes to or comes from named addresses is dropped, so
//! clients are heard all the time. Deliberately absent: slow links, and clocks of its own.

use std::process::Command;

use crate::Result;
use crate::process::{Process, run};
use crate::slot::Slot;
use crate::testbed::Testbed;
use crate::wait::{SOON, eventually, not_yet};

/// Where what is dropped is said.
const TABLE: &str = "table ip cut {
    chain heard { type filter hook input priority 0; }
    chain said { type filter hook output priority 0; }
}";

/// Which way nothing goes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Both,
    /// It hears nothing of the others.
    In,
    /// The others hear nothing of it.
    Out,
}

/// One such network.
pub struct Island {
    pub address: String,
    holder: Process,
}

impl Island {
    /// Makes the network of the controller with this number; the testbed's bridge is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn new(slot: &Slot, testbed: &Testbed, number: u8) -> Result<Self> {
        let (name, log) = (format!("island {number}"), slot.directory.join("islands"));
        let holder =
            Process::start(&name, Command::new("unshare").args(["--net", "sleep", "infinity"]), &log)?;
        slot.note(holder.id())?;
        let island = Self { address: testbed.address(100 + number), holder };
        let net = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net"));
        eventually(&format!("{name} has a network"), SOON, async || {
            match net(&island.holder.id().to_string())? == net("self")? {
                true => not_yet("it is still ours"),
                false => Ok(()),
            }
        })
        .await?;
        testbed.join(&format!("i{number}"), island.holder.id())?;
        let address = format!("{}/24", island.address);
        island.inside(&["ip", "link", "set", "lo", "up"])?;
        island.inside(&["ip", "addr", "add", &address, "dev", "eth0"])?;
        island.inside(&["ip", "link", "set", "eth0", "up"])?;
        island.inside(&["nft", TABLE])?;
        Ok(island)
    }

    /// What a command begins with that runs inside.
    pub fn entry(&self) -> Vec<String> {
        let space = format!("--net=/proc/{}/ns/net", self.holder.id());
        ["nsenter".to_owned(), space, "--".to_owned()].into()
    }

    /// Cuts the links to these addresses, at once and until it is healed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, others: &[String], way: Way) -> Result<()> {
        let others = others.join(", ");
        if way != Way::Out {
            self.inside(&["nft", &format!("add rule ip cut heard ip saddr {{ {others} }} drop")])?;
        }
        if way != Way::In {
            self.inside(&["nft", &format!("add rule ip cut said ip daddr {{ {others} }} drop")])?;
        }
        Ok(())
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        self.inside(&["nft", "flush table ip cut"])
    }

    fn inside(&self, words: &[&str]) -> Result<()> {
        let entry = self.entry();
        run(Command::new(&entry[0]).args(&entry[1..]).args(words)).map(drop)
    }
}
