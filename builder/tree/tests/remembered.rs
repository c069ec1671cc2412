//! What earlier builds remember of packages: the same tree as without, whatever happened to the entries.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{Tar, base, build_with, deb, input, laid, merged};
use dyad_debian::Digest;
use dyad_tree::{Built, Deb, Inputs, PackageCache, PackageInput, build};
use sha2::Digest as _;

#[derive(Default)]
struct Memory(Mutex<BTreeMap<Digest, Bytes>>);

impl PackageCache for Memory {
    fn get(&self, deb: &Digest) -> Option<Bytes> {
        self.0.lock().unwrap().get(deb).cloned()
    }

    fn put(&self, deb: &Digest, parts: &[Bytes]) {
        self.0.lock().unwrap().insert(*deb, parts.concat().into());
    }
}

/// A package's file that counts how often it is opened.
#[derive(Debug)]
struct Counted(Bytes, Arc<AtomicUsize>);

impl Deb for Counted {
    fn read(&self) -> io::Result<Bytes> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(self.0.clone())
    }
}

fn packages(reads: &Arc<AtomicUsize>) -> Vec<PackageInput> {
    let data = Tar::default()
        .dir("./")
        .file("./usr/bin/tool", b"tool")
        .file("./usr/share/doc/tool/README", b"read me")
        .file("./usr/share/doc/tool/first", b"linked")
        .link("./usr/share/second", "./usr/share/doc/tool/first")
        .symlink("./usr/bin/alias", "tool");
    let mut all = base();
    all.push(input("tool", deb("tool", "", data)));
    for package in &mut all {
        let bytes = package.deb.read().unwrap();
        package.locked.sha256 = Digest(sha2::Sha256::digest(&bytes).into());
        package.deb = Arc::new(Counted(bytes, reads.clone()));
    }
    all
}

/// Builds with what the cache remembers; also: how many package files were opened.
fn with(cache: Option<&dyn PackageCache>, overlay: &str) -> (Built, usize) {
    let merged = merged("", &[("o", overlay)]);
    let reads = Arc::default();
    let (init, payload, limits) = (Bytes::from_static(b"init"), Vec::new(), Default::default());
    let overlay_files = vec![laid("o", "/etc/laid", b"laid")];
    let packages = packages(&reads);
    let built =
        build(Inputs { packages, merged: &merged, overlay_files, init, payload, limits, cache }).unwrap();
    (built, reads.load(Ordering::Relaxed))
}

fn same(a: &Built, b: &Built) {
    assert_eq!(a.root, b.root);
    assert_eq!(a.initrd, b.initrd);
    assert_eq!(
        (&a.kernel, &a.stub, &a.bootloader, &a.report),
        (&b.kernel, &b.stub, &b.bootloader, &b.report)
    );
}

const PLAIN: &str = "description = \"d\"\n";
const PRUNED: &str =
    "description = \"d\"\n[[prune]]\npath = \"/usr/share/doc/**\"\nreason = \"not read on an appliance\"\n";

#[test]
fn a_remembered_package_gives_the_tree_that_its_file_gives() {
    let cache = Memory::default();
    for overlay in [PRUNED, PLAIN] {
        let (cold, _) = with(None, overlay);
        let (first, opened) = with(Some(&cache), overlay);
        same(&first, &cold);
        // What was pruned before is wanted now: only the package that ships it is opened again.
        assert_eq!(opened, if overlay == PRUNED { 4 } else { 1 });
        let (warm, opened) = with(Some(&cache), overlay);
        same(&warm, &cold);
        assert_eq!(opened, 0);
    }
    let (again, opened) = with(Some(&cache), PRUNED);
    same(&again, &with(None, PRUNED).0);
    assert_eq!(opened, 0, "what was wanted once stays");
}

#[test]
fn every_damage_to_an_entry_costs_time_and_nothing_else() {
    let cache = Memory::default();
    let (cold, _) = with(Some(&cache), PRUNED);
    let tool = packages(&Arc::default()).pop().unwrap().locked.sha256;
    let good = cache.get(&tool).unwrap();
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        for bad in [bad, good[..at].to_vec()] {
            cache.put(&tool, &[bad.into()]);
            let (built, opened) = with(Some(&cache), PRUNED);
            assert_eq!(opened, 1, "damage at byte {at} of {} was not noticed", good.len());
            same(&built, &cold);
            assert_eq!(cache.get(&tool).unwrap(), good, "the entry is whole again");
        }
    }
}

#[test]
fn an_entry_of_another_package_is_refused() {
    let cache = Memory::default();
    with(Some(&cache), PLAIN);
    let mut all = packages(&Arc::default());
    let (tool, other) = (all.pop().unwrap(), all.pop().unwrap());
    cache.put(&tool.locked.sha256, &[cache.get(&other.locked.sha256).unwrap()]);
    let merged = merged("", &[("o", PLAIN)]);
    let mut given = base();
    given.push(tool);
    let (init, payload, limits) = (Bytes::from_static(b"init"), Vec::new(), Default::default());
    let overlay_files = Vec::new();
    let inputs = Inputs {
        packages: given,
        merged: &merged,
        overlay_files,
        init,
        payload,
        limits,
        cache: Some(&cache),
    };
    assert_eq!(
        build(inputs).unwrap_err().to_string(),
        "package tool 1.0 amd64: the file says it is systemd-boot-efi 1.0 amd64"
    );
    assert!(build_with(vec![], &merged, vec![]).is_ok());
}
