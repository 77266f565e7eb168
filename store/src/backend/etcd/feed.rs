//! The copy of etcd's records in this process, kept by one list and one watch.
//!
//! Its invariant: the copy is a state that etcd had, it only goes forward, and it takes over a commit whole or not at
//! all. What ends a commit is the event of its mark, since etcd tells events and not transactions. A member that
//! fails costs a new watch elsewhere, from the last whole commit; a compaction that overtook the copy costs a new
//! list. An etcd that went back in time is followed no further. Deliberately absent: etcd's progress notices, which
//! its versions before 3.4.25 and 3.5.8 send ahead of the events that they speak of (decision 0200).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, Error, Event, EventType, GetOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio::time::sleep;

use super::layout::{Layout, Place};
use super::link::{Failure, classify};
use super::{MESSAGE_BYTES, Node, Seat, number};
use crate::kv::{Entry, Key, Op, Revision};
use crate::mvcc::{Command, Mvcc, View};

/// Keys of one page of a list.
const PAGE: i64 = 500;
/// Longest pause before a watch is begun again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the copy is not followed at the moment.
enum Broken {
    /// Try again, elsewhere.
    Again(String),
    /// The member was left for another one.
    Left,
    /// What came since is compacted: list again.
    Overtaken,
    /// Never again: a person must look.
    Ended(String),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Compacted => Broken::Overtaken,
            Failure::Refused(error) => Broken::Again(error.to_string()),
            Failure::NotDone(reason) | Failure::Unclear(reason) => Broken::Again(reason),
        }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        classify(&error).into()
    }
}

/// Keeps the copy until the node is stopped.
pub(super) async fn run(node: Arc<Node>) {
    let mut pause = Duration::from_millis(20);
    let mut overtaken = false;
    loop {
        let at = node.link.current();
        let before = node.hub.revision();
        match follow(&node, at, overtaken).await {
            Broken::Left => continue,
            Broken::Overtaken => {
                tracing::info!(revision = %before, "etcd has compacted what this controller missed, listing anew");
                overtaken = true;
                continue;
            }
            Broken::Ended(reason) => {
                tracing::error!(reason, "etcd is followed no further");
                node.end(&reason);
                return;
            }
            Broken::Again(reason) => {
                tracing::warn!(endpoint = node.link.endpoint(at), reason, "the watch on etcd broke off");
                node.link.leave(at);
            }
        }
        if node.hub.revision() > before {
            overtaken = false;
            pause = Duration::from_millis(20);
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE);
    }
}

async fn follow(node: &Node, at: usize, overtaken: bool) -> Broken {
    let mut moves = node.link.moves();
    tokio::select! {
        followed = try_follow(node, at, overtaken) => match followed {
            Ok(never) => match never {},
            Err(broken) => broken,
        },
        // What the other member says next includes all that this one has said.
        _ = moves.wait_for(|current| *current != at) => Broken::Left,
    }
}

async fn try_follow(node: &Node, at: usize, overtaken: bool) -> Result<Infallible, Broken> {
    let mut watch = begin(node, at, overtaken).await?;
    let mut assembly = Assembly::default();
    loop {
        let Some(message) = watch.message().await? else {
            return Err(Broken::Again("it ended the watch".into()));
        };
        node.known(message.header())?;
        if message.canceled() {
            return Err(match message.compact_revision() {
                0 => Broken::Again(message.cancel_reason().to_owned()),
                _ => Broken::Overtaken,
            });
        }
        let mut whole = Vec::new();
        for event in message.events() {
            let told = Told::of(&node.layout, event);
            if let What::Place(id, seat) = &told.what {
                node.places(|places| match seat {
                    Some(seat) => drop(places.insert(*id, seat.clone())),
                    None => drop(places.remove(id)),
                });
            }
            assembly.take(told, &mut whole);
        }
        if !whole.is_empty() {
            node.hub.write(|mvcc| whole.into_iter().for_each(|commit| apply(mvcc, commit)));
        }
    }
}

/// A watch from where the copy is, or from a new list.
async fn begin(node: &Node, at: usize, overtaken: bool) -> Result<WatchStream, Broken> {
    let client = node.link.client(at).await?;
    if overtaken || node.hub.revision() == Revision::ZERO {
        let listed = list(node, &client).await?;
        belongs(node, &client, listed.cloud.as_deref()).await?;
        if listed.view.revision < node.hub.revision() {
            return Err(went_back(listed.view.revision, node.hub.revision()));
        }
        node.places(|places| *places = listed.places);
        node.hub.write(|mvcc| *mvcc = Mvcc::from(listed.view));
    } else {
        // A watch from a revision that etcd does not have would wait without a word.
        let header = client.kv_client().get(node.layout.head(), None).await?;
        node.known(header.header())?;
        let revision = header.header().map_or(Revision::ZERO, |header| number(header.revision()));
        if revision < node.hub.revision() {
            return Err(went_back(revision, node.hub.revision()));
        }
    }
    let from = i64::try_from(node.hub.revision().next().0).unwrap_or(i64::MAX);
    let options = WatchOptions::new().with_prefix().with_fragment().with_start_revision(from);
    let mut watch = client.watch_client().max_decoding_message_size(MESSAGE_BYTES);
    Ok(watch.watch(node.layout.all(), Some(options)).await?)
}

