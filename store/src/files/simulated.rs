//! A disk that loses power: what was not synced may be lost, torn or reordered.
//!
//! A sector (512 bytes) survives whole, as any one of the contents that it had since the last sync of its file; a
//! file's length likewise; of the changes of names in a folder any may be lost until the folder is synced. The power
//! goes at a chosen operation, and then nothing works until [`Simulated::restart`]. It can also be full, and it can
//! lie: a sync that it does not carry out is one that the product forgot.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::{Files, Handle, How};

const SECTOR: usize = 512;

/// Numbers from a seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    /// Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (2014).
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }
}

/// How many cuts of the power a test lives through: `few`, or what the environment asks for.
pub fn cuts(few: u64) -> u64 {
    std::env::var("TAMDAO_TEST_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(few)
}

/// Says of which paths a sync is pretended.
pub type Lie = fn(&Path) -> bool;

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub struct Simulated {
    shared: Arc<Mutex<State>>,
    /// From which restart on it may be used, and until the next, if it is a process's own.
    life: Option<u64>,
}

#[derive(Default)]
struct State {
    contents: Vec<Content>,
    /// Folders and files as they are seen; a folder has no content.
    names: BTreeMap<PathBuf, Option<usize>>,
    /// The same as they are on disk for sure, and the changes since, in order.
    certain: BTreeMap<PathBuf, Option<usize>>,
    changes: Vec<Change>,
    /// Counts what changes something.
    operations: u64,
    cut_at: Option<u64>,
    off: bool,
    /// Counts the restarts; what was opened before one is closed.
    life: u64,
    room: Option<u64>,
    lie: Option<Lie>,
    now_ms: u64,
}

/// A name that is set, or taken away with none. A rename is one change of two names.
#[derive(Clone)]
struct Change(Vec<(PathBuf, Option<Option<usize>>)>);

#[derive(Default, Clone)]
struct Content {
    seen: Vec<u8>,
    /// Each sector's contents since the last sync, the synced one first.
    sectors: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Each length since the last sync, the synced one first.
    lengths: Vec<usize>,
    modified_ms: u64,
}

impl Content {
    fn sector(&self, at: usize) -> Vec<u8> {
        let mut sector = vec![0; SECTOR];
        let from = (at * SECTOR).min(self.seen.len());
        let held = &self.seen[from..self.seen.len().min(from + SECTOR)];
        sector[..held.len()].copy_from_slice(held);
        sector
    }

    /// Changes what is seen of `from..to`, keeping what was there as what a power cut may bring back.
    fn change(&mut self, from: usize, to: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let touched = from / SECTOR..to.div_ceil(SECTOR);
        for at in touched.clone() {
            if !self.sectors.contains_key(&at) {
                let before = self.sector(at);
                self.sectors.insert(at, vec![before]);
            }
        }
        if self.lengths.is_empty() {
            self.lengths.push(self.seen.len());
        }
        change(&mut self.seen);
        self.lengths.push(self.seen.len());
        for at in touched {
            let now = self.sector(at);
            self.sectors.entry(at).or_default().push(now);
        }
    }

    /// What a power cut leaves: by choice nothing, all, or a mixture of what was not synced.
    fn survive(&mut self, dice: &mut Dice) {
        let how = dice.below(4);
        let mut pick = |versions: usize| match how {
            0 => 0,
            1 => versions - 1,
            _ => dice.below(versions as u64) as usize,
        };
        let length = match self.lengths.len() {
            0 => self.seen.len(),
            versions => self.lengths[pick(versions)],
        };
        let reach = self.sectors.keys().last().map_or(0, |last| (last + 1) * SECTOR);
        self.seen.resize(self.seen.len().max(reach), 0);
        for (at, versions) in std::mem::take(&mut self.sectors) {
            let chosen = &versions[pick(versions.len())];
            self.seen[at * SECTOR..(at + 1) * SECTOR].copy_from_slice(chosen);
        }
        self.seen.resize(length, 0);
        self.lengths.clear();
    }
}

impl State {
    /// Counts an operation; false when the power goes just now, which leaves it half done.
    fn step(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        self.off = self.cut_at.is_some_and(|cut| self.operations >= cut);
        Ok(!self.off)
    }

    fn on(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().flatten().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn name(&mut self, change: Change) -> io::Result<()> {
        let whole = self.step()?;
        apply(&mut self.names, &change);
        self.changes.push(change);
        if whole { Ok(()) } else { self.on() }
    }

    fn room_for(&self, more: usize) -> io::Result<()> {
        let named: Vec<usize> = self.names.values().flatten().copied().collect();
        let used: usize = named.into_iter().map(|file| self.contents[file].seen.len()).sum();
        match self.room {
            Some(room) if (used + more) as u64 > room => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Option<usize>>, Change(change): &Change) {
    for (path, target) in change {
        match target {
            Some(target) => names.insert(path.clone(), *target),
            None => names.remove(path),
        };
    }
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a simulated disk")
    }
}

impl Simulated {
    pub fn new() -> Simulated {
        let disk = Simulated::default();
        disk.state().names.insert("/".into(), None);
        disk.state().certain.insert("/".into(), None);
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap()
    }

    /// The disk while there is power, and while the process lives that it was mounted for.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        state.on()?;
        match self.life {
            Some(life) if life != state.life => Err(io::Error::other("this process died with the power")),
            _ => Ok(state),
        }
    }

    /// The disk as a process sees it that starts now, until the power goes.
    pub fn mounted(&self) -> Arc<dyn Files> {
        Arc::new(Simulated { shared: Arc::clone(&self.shared), life: Some(self.state().life) })
    }

    /// How many operations changed something so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Has the power go at an operation from here on, counted from 1.
    pub fn cut_after(&self, operations: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.operations + operations.max(1));
    }

    /// Has syncs of these paths do nothing and say that they did.
    pub fn lie(&self, about: Option<Lie>) {
        self.state().lie = about;
    }

    /// Has all files together take so many bytes at most.
    pub fn limit(&self, room: Option<u64>) {
        self.state().room = room;
    }

    pub fn set_now(&self, now_ms: u64) {
        self.state().now_ms = now_ms;
    }

    /// Takes the power away, if it is not gone, and brings it back with what survived.
    pub fn restart(&self, dice: &mut Dice) {
        let mut state = self.state();
        let mut names = std::mem::take(&mut state.certain);
        let how = dice.below(4);
        for change in std::mem::take(&mut state.changes) {
            if how == 1 || how > 1 && dice.below(2) == 0 {
                apply(&mut names, &change);
            }
        }
        // What is in a folder that was never on disk is nowhere.
        let folders = names.clone();
        names.retain(|path, _| path.ancestors().skip(1).all(|above| folders.contains_key(above)));
        (state.names, state.certain) = (names.clone(), names);
        for content in &mut state.contents {
            content.survive(dice);
        }
        (state.off, state.cut_at) = (false, None);
        state.life += 1;
    }

    /// Copies what is on it into a real folder, for code that reads real files.
    pub fn pour(&self, folder: &Path, into: &Path) {
        let state = self.state();
        for (path, content) in state.names.iter().filter(|(path, _)| path.parent() == Some(folder)) {
            if let Some(content) = content {
                std::fs::write(into.join(path.file_name().unwrap()), &state.contents[*content].seen).unwrap();
            }
        }
    }

    /// Another disk that holds the same.
    pub fn copied(&self) -> Simulated {
        let state = self.state();
        let (names, certain) = (state.names.clone(), state.certain.clone());
        let (contents, changes) = (state.contents.clone(), state.changes.clone());
        let copy = State { contents, names, certain, changes, ..State::default() };
        Simulated { shared: Arc::new(Mutex::new(copy)), life: None }
    }

    /// Changes a byte of a file behind everybody's back.
    pub fn spoil(&self, path: &Path, at: usize) {
        let mut state = self.state();
        let file = state.file(path).unwrap();
        state.contents[file].seen[at] ^= 1;
    }

    pub fn length(&self, path: &Path) -> usize {
        let state = self.state();
        state.contents[state.file(path).unwrap()].seen.len()
    }
}

impl Files for Simulated {
    fn create_folders(&self, folder: &Path) -> io::Result<()> {
        let above: Vec<&Path> = folder.ancestors().collect();
        for folder in above.into_iter().rev() {
            if !self.exists(folder) {
                self.powered()?.name(Change(vec![(folder.into(), Some(None))]))?;
            }
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.state().names.contains_key(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.powered()?;
        Ok(state.names.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn Handle>> {
        let mut state = self.powered()?;
        let file = match (state.file(path), how) {
            (Ok(_), How::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(file), _) => file,
            (Err(error), How::Read) => return Err(error),
            (Err(_), _) => {
                let content = Content { modified_ms: state.now_ms, ..Content::default() };
                state.contents.push(content);
                let file = state.contents.len() - 1;
                state.name(Change(vec![(path.into(), Some(Some(file)))]))?;
                file
            }
        };
        let disk = Simulated { shared: Arc::clone(&self.shared), life: Some(state.life) };
        Ok(Arc::new(Opened { disk, path: path.into(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let file = state.file(from)?;
        state.name(Change(vec![(from.into(), None), (to.into(), Some(Some(file)))]))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        state.file(path)?;
        state.name(Change(vec![(path.into(), None)]))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        if !state.step()? {
            return state.on();
        }
        if !state.names.contains_key(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.lie.is_some_and(|lie| lie(folder)) {
            return Ok(());
        }
        // No name moves from one folder to another here.
        let inside = |change: &Change| change.0.iter().all(|(path, _)| path.parent() == Some(folder));
        for change in std::mem::take(&mut state.changes) {
            match inside(&change) {
                true => apply(&mut state.certain, &change),
                false => state.changes.push(change),
            }
        }
        Ok(())
    }

    fn database(&self, builder: &redb::Builder, path: &Path) -> Result<redb::Database, redb::DatabaseError> {
        let handle = self.open(path, How::Write).map_err(redb::StorageError::from)?;
        builder.create_with_backend(Backend(handle))
    }
}

#[derive(Debug)]
struct Opened {
    disk: Simulated,
    /// Its name when it was opened, which is what a lie goes by.
    path: PathBuf,
    file: usize,
}

impl Opened {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        self.disk.powered()
    }

    fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.state()?;
        let grown = to.saturating_sub(state.contents[self.file].seen.len());
        if grown > 0 {
            state.room_for(grown)?;
        }
        let (whole, now_ms) = (state.step()?, state.now_ms);
        let content = &mut state.contents[self.file];
        content.change(from, to, change);
        content.modified_ms = now_ms;
        if whole { Ok(()) } else { state.on() }
    }
}

impl Handle for Opened {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state()?;
        let seen = &state.contents[self.file].seen;
        let from = (offset as usize).min(seen.len());
        let held = &seen[from..seen.len().min(from + data.len())];
        data[..held.len()].copy_from_slice(held);
        Ok(held.len())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let (from, to) = (offset as usize, offset as usize + data.len());
        self.change(from, to, |seen| {
            seen.resize(seen.len().max(to), 0);
            seen[from..to].copy_from_slice(data);
        })
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.state()?.contents[self.file].seen.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let (now, size) = (self.size()? as usize, size as usize);
        // What is cut off is zeros when the file grows again.
        let (from, to) = if size < now { (size, now) } else { (now, now) };
        if size > now {
            self.disk.state().room_for(size - now)?;
        }
        self.change(from, to, |seen| seen.resize(size, 0))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state()?;
        if !state.step()? {
            return state.on();
        }
        if state.lie.is_some_and(|lie| lie(&self.path)) {
            return Ok(());
        }
        let content = &mut state.contents[self.file];
        content.sectors.clear();
        content.lengths.clear();
        Ok(())
    }

    fn modified(&self) -> io::Result<SystemTime> {
        let ms = self.state()?.contents[self.file].modified_ms;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
    }
}

#[derive(Debug)]
struct Backend(Arc<dyn Handle>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(out, offset)? == out.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
