//! The contract on Raft: three real members, once by the leader's handle and once by a follower's.

use std::sync::Arc;

use futures::future::select_all;
use tamdao_store::contract::{Fixture, within};
use tamdao_store::kv::{Election, Kv, Leadership};

use crate::cluster::{Cluster, Running};

struct Three {
    _cluster: Cluster,
    members: [Running; 3],
    under_test: usize,
}

impl Three {
    async fn new(under_test: usize) -> Three {
        let cluster = Cluster::new(|_| {});
        let members = cluster.three().await;
        Three { _cluster: cluster, members, under_test }
    }
}

#[async_trait::async_trait]
impl Fixture for Three {
    fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(self.members[self.under_test].store.clone())
    }

    fn peer(&self) -> Arc<dyn Kv> {
        Arc::new(self.members[(self.under_test + 1) % 3].store.clone())
    }

    async fn campaign(&self) -> Leadership {
        let all = self.members.iter().map(|member| member.store.campaign());
        within("an election", select_all(all)).await.0.unwrap()
    }
}

mod leader {
    tamdao_store::contract_tests!(super::Three::new(0));
}

mod follower {
    tamdao_store::contract_tests!(super::Three::new(1));
}