impl Node {
    /// Refuses to follow another cluster than before: its revisions mean something else.
    fn known(&self, header: Option<&etcd_client::ResponseHeader>) -> Result<(), Broken> {
        let Some(cluster) = header.map(etcd_client::ResponseHeader::cluster_id) else { return Ok(()) };
        let ours = *self.cluster.get_or_init(|| cluster);
        match ours == cluster {
            true => Ok(()),
            false => Err(Broken::Ended(format!(
                "etcd was cluster {ours:x} and is now {cluster:x}: it was made anew or restored, and this controller must \
                 be started again after a person has looked"
            ))),
        }
    }
}

fn went_back(now: Revision, seen: Revision) -> Broken {
    Broken::Ended(format!(
        "etcd stands at revision {now} and was at {seen}: it was restored, and this controller must be started again \
         after a person has looked"
    ))
}

/// Makes sure that the root belongs to this controller's cloud; its founder takes a root that belongs to none.
async fn belongs(node: &Node, client: &Client, found: Option<&str>) -> Result<(), Broken> {
    let (root, ours) = (&node.config.root, node.me.cloud.to_string());
    match found {
        Some(found) if found == ours => Ok(()),
        Some(found) => Err(Broken::Ended(format!(
            "the key prefix {root} of etcd belongs to cloud {found}, and this controller to {ours}: give each cloud a \
             prefix of its own"
        ))),
        None if node.me.found => {
            let (cloud, head) = (node.layout.cloud(), node.layout.head());
            let txn = Txn::new()
                .when([Compare::create_revision(cloud.clone(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(cloud, ours, None), TxnOp::put(head, "", None)]);
            client.kv_client().txn(txn).await?;
            // Listed once more, whoever was first.
            Err(Broken::Left)
        }
        None => Err(Broken::Ended(format!(
            "the key prefix {root} of etcd holds no cloud, and this controller belongs to {ours}: either the prefix is \
             not the one that the other controllers have, or etcd was made anew"
        ))),
    }
}

/// What lies below the root, at one revision.
struct Listed {
    view: View,
    places: BTreeMap<u64, Seat>,
    cloud: Option<String>,
}

async fn list(node: &Node, client: &Client) -> Result<Listed, Broken> {
    let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_BYTES);
    let end = etcd_end(node.layout.all());
    let mut from = node.layout.all().into_bytes();
    let (mut entries, mut places) = (Vec::new(), BTreeMap::new());
    let (mut level, mut cloud, mut at) = (0, None, None);
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
        // The first page is read through the quorum, and says at which revision the others are.
        let options = at.map_or(options.clone(), |at| options.with_revision(at));
        let mut page = kv.get(from.clone(), Some(options)).await?;
        node.known(page.header())?;
        let read_at = page.header().map_or(0, etcd_client::ResponseHeader::revision);
        at.get_or_insert(read_at);
        let more = page.more();
        for kv in page.take_kvs() {
            let (created, modified) = (number(kv.create_revision()), number(kv.mod_revision()));
            let (key, value) = kv.into_key_value();
            match node.layout.place(&key) {
                Place::Record(key) => {
                    let value = Bytes::from(value);
                    entries.push(Entry { key, value, create_revision: created, mod_revision: modified });
                }
                Place::Level => level = read_level(&value),
                Place::Cloud => cloud = Some(String::from_utf8_lossy(&value).into_owned()),
                Place::Controller(id) => places.extend(Seat::decode(&value).map(|seat| (id, seat))),
                Place::Head => {}
                Place::Stray => stray(&key),
            }
            from = key;
        }
        from.push(0);
        if !more {
            let view = View::from_entries(number(at.unwrap_or_default()), level, entries);
            return Ok(Listed { view, places, cloud });
        }
    }
}

