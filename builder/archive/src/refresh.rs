//! From archives to a universe: Release files fetched and verified, Packages indexes by digest.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_debian::{Digest, Origin, Release, Universe};
use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::error::ArchiveError;
use crate::gpgv;
use crate::http::Client;
use crate::progress::{Progress, Stage};
use crate::sources::{Archive, Sources};

/// Larger InRelease files are refused; Debian's largest is some 150 KB.
const RELEASE_BYTES_MAX: u64 = 8 << 20;
/// Larger indexes are refused, compressed or not; Debian's largest is 60 MB.
const INDEX_BYTES_MAX: u64 = 1 << 30;
/// How an index may be compressed, best first.
const FORMS: [Form; 3] = [Form::Xz, Form::Gz, Form::Plain];

/// How to refresh.
#[derive(Debug, Clone, Copy)]
pub struct Refresh {
    /// Use what the cache has and nothing else.
    pub offline: bool,
    /// The time that Valid-Until is compared with, in seconds since 1970 (`clock::unix_now`).
    pub now: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Xz,
    Gz,
    Plain,
}

impl Form {
    fn suffix(self) -> &'static str {
        match self {
            Self::Xz => ".xz",
            Self::Gz => ".gz",
            Self::Plain => "",
        }
    }
}

/// One index to fetch.
struct Target<'a> {
    archive: &'a Archive,
    client: &'a Client,
    component: String,
    form: Form,
    path: String,
    by_hash: bool,
    sha256: Digest,
    size: u64,
    /// Digest and size of the index when decompressed, where the Release file states them.
    plain: Option<(Digest, u64)>,
}

/// The indexes that verified Release files name: known by digest, not read yet.
pub struct Indexes<'a> {
    arch: &'a str,
    targets: Vec<Target<'a>>,
    cache: &'a Cache,
    options: Refresh,
    progress: &'a dyn Progress,
}

impl Indexes<'_> {
    /// Changes whenever an index does: equal digests mean equal packages to choose from.
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new_with_prefix(self.arch);
        for target in &self.targets {
            let line =
                format!("\n{} {} {} {}", target.archive.suite, target.component, target.path, target.sha256);
            hasher.update(line);
        }
        Digest(hasher.finalize().into())
    }

    /// Fetches and reads them.
    ///
    /// # Errors
    /// An index that is missing, damaged or not what the Release file says, by name.
    pub fn universe(&self) -> Result<Universe, ArchiveError> {
        let texts = fetch_indexes(&self.targets, self.cache, self.options, self.progress)?;
        let mut universe = Universe::new(self.arch);
        for (target, text) in self.targets.iter().zip(texts) {
            let origin = Origin { suite: target.archive.suite.clone(), component: target.component.clone() };
            universe.add(origin, text)?;
        }
        Ok(universe)
    }
}

impl Sources {
    /// Fetches and verifies the Release files and indexes of all archives.
    ///
    /// # Errors
    /// Anything that is missing, damaged, forged, expired, replayed or of another suite, by name.
    pub fn refresh(
        &self,
        cache: &Cache,
        options: Refresh,
        progress: &dyn Progress,
    ) -> Result<Universe, ArchiveError> {
        self.with_indexes(cache, options, progress, |indexes| indexes.universe())?
    }

