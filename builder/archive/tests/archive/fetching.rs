//! Package downloads: resumed, shared, checked, offline, from a lock file.

use std::io::{Read, Seek};
use std::sync::Mutex;
use std::time::Duration;

use crate::common::{Archive, Behaviour, POOL_A, POOL_B, deb, sha256};
use dyad_archive::clock::Deadline;
use dyad_archive::process::Command;
use dyad_archive::{Cache, Environment, Fetch, Overrides, Progress, Silent, Sources, Stage};
use dyad_debian::LockedPackage;

const ONLINE: Fetch = Fetch { offline: false, locked: false };
const OFFLINE: Fetch = Fetch { offline: true, locked: false };

struct Record(Mutex<Vec<(u64, u64)>>);

impl Progress for Record {
    fn report(&self, stage: Stage, done: u64, total: u64) {
        if stage == Stage::Packages {
            self.0.lock().unwrap().push((done, total));
        }
    }
}

#[test]
fn packages_come_in_order_with_progress_and_are_kept() {
    let archive = Archive::new();
    let locked = archive.locked();
    let record = Record(Mutex::default());
    let paths = archive.sources().fetch(&archive.cache, &locked, ONLINE, &record).unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), deb("a"));
    assert_eq!(std::fs::read(&paths[1]).unwrap(), deb("b"));
    let total = (deb("a").len() + deb("b").len()) as u64;
    let reports = record.0.into_inner().unwrap();
    assert_eq!((reports[0], *reports.last().unwrap()), ((0, total), (total, total)));
    assert_eq!(archive.server.requests("pool").len(), 2);
    archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap();
    assert_eq!(archive.server.requests("pool").len(), 0, "the second time comes from the cache");
    assert_eq!(std::fs::read_dir(archive.cache.root().join("partial")).unwrap().count(), 0);
    Sources::cache_only("bookworm", "amd64").fetch(&archive.cache, &locked, OFFLINE, &Silent).unwrap();
}

#[test]
fn a_cut_download_is_resumed_where_it_ended() {
    let archive = Archive::new();
    let locked = archive.locked();
    archive.server.behave(POOL_A, Behaviour { cut_after: Some((100_000, 2)), ..Behaviour::default() });
    archive
        .server
        .behave(POOL_B, Behaviour { cut_after: Some((50_000, 1)), no_range: true, ..Behaviour::default() });
    archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap();
    let requests = archive.server.requests("pool");
    let of = |path: &str| {
        requests.iter().filter(|r| r.contains(path)).map(|r| r[8..].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        of(POOL_A),
        [POOL_A.to_owned(), format!("{POOL_A} from 100000"), format!("{POOL_A} from 200000")]
    );
    assert_eq!(
        of(POOL_B),
        [POOL_B.to_owned(), format!("{POOL_B} from 50000")],
        "a server without ranges sends all anew"
    );
}

#[test]
fn a_download_that_stays_cut_is_resumed_by_the_next_build() {
    let archive = Archive::new();
    let locked = archive.locked();
    archive.server.behave(POOL_A, Behaviour { cut_after: Some((1_000, 4)), ..Behaviour::default() });
    let error = archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap_err().to_string();
    assert!(error.starts_with("cannot download") && error.contains(POOL_A), "{error}");
    archive.server.requests("");
    archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap();
    assert_eq!(archive.server.requests(POOL_A), [format!("/debian/{POOL_A} from 4000")]);
}

#[test]
fn damage_is_found_and_repaired() {
    let archive = Archive::new();
    let locked = archive.locked();
    let paths = archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap();
    let mut bytes = deb("a");
    bytes[1234] ^= 1;
    std::fs::write(&paths[0], &bytes).unwrap();
    std::fs::write(&paths[1], &deb("b")[..1000]).unwrap();
    let error = archive.sources().fetch(&archive.cache, &locked, OFFLINE, &Silent).unwrap_err().to_string();
    assert!(error.contains("package a 1 is not in the cache") && error.contains("--offline"), "{error}");
    let paths = archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), deb("a"));
    // An unfinished download with a damaged beginning is thrown away, not delivered.
    std::fs::remove_file(&paths[0]).unwrap();
    let partial = archive.cache.root().join("partial").join(locked[0].sha256.to_string());
    std::fs::write(&partial, &bytes[..5000]).unwrap();
    let paths = archive.sources().fetch(&archive.cache, &locked, ONLINE, &Silent).unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), deb("a"));
    assert!(!partial.exists());
}

#[test]
fn wrong_packages_are_refused() {
    let archive = Archive::new();
    let locked = archive.locked();
    let mut bytes = deb("a");
    bytes[1234] ^= 1;
    archive.server.put(POOL_A, bytes.clone());
    let fetch =
        |options| archive.sources().fetch(&archive.cache, &locked, options, &Silent).unwrap_err().to_string();
    assert!(fetch(ONLINE).contains(&format!(
        "{POOL_A}: wrong content: expected {} bytes with SHA-256 {}",
        bytes.len(),
        locked[0].sha256
    )));
    bytes.push(0);
    archive.server.put(POOL_A, bytes);
    assert!(fetch(ONLINE).contains("bytes came, which is more than it may have"));
    archive.server.remove(POOL_A);
    assert!(fetch(ONLINE).contains("does not exist on the server (HTTP 404)"));
    let gone = fetch(Fetch { offline: false, locked: true });
    assert!(gone.contains("a 1 is pinned by the lock file") && gone.contains("dyad lock --update"), "{gone}");
    assert!(!archive.cache.blob_path(&locked[0].sha256).exists());
    let nowhere = Sources::cache_only("bookworm", "amd64").fetch(&archive.cache, &locked, ONLINE, &Silent);
    assert!(nowhere.unwrap_err().to_string().contains("no mirror for it is configured"));
}

