//! The store on real etcd servers: the contract, and what holds when servers die.

mod faults;
mod reach;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use tamdao_store::backend::etcd::{EtcdConfig, EtcdStore};
use tamdao_store::contract::{Fixture, within};
use tamdao_store::kv::{Election, Kv, Leadership};

use servers::{Servers, me};

/// Three members, and two controllers that ask different ones.
struct Two {
    _servers: Servers,
    one: EtcdStore,
    other: EtcdStore,
}

impl Two {
    async fn new() -> Two {
        let servers = Servers::three();
        let open = |name, first| {
            // So long that no presence ends and begins anew amid a case, which would take a revision.
            let config = EtcdConfig { lease: Duration::from_secs(600), ..servers.config(first) };
            EtcdStore::open(config, me(name)).unwrap()
        };
        let (one, other) = (open("c1", 0), open("c2", 1));
        let settled = async {
            loop {
                let (one, other) = (one.status(), other.status());
                if one.members.len() == 2 && other.members.len() == 2 && one.revision == other.revision {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("both have their places and the same copy", settled).await;
        Two { _servers: servers, one, other }
    }
}

#[async_trait::async_trait]
impl Fixture for Two {
    fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(self.one.clone())
    }

    fn peer(&self) -> Arc<dyn Kv> {
        Arc::new(self.other.clone())
    }

    async fn campaign(&self) -> Leadership {
        self.one.campaign().await.unwrap()
    }
}

mod contract {
    tamdao_store::contract_tests!(super::Two::new());
}