    /// Fetches and verifies the Release files of all archives, and hands over the indexes that they name.
    ///
    /// # Errors
    /// As [`Sources::refresh`], for Release files.
    pub fn with_indexes<T>(
        &self,
        cache: &Cache,
        options: Refresh,
        progress: &dyn Progress,
        then: impl FnOnce(&Indexes<'_>) -> T,
    ) -> Result<T, ArchiveError> {
        let mut clients = Vec::new();
        for archive in &self.archives {
            clients.push(Client::new(&archive.base, &self.proxies)?);
        }
        let releases = self.releases(&clients, cache, options, progress)?;
        let mut targets = Vec::new();
        for ((archive, client), release) in self.archives.iter().zip(&clients).zip(&releases) {
            targets.extend(self.targets(archive, client, release)?);
        }
        Ok(then(&Indexes { arch: &self.arch, targets, cache, options, progress }))
    }

    /// The verified Release files of all archives, fetched at once.
    fn releases(
        &self,
        clients: &[Client],
        cache: &Cache,
        options: Refresh,
        progress: &dyn Progress,
    ) -> Result<Vec<Release>, ArchiveError> {
        let total = self.archives.len() as u64;
        let done = AtomicU64::new(0);
        progress.report(Stage::Releases, 0, total);
        let one = &|archive: &Archive, client: &Client| {
            let release = archive.release(client, cache, options)?;
            progress.report(Stage::Releases, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            Ok(release)
        };
        std::thread::scope(|scope| {
            let pairs = self.archives.iter().zip(clients);
            let threads: Vec<_> =
                pairs.map(|(archive, client)| scope.spawn(move || one(archive, client))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a panic is a bug")).collect()
        })
    }

    fn targets<'a>(
        &self,
        archive: &'a Archive,
        client: &'a Client,
        release: &Release,
    ) -> Result<Vec<Target<'a>>, ArchiveError> {
        let mut targets = Vec::new();
        let arches = std::iter::once(self.arch.as_str()).chain(release.separate_all.then_some("all"));
        for arch in arches {
            for component in &self.components {
                let path = format!("{component}/binary-{arch}/Packages");
                let found = FORMS.iter().find_map(|form| {
                    let path = format!("{path}{}", form.suffix());
                    Some((*form, *release.files.get(&path)?, path))
                });
                let Some((form, entry, listed)) = found else {
                    return Err(ArchiveError::NoIndex {
                        url: archive.release_url(),
                        path,
                        components: release.components.join(" "),
                        architectures: release.architectures.join(" "),
                    });
                };
                targets.push(Target {
                    archive,
                    client,
                    component: component.clone(),
                    form,
                    path: listed,
                    by_hash: release.acquire_by_hash,
                    sha256: entry.sha256,
                    size: entry.size,
                    plain: release.files.get(&path).map(|entry| (entry.sha256, entry.size)),
                });
            }
        }
        Ok(targets)
    }
}

impl Archive {
    /// URL of its InRelease file.
    pub fn release_url(&self) -> String {
        format!("{}/dists/{}/InRelease", self.base, self.suite)
    }

    fn release(&self, client: &Client, cache: &Cache, options: Refresh) -> Result<Release, ArchiveError> {
        let url = self.release_url();
        let cached_path = cache.release_path(&self.base, &self.suite);
        let cached = std::fs::read(&cached_path).ok();
        let signed = match (options.offline, &cached) {
            (true, Some(cached)) => cached.clone(),
            (true, None) => {
                let what = format!("InRelease of {}", self.suite);
                return Err(ArchiveError::Offline { what, cache: cache.root().to_owned(), url });
            }
            (false, _) => client.get(&url, RELEASE_BYTES_MAX)?,
        };
        let release = self.verify(&signed, &url)?;
        self.check(&release, &url, options.now)?;
        if options.offline || cached.as_ref() == Some(&signed) {
            return Ok(release);
        }
        // What was seen before counts only if it verifies: a damaged cache must not block a good archive.
        if let Some(seen) = cached.and_then(|cached| self.verify(&cached, &url).ok()) {
            if seen.date > release.date {
                let (date, seen, cached) = (release.date, seen.date, cached_path);
                return Err(ArchiveError::Replayed { url, date, seen, cached });
            }
        }
        cache.write_atomically(&cached_path, &signed)?;
        Ok(release)
    }

    fn verify(&self, signed: &[u8], url: &str) -> Result<Release, ArchiveError> {
        let keyring =
            self.keyring.as_ref().ok_or_else(|| ArchiveError::NoKeyring { mirror: self.base.clone() })?;
        let text = gpgv::verify(signed, keyring)
            .map_err(|source| ArchiveError::Signature { url: url.to_owned(), source })?;
        Release::parse(&text).map_err(|source| ArchiveError::Release { url: url.to_owned(), source })
    }