/// Where the keys that begin with `prefix` end; it ends with a slash, so its last byte has a successor.
fn etcd_end(prefix: String) -> Vec<u8> {
    let mut end = prefix.into_bytes();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn stray(key: &[u8]) {
    tracing::debug!(key = %String::from_utf8_lossy(key), "a key below the prefix is not of this product");
}

/// The level as it is written; what is no number is none.
pub(super) fn read_level(value: &[u8]) -> u32 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn apply(mvcc: &mut Mvcc, commit: Whole) {
    // Known bugs of etcd tell a watch of what was before its beginning (etcd issues 19487 and 20221).
    if commit.revision <= mvcc.revision() {
        return;
    }
    if let Some(level) = commit.level {
        mvcc.apply(Command::SetLevel(level));
    }
    mvcc.follow(commit.revision, commit.ops);
}

/// One event of etcd.
struct Told {
    revision: Revision,
    what: What,
}

enum What {
    Write(Op),
    Level(u32),
    /// A controller takes its place, or loses it.
    Place(u64, Option<Seat>),
    End,
    Stray,
}

impl Told {
    fn of(layout: &Layout, event: &Event) -> Told {
        let Some(kv) = event.kv() else { return Told { revision: Revision::ZERO, what: What::Stray } };
        let put = event.event_type() == EventType::Put;
        let what = match layout.place(kv.key()) {
            Place::Record(key) if put => What::Write(Op::Put(key, Bytes::copy_from_slice(kv.value()))),
            Place::Record(key) => What::Write(Op::Delete(key)),
            Place::Level if put => What::Level(read_level(kv.value())),
            Place::Controller(id) => What::Place(id, put.then(|| Seat::decode(kv.value())).flatten()),
            Place::Head => What::End,
            Place::Level | Place::Cloud | Place::Stray => What::Stray,
        };
        Told { revision: number(kv.mod_revision()), what }
    }
}

/// A commit, all of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Whole {
    revision: Revision,
    ops: Vec<Op>,
    level: Option<u32>,
}

/// Puts a commit together from the events of one revision.
#[derive(Default)]
struct Assembly {
    open: Option<Whole>,
}

impl Assembly {
    /// Takes one event, and gives the commits that are whole now.
    fn take(&mut self, told: Told, whole: &mut Vec<Whole>) {
        // A revision that ended without a mark is none of our commits, but a hand's in etcdctl.
        if let Some(before) = self.open.take_if(|open| open.revision != told.revision) {
            whole.push(before);
        }
        let open = self.open.get_or_insert(Whole { revision: told.revision, ..Whole::default() });
        let mut ended = false;
        match told.what {
            What::Write(op) => {
                // etcd itself deletes the leader's record, with nothing but its place, when its presence ends.
                ended = open.ops.is_empty() && op == Op::Delete(Key::leader());
                open.ops.push(op);
            }
            What::Level(level) => open.level = Some(level),
            What::End => ended = true,
            // Written alone, and without a mark, since it changes no record.
            What::Place(_, Some(_)) => ended = open.ops.is_empty(),
            What::Place(_, None) | What::Stray => {}
        }
        if ended {
            whole.extend(self.open.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(told: impl IntoIterator<Item = (u64, What)>) -> (Vec<Whole>, bool) {
        let (mut assembly, mut whole) = (Assembly::default(), Vec::new());
        for (revision, what) in told {
            assembly.take(Told { revision: Revision(revision), what }, &mut whole);
        }
        (whole, assembly.open.is_some())
    }

    fn put(name: &str) -> Op {
        Op::Put(Key::new(name).unwrap(), Bytes::new())
    }

    #[test]
    fn a_commit_is_whole_with_its_mark_however_its_events_are_cut() {
        let (whole, open) = fold([(7, What::Write(put("/a"))), (7, What::Write(put("/b")))]);
        assert_eq!((whole.len(), open), (0, true), "its mark is still to come");
        let (whole, open) = fold([(7, What::Write(put("/a"))), (7, What::Write(put("/b"))), (7, What::End)]);
        assert_eq!(whole, [Whole { revision: Revision(7), ops: vec![put("/a"), put("/b")], level: None }]);
        assert!(!open);
    }

    #[test]
    fn the_end_of_a_presence_needs_no_mark_and_a_hand_in_etcdctl_ends_with_the_next_commit() {
        let leader = Op::Delete(Key::leader());
        let (whole, open) = fold([(3, What::Place(1, None)), (3, What::Write(leader.clone()))]);
        assert_eq!(whole, [Whole { revision: Revision(3), ops: vec![leader], level: None }]);
        assert!(!open);
        let told = [(3, What::Write(put("/a"))), (5, What::Level(2)), (5, What::End)];
        let (whole, _) = fold(told);
        assert_eq!(whole.iter().map(|commit| commit.revision.0).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(whole[1].level, Some(2));
    }
}