#[test]
fn offline_needs_release_and_index_in_the_cache() {
    let archive = Archive::new();
    let error = archive.refresh(true).unwrap_err();
    assert!(
        error.contains("InRelease of bookworm is not in the cache") && error.contains("--offline"),
        "{error}"
    );
    archive.refresh(false).unwrap();
    archive.server.requests("");
    assert_eq!(archive.refresh(true).unwrap().len(), 2);
    assert_eq!(archive.server.requests(""), [""; 0]);
    std::fs::remove_dir_all(archive.cache.root().join("sha256")).unwrap();
    let error = archive.refresh(true).unwrap_err();
    assert!(error.contains("main/binary-amd64/Packages.xz of bookworm is not in the cache"), "{error}");
}

#[test]
fn two_builds_at_once_download_each_file_once() {
    let archive = Archive::new();
    let locked = archive.locked();
    archive.server.requests("");
    std::thread::scope(|scope| {
        let builds: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let cache = Cache::open(archive.cache.root()).unwrap();
                    archive.sources().fetch(&cache, &locked, ONLINE, &Silent).unwrap()
                })
            })
            .collect();
        for build in builds {
            assert_eq!(std::fs::read(&build.join().unwrap()[0]).unwrap(), deb("a"));
        }
    });
    assert_eq!(archive.server.requests("pool").len(), 2);
    assert_eq!(std::fs::read_dir(archive.cache.root().join("partial")).unwrap().count(), 0);
}

/// Fetches package `a` in a process of its own, which the test below kills.
#[test]
#[ignore = "run by a_killed_build_leaves_a_valid_cache"]
fn a_build_to_be_killed() {
    let cache = Cache::open(std::env::var("TEST_CACHE").unwrap().as_ref()).unwrap();
    let overrides = Overrides {
        suite: "bookworm".to_owned(),
        arch: "amd64".to_owned(),
        mirror: Some(std::env::var("TEST_MIRROR").unwrap()),
        suites: Some(vec!["bookworm".to_owned()]),
        ..Overrides::default()
    };
    let sources = Sources::from_layers(&overrides, &Environment::default(), None).unwrap();
    sources.fetch(&cache, &[package_a()], ONLINE, &Silent).unwrap();
}

fn package_a() -> LockedPackage {
    LockedPackage {
        name: "a".to_owned(),
        version: "1".to_owned(),
        arch: "amd64".to_owned(),
        suite: "bookworm".to_owned(),
        path: POOL_A.to_owned(),
        size: deb("a").len() as u64,
        sha256: sha256(&deb("a")),
    }
}

#[test]
fn a_killed_build_leaves_a_valid_cache() {
    let archive = Archive::new();
    let partial = archive.cache.root().join("partial").join(package_a().sha256.to_string());
    let length = || std::fs::metadata(&partial).map_or(0, |m| m.len());
    for stall_after in [1_usize, 70_000, 300_000] {
        archive.server.behave(POOL_A, Behaviour { stall_after: Some(stall_after), ..Behaviour::default() });
        let before = length();
        let log = tempfile::tempfile().unwrap();
        let mut build = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fetching::a_build_to_be_killed", "--ignored"])
            .env("TEST_CACHE", archive.cache.root())
            .env("TEST_MIRROR", &archive.server.url)
            .start(&log)
            .unwrap();
        let deadline = Deadline::after(Duration::from_secs(60));
        while length() < before + stall_after as u64 {
            assert!(!deadline.passed() && build.wait(Duration::from_millis(20)).unwrap().is_none());
        }
        build.kill();
        assert_eq!(archive.cache.lookup(&package_a().sha256, package_a().size).unwrap(), None);
    }
    let left = length();
    assert_eq!(left, 370_001, "each build went on where the one before was killed");
    archive.server.behave(POOL_A, Behaviour::default());
    archive.server.requests("");
    let paths = archive.sources().fetch(&archive.cache, &[package_a()], ONLINE, &Silent).unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), deb("a"));
    assert_eq!(archive.server.requests("pool"), [format!("/debian/{POOL_A} from {left}")]);
}

#[test]
fn a_full_disk_is_named_and_the_next_build_goes_on_from_there() {
    let archive = Archive::new();
    let dir = tempfile::tempdir().unwrap();
    // The first build has room for a part of the package alone; then somebody makes room.
    let script = "set -e; mount -t tmpfs -o size=4m none \"$TEST_CACHE\"; \
        head -c 3900k /dev/zero > \"$TEST_CACHE/ballast\"; ! \"$0\" \"$@\" 2>&1; \
        rm \"$TEST_CACHE/ballast\"; echo ---; \"$0\" \"$@\"; find \"$TEST_CACHE/partial\" -type f";
    let mut log = tempfile::tempfile().unwrap();
    let mut builds = Command::new("/usr/bin/unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "fetching::a_build_to_be_killed", "--ignored", "--nocapture"])
        .env("TEST_CACHE", dir.path())
        .env("TEST_MIRROR", &archive.server.url)
        .start(&log)
        .unwrap();
    let ended = builds.wait(Duration::from_secs(120)).unwrap();
    let mut said = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut said).unwrap();
    assert!(ended.is_some_and(|status| status.success()), "{said}");
    let (full, after) = said.split_once("---").unwrap();
    let partial = dir.path().join("partial").join(package_a().sha256.to_string());
    assert!(full.contains("No space left on device") && full.contains(partial.to_str().unwrap()), "{full}");
    assert!(!after.contains(partial.to_str().unwrap()), "nothing unfinished is left: {after}");
    let asked = archive.server.requests("pool");
    assert!(asked[0].ends_with(POOL_A) && asked.last().unwrap().contains(" from "), "{asked:?}");
}