    fn check(&self, release: &Release, url: &str, now: u64) -> Result<(), ArchiveError> {
        let wrong = |field, expected: &str, got: &str| {
            let (url, expected, got) = (url.to_owned(), expected.to_owned(), got.to_owned());
            Err(ArchiveError::WrongRelease { url, field, expected, got })
        };
        if release.codename != self.suite && release.suite != self.suite {
            return wrong("suite", &self.suite, &release.codename);
        }
        if let Some(origin) = self.origin.as_ref().filter(|origin| **origin != release.origin) {
            return wrong("origin", origin, &release.origin);
        }
        match release.valid_until.filter(|until| self.check_valid_until && *until < now) {
            Some(valid_until) => Err(ArchiveError::Expired { url: url.to_owned(), valid_until, now }),
            None => Ok(()),
        }
    }
}

/// Fetches all indexes at once, each on a thread: there are few, and one of them is far larger than the others.
fn fetch_indexes(
    targets: &[Target<'_>],
    cache: &Cache,
    options: Refresh,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u8>>, ArchiveError> {
    let total: u64 = targets.iter().map(|target| target.size).sum();
    let done = AtomicU64::new(0);
    progress.report(Stage::Indexes, 0, total);
    let on_bytes = |bytes: i64| {
        // Negative steps wrap around, which is what taking away means.
        let before = done.fetch_add(bytes as u64, Ordering::Relaxed);
        progress.report(Stage::Indexes, before.wrapping_add(bytes as u64).min(total), total);
    };
    let texts: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let on_bytes = &on_bytes;
        let threads: Vec<_> =
            targets.iter().map(|target| scope.spawn(move || target.text(cache, options, on_bytes))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a panic is a bug")).collect()
    });
    progress.report(Stage::Indexes, total, total);
    texts
}

impl Target<'_> {
    /// The index, decompressed. The decompressed text is cached too: a build that changes nothing reads only that.
    fn text(&self, cache: &Cache, options: Refresh, on_bytes: &dyn Fn(i64)) -> Result<Vec<u8>, ArchiveError> {
        let read = |path: std::path::PathBuf| std::fs::read(&path).map_err(ArchiveError::io("read", &path));
        if let Some((digest, size)) = self.plain.filter(|_| self.form != Form::Plain) {
            if let Some(path) = cache.lookup(&digest, size)? {
                on_bytes(self.size as i64);
                return read(path);
            }
        }
        let url = format!("{}/dists/{}/{}", self.archive.base, self.archive.suite, self.path);
        let limit = self.size.max(self.plain.map_or(0, |(_, size)| size));
        if limit > INDEX_BYTES_MAX {
            return Err(ArchiveError::TooLarge { url, limit: INDEX_BYTES_MAX });
        }
        let packed = match cache.lookup(&self.sha256, self.size)? {
            Some(path) => {
                on_bytes(self.size as i64);
                read(path)?
            }
            None if options.offline => {
                let what = format!("{} of {}", self.path, self.archive.suite);
                return Err(ArchiveError::Offline { what, cache: cache.root().to_owned(), url });
            }
            None => read(self.download(&url, cache, on_bytes)?)?,
        };
        let limit = self.plain.map_or(INDEX_BYTES_MAX, |(_, size)| size);
        let text = match self.form {
            Form::Plain => return Ok(packed),
            Form::Xz => unpack(liblzma::read::XzDecoder::new_multi_decoder(packed.as_slice()), &url, limit)?,
            Form::Gz => unpack(flate2::read::MultiGzDecoder::new(packed.as_slice()), &url, limit)?,
        };
        if let Some((expected, expected_size)) = self.plain {
            let (got, size) = (Digest(Sha256::digest(&text).into()), text.len() as u64);
            if got != expected {
                return Err(ArchiveError::Digest { url, expected, got, expected_size, size });
            }
            cache.store(&expected, &text)?;
        }
        Ok(text)
    }

    fn download(
        &self,
        url: &str,
        cache: &Cache,
        on_bytes: &dyn Fn(i64),
    ) -> Result<std::path::PathBuf, ArchiveError> {
        let wanted = (&self.sha256, self.size);
        if self.by_hash {
            let directory = url.rsplit_once('/').map_or(url, |(directory, _)| directory);
            let by_hash = format!("{directory}/by-hash/SHA256/{}", self.sha256);
            match self.client.download(&by_hash, cache, wanted, on_bytes) {
                Err(ArchiveError::Gone { .. }) => {}
                result => return result,
            }
        }
        self.client.download(url, cache, wanted, on_bytes)
    }
}

fn unpack(mut from: impl Read, url: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut text = Vec::new();
    let read = from.by_ref().take(limit + 1).read_to_end(&mut text);
    read.map_err(|e| ArchiveError::Decompress { url: url.to_owned(), problem: e.to_string() })?;
    match text.len() as u64 > limit {
        true => Err(ArchiveError::TooLarge { url: url.to_owned(), limit }),
        false => Ok(text),
    }
}
