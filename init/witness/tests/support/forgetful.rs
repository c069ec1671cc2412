//! A disk that keeps after a power cut what was flushed, and of the rest whatever chance says, sector by sector.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use dyad_witness::disk::Disk;

use super::Chance;

const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
struct Inode {
    cached: Vec<u8>,
    flushed: Vec<u8>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, usize),
    /// Carries the file that was renamed: whatever else of the directory is lost, no file system puts another one there.
    Rename(String, String, usize),
    Remove(String),
}

#[derive(Debug)]
struct State {
    chance: Chance,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    names_flushed: BTreeMap<String, usize>,
    unflushed: Vec<NameChange>,
    /// Steps until the power goes.
    fuel: u64,
    /// One write in so many fails, with the power on; zero: none.
    faults: u64,
    full: bool,
}

/// The disk. Copies are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct Forgetful(Arc<Mutex<State>>);

fn power() -> io::Error {
    io::Error::other("the power is gone")
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Set(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.fuel = self.fuel.saturating_sub(1);
        if self.fuel == 0 { Err(power()) } else { Ok(()) }
    }

    fn inode(&mut self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unflushed.push(change);
    }

    /// Any part of what was not flushed reaches the disk.
    fn leak(&mut self, inode: usize) {
        let Inode { cached, flushed } = &mut self.inodes[inode];
        if flushed.len() < cached.len() && self.chance.one_in(2) {
            flushed.resize(cached.len(), 0);
        }
        let until = flushed.len().min(cached.len());
        for at in (0..until).step_by(SECTOR) {
            if self.chance.one_in(2) {
                let end = (at + SECTOR).min(until);
                flushed[at..end].copy_from_slice(&cached[at..end]);
            }
        }
    }

    fn flush(&mut self, inode: usize) -> io::Result<()> {
        self.step()?;
        if self.faults > 0 && self.chance.one_in(self.faults) {
            self.leak(inode);
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inodes[inode].flushed = self.inodes[inode].cached.clone();
        // Flushed, and the power goes before anybody hears of it.
        self.step()
    }

    fn room(&mut self) -> io::Result<()> {
        let fails = self.faults > 0 && self.chance.one_in(self.faults);
        if self.full || fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Forgetful {
    pub(crate) fn new(seed: u64) -> Self {
        Forgetful(Arc::new(Mutex::new(State {
            chance: Chance(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            names_flushed: BTreeMap::new(),
            unflushed: Vec::new(),
            fuel: u64::MAX,
            faults: 0,
            full: false,
        })))
    }

    /// The power goes after so many steps.
    pub(crate) fn cut_after(&self, steps: u64) {
        self.0.lock().unwrap().fuel = steps;
    }

    /// One write or flush in `n` fails; zero: none.
    pub(crate) fn fail_one_in(&self, n: u64) {
        self.0.lock().unwrap().faults = n;
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.lock().unwrap().full = full;
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.lock().unwrap().fuel == 0
    }

    /// Power on again, with what the disk kept.
    pub(crate) fn restart(&self) {
        let mut guard = self.0.lock().unwrap();
        let state = &mut *guard;
        for inode in 0..state.inodes.len() {
            state.leak(inode);
            state.inodes[inode].cached = state.inodes[inode].flushed.clone();
        }
        for change in std::mem::take(&mut state.unflushed) {
            if state.chance.one_in(2) {
                apply(&mut state.names_flushed, &change);
            }
        }
        state.names = state.names_flushed.clone();
        state.fuel = u64::MAX;
        state.faults = 0;
        state.full = false;
    }

    /// All that is on the disk now, cached or not.
    pub(crate) fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.lock().unwrap();
        state.names.iter().map(|(n, i)| (n.clone(), state.inodes[*i].cached.clone())).collect()
    }
}

impl Disk for Forgetful {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut state = self.0.lock().unwrap();
        let inode = state.inode(name)?;
        Ok(state.inodes[inode].cached.clone())
    }

    fn make(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.room()?;
        let inode = state.inodes.len();
        state.inodes.push(Inode { cached: bytes.to_vec(), flushed: Vec::new() });
        state.change(NameChange::Set(name.to_owned(), inode));
        state.flush(inode)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        let inode = state.inode(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        state.step()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.inode(name)?;
        state.change(NameChange::Remove(name.to_owned()));
        state.step()
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        if state.faults > 0 {
            let faults = state.faults;
            if state.chance.one_in(faults) {
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        state.names_flushed = state.names.clone();
        state.unflushed.clear();
        state.step()
    }

    fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.room()?;
        let inode = state.inode(name)?;
        let at = usize::try_from(offset).unwrap();
        state.inodes[inode].cached[at..at + bytes.len()].copy_from_slice(bytes);
        state.flush(inode)
    }
}

impl Forgetful {
    /// A disk with this on it, flushed.
    pub(crate) fn holding(seed: u64, content: BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Forgetful::new(seed);
        {
            let mut state = disk.0.lock().unwrap();
            for (name, bytes) in content {
                let inode = state.inodes.len();
                state.inodes.push(Inode { cached: bytes.clone(), flushed: bytes });
                state.names.insert(name.clone(), inode);
                state.names_flushed.insert(name, inode);
            }
        }
        disk
    }
}
