//! Packages into the cache, several at a time.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dyad_debian::LockedPackage;

use crate::cache::Cache;
use crate::error::ArchiveError;
use crate::http::Client;
use crate::progress::{Progress, Stage};
use crate::sources::Sources;

/// Downloads at a time.
const PARALLEL: usize = 4;
/// Larger packages are refused; Debian's largest is some 2 GB.
const PACKAGE_BYTES_MAX: u64 = 8 << 30;

/// How to fetch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fetch {
    /// Use what the cache has and nothing else.
    pub offline: bool,
    /// The packages come from a lock file: one that is gone is reported as such.
    pub locked: bool,
}

impl Sources {
    /// The files of these packages, in their order, each checked against its digest just now.
    ///
    /// # Errors
    /// The first failure; what was fetched before it stays in the cache.
    pub fn fetch(
        &self,
        cache: &Cache,
        packages: &[LockedPackage],
        options: Fetch,
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>, ArchiveError> {
        let total: u64 = packages.iter().map(|package| package.size).sum();
        let done = AtomicU64::new(0);
        progress.report(Stage::Packages, 0, total);
        let on_bytes = |bytes: i64| {
            let before = done.fetch_add(bytes as u64, Ordering::Relaxed);
            progress.report(Stage::Packages, before.wrapping_add(bytes as u64).min(total), total);
        };
        let mut clients = Vec::new();
        for archive in &self.archives {
            clients.push(Client::new(&archive.base, &self.proxies)?);
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results: Mutex<Vec<_>> = Mutex::new((0..packages.len()).map(|_| None).collect());
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(package) = packages.get(number) else { return };
                let result = self.fetch_one(cache, package, options, &clients, &on_bytes);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results.lock().expect("no holder panics")[number] = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(packages.len()) {
                scope.spawn(work);
            }
        });
        // A failure stops the others early, so it comes before the packages that were not looked at.
        let results = results.into_inner().expect("no holder panics").into_iter().flatten();
        let paths = results.collect::<Result<Vec<_>, _>>()?;
        progress.report(Stage::Packages, total, total);
        Ok(paths)
    }

    fn fetch_one(
        &self,
        cache: &Cache,
        package: &LockedPackage,
        options: Fetch,
        clients: &[Client],
        on_bytes: &dyn Fn(i64),
    ) -> Result<PathBuf, ArchiveError> {
        if let Some(path) = cache.lookup(&package.sha256, package.size)? {
            on_bytes(package.size as i64);
            return Ok(path);
        }
        let (name, version) = (package.name.clone(), package.version.clone());
        let archive = self.archives.iter().zip(clients).find(|(archive, _)| archive.suite == package.suite);
        let base = archive.map_or(package.suite.as_str(), |(archive, _)| archive.base.as_str());
        let url = format!("{base}/{}", package.path);
        if options.offline {
            let what = format!("package {name} {version}");
            return Err(ArchiveError::Offline { what, cache: cache.root().to_owned(), url });
        }
        let Some((_, client)) = archive else {
            let known =
                self.archives.iter().map(|archive| archive.suite.as_str()).collect::<Vec<_>>().join(", ");
            return Err(ArchiveError::NoSource { name, version, suite: package.suite.clone(), known });
        };
        if package.size > PACKAGE_BYTES_MAX {
            return Err(ArchiveError::TooLarge { url, limit: PACKAGE_BYTES_MAX });
        }
        match client.download(&url, cache, (&package.sha256, package.size), on_bytes) {
            Err(ArchiveError::Gone { url, .. }) if options.locked => {
                Err(ArchiveError::PinnedGone { name, version, url })
            }
            result => result,
        }
    }
}
