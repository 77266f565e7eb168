//! What of a report the leader has not heard in this session.
//!
//! Invariant: the leader's picture, made by folding what it is sent, equals the last whole report. A guest that is
//! no longer spoken of is said to be absent once. `cached_images`, `foreign`, `health` and `keeper` are whole in
//! every message. Deliberately absent: the sending.

use std::collections::{BTreeMap, HashSet};

use tamdao_proto::agent::v1::{GuestState, KeeperReport, PoolReport, Report, VmReport, VolumeReport};

/// What the leader has heard.
#[derive(Debug, Default)]
pub struct News {
    /// A complete report has been sent.
    begun: bool,
    heard: Option<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    vms: BTreeMap<String, VmReport>,
    volumes: BTreeMap<String, VolumeReport>,
    pools: BTreeMap<String, PoolReport>,
    cached_images: Vec<String>,
    foreign: u32,
    health: String,
    keeper: Option<KeeperReport>,
}

impl News {
    /// What to send so that the leader knows this whole report; `None` when it does.
    pub fn of(&mut self, whole: &Report) -> Option<Report> {
        let complete = whole.complete && !self.begun;
        if complete {
            self.heard = None;
            self.begun = true;
        }
        let first = self.heard.is_none();
        let heard = self.heard.get_or_insert_default();
        let mut news = Report {
            complete,
            cached_images: whole.cached_images.clone(),
            foreign: whole.foreign,
            health: whole.health.clone(),
            keeper: whole.keeper.clone(),
            ..Report::default()
        };
        news.vms = changes(&mut heard.vms, &whole.vms, |vm| &vm.vm_id);
        news.volumes = changes(&mut heard.volumes, &whole.volumes, |volume| &volume.volume_id);
        news.pools = changes(&mut heard.pools, &whole.pools, |pool| &pool.pool_id);
        // Only a look at the hypervisor tells that something has gone.
        if whole.health.is_empty() {
            let spoken_of: HashSet<&str> = whole.vms.iter().map(|vm| vm.vm_id.as_str()).collect();
            heard.vms.retain(|id, old| {
                let still = spoken_of.contains(id.as_str());
                if !still {
                    news.vms.push(VmReport {
                        vm_id: id.clone(),
                        incarnation: old.incarnation,
                        state: GuestState::Absent.into(),
                        ..VmReport::default()
                    });
                }
                still
            });
        }
        let rest = (&whole.cached_images, whole.foreign, &whole.health, &whole.keeper);
        let same_rest = rest == (&heard.cached_images, heard.foreign, &heard.health, &heard.keeper);
        heard.cached_images.clone_from(&whole.cached_images);
        heard.foreign = whole.foreign;
        heard.health.clone_from(&whole.health);
        heard.keeper.clone_from(&whole.keeper);
        let nothing = news.vms.is_empty() && news.volumes.is_empty() && news.pools.is_empty() && same_rest;
        (first || !nothing).then_some(news)
    }
}

fn changes<T: Clone + PartialEq>(
    heard: &mut BTreeMap<String, T>,
    whole: &[T],
    id: impl Fn(&T) -> &String,
) -> Vec<T> {
    let mut news = Vec::new();
    for item in whole {
        if heard.get(id(item)) != Some(item) {
            heard.insert(id(item).clone(), item.clone());
            news.push(item.clone());
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: &[(&str, GuestState)]) -> Report {
        let vms = states.iter().map(|(id, state)| VmReport {
            vm_id: (*id).into(),
            state: (*state).into(),
            ..VmReport::default()
        });
        Report { complete: true, vms: vms.collect(), ..Report::default() }
    }

    #[test]
    fn first_whole_then_what_changed_then_nothing() {
        let mut news = News::default();
        let one = report(&[("a", GuestState::Running), ("b", GuestState::Running)]);
        let first = news.of(&one).unwrap();
        assert!(first.complete && first.vms.len() == 2);
        assert_eq!(news.of(&one), None);
        let second = news.of(&report(&[("a", GuestState::Running), ("b", GuestState::Paused)])).unwrap();
        assert!(!second.complete);
        assert_eq!(second.vms.iter().map(|vm| vm.vm_id.as_str()).collect::<Vec<_>>(), ["b"]);
        let third = news.of(&report(&[("a", GuestState::Running)])).unwrap();
        assert_eq!((third.vms[0].vm_id.as_str(), third.vms[0].state()), ("b", GuestState::Absent));
        assert_eq!(news.of(&report(&[("a", GuestState::Running)])), None, "said once");
    }

    #[test]
    fn without_a_look_nothing_is_called_complete_or_gone() {
        let mut news = News::default();
        let blind = Report { health: "libvirt is away".into(), ..Report::default() };
        let first = news.of(&blind).unwrap();
        assert!(!first.complete && first.health == "libvirt is away");
        assert!(news.of(&report(&[("a", GuestState::Running)])).unwrap().complete);
        let away = Report { complete: true, ..blind };
        assert!(news.of(&away).unwrap().vms.is_empty(), "not known to be gone");
    }
}
