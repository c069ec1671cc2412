//! Which packages, and their bytes: from the lock file, or resolved against the archive as it is today.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use dyad_archive::{Cache, Fetch, Overrides, Refresh, Sources, clock};
use dyad_debian::{Lock, LockedPackage, Request, ResolveError, Wanted as WantedPackage};
use dyad_spec::image::Merged;
use dyad_tree::{Deb, PackageInput};

use sha2::{Digest, Sha256};

use crate::blocks::DiskBlocks;
use crate::build::Wanted;
use crate::load;
use crate::stage::Stages;

/// Packages with their files, and why each is there.
pub(crate) struct Obtained {
    /// With the verified files, in the lock's order.
    pub(crate) packages: Vec<PackageInput>,
    /// By package name: the steps from the image down to it. Empty for a build from a lock file, which does not say.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
}

/// `images/NAME.toml` -> `images/NAME.lock`.
fn lock_path(definition: &Path) -> PathBuf {
    definition.with_extension("lock")
}

fn sources(merged: &Merged) -> Result<Sources> {
    let from = &merged.source;
    let overrides = Overrides {
        suite: merged.suite.to_string(),
        arch: merged.architecture.to_string(),
        mirror: from.mirror.clone(),
        security_mirror: from.security_mirror.clone(),
        keyring: from.keyring.clone().map(PathBuf::from),
        proxy: from.proxy.clone(),
        ..Overrides::default()
    };
    Ok(Sources::discover(&overrides)?)
}

/// What a definition asks of the resolver.
fn request(merged: &Merged) -> Result<Request> {
    let mut packages = Vec::new();
    for asked in &merged.packages {
        packages.push(asked.what.parse::<WantedPackage>()?);
    }
    let omit = merged.omit.iter().map(|rule| rule.package.clone()).collect();
    Ok(Request { packages, essential: false, omit })
}

/// The names asked for, as the lock file remembers them.
fn request_names(request: &Request) -> Vec<String> {
    let mut names: Vec<String> = request.packages.iter().map(|wanted| wanted.name.clone()).collect();
    names.extend(request.omit.iter().map(|name| format!("-{name}")));
    names.sort();
    names.dedup();
    names
}

/// Changes when the same indexes and the same request may give another set than before.
const RESOLVER: &str = "dyad resolution 1";

/// Packages with, for each, the steps from what was asked for down to it.
struct Resolved {
    packages: Vec<LockedPackage>,
    steps: BTreeMap<String, Vec<String>>,
}

impl Resolved {
    fn encode(&self, merged: &Merged) -> Result<Vec<u8>> {
        let (suite, arch) = (merged.suite.to_string(), merged.architecture.to_string());
        let lock = Lock::new(&suite, &arch, Vec::new(), self.packages.clone());
        Ok(serde_json::to_vec(&(lock.to_toml(), &self.steps))?)
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (lock, steps): (String, BTreeMap<String, Vec<String>>) = serde_json::from_slice(text).ok()?;
        Some(Resolved { packages: Lock::parse(&lock).ok()?.packages, steps })
    }
}

/// A message about a package that was asked for starts with the place that asks for it.
fn at_place(error: ResolveError, merged: &Merged) -> anyhow::Error {
    let asked = match &error {
        ResolveError::Unknown { name, .. }
        | ResolveError::NoVersion { name, .. }
        | ResolveError::Virtual { name, .. } => {
            let is = |what: &str| what == name || what.split('=').next() == Some(name);
            merged.package_places.iter().find(|(what, _)| is(what)).map(|(_, places)| places.join(", "))
        }
        _ => None,
    };
    match asked {
        Some(places) => anyhow!("{places}: {error}"),
        None => error.into(),
    }
}

/// Resolves against the archive as it is; a set that was found before for the same indexes and the same request is taken
/// from there.
fn resolve(
    merged: &Merged,
    sources: &Sources,
    cache: &Cache,
    memory: &DiskBlocks,
    offline: bool,
    stages: &Stages,
) -> Result<Resolved> {
    let refresh = Refresh { offline, now: clock::unix_now() };
    let request = request(merged)?;
    sources.with_indexes(cache, refresh, stages, |indexes| {
        let key = format!("{RESOLVER} {} {} {request:?}", env!("CARGO_PKG_VERSION"), indexes.digest());
        let key: [u8; 32] = Sha256::digest(key).into();
        if let Some(known) = memory.recall("resolved", &key).and_then(|text| Resolved::decode(&text)) {
            return Ok(known);
        }
        let universe = indexes.universe()?;
        let resolution = dyad_debian::resolve(&universe, &request).map_err(|e| at_place(e, merged))?;
        let steps = resolution.packages.iter().map(|p| (p.name.clone(), resolution.why(&p.name))).collect();
        let packages = resolution.packages.iter().map(dyad_debian::Selected::to_locked).collect();
        let resolved = Resolved { packages, steps };
        memory.remember("resolved", &key, &resolved.encode(merged)?);
        Ok(resolved)
    })?
}

fn read_lock(definition: &Path, merged: &Merged) -> Result<Lock> {
    let path = lock_path(definition);
    let text = fs::read_to_string(&path).with_context(|| {
        format!("reading {}: `dyad lock {}` writes it", path.display(), definition.display())
    })?;
    let lock = Lock::parse(&text).with_context(|| path.display().to_string())?;
    let (suite, arch) = (merged.suite.to_string(), merged.architecture.to_string());
    if (&lock.suite, &lock.arch) != (&suite, &arch) {
        bail!(
            "{} pins packages of {} {}, the definition wants {suite} {arch}: `dyad lock --update {}` makes it anew",
            path.display(),
            lock.suite,
            lock.arch,
            definition.display()
        );
    }
    let wanted = request_names(&request(merged)?);
    if lock.request != wanted {
        let new: Vec<&String> = wanted.iter().filter(|n| !lock.request.contains(n)).collect();
        let gone: Vec<&String> = lock.request.iter().filter(|n| !wanted.contains(n)).collect();
        bail!(
            "{} was made for another list of packages (asked for now: {new:?}; no longer: {gone:?}): \
             `dyad lock --update {}` makes it anew",
            path.display(),
            definition.display()
        );
    }
    Ok(lock)
}

/// The packages of an image before any of them is fetched.
pub(crate) struct Chosen {
    sources: Sources,
    packages: Vec<LockedPackage>,
    chains: BTreeMap<String, Vec<String>>,
}

/// Resolves, or reads the lock.
pub(crate) fn choose(
    wanted: &Wanted,
    merged: &Merged,
    cache: &Cache,
    memory: &DiskBlocks,
    stages: &Stages,
) -> Result<Chosen> {
    let sources = sources(merged)?;
    if wanted.locked {
        let packages = read_lock(&wanted.definition, merged)?.packages;
        return Ok(Chosen { sources, packages, chains: BTreeMap::new() });
    }
    let resolved =
        stages.run("resolve", || resolve(merged, &sources, cache, memory, wanted.offline, stages))?;
    let asked: BTreeMap<&str, &Vec<String>> =
        merged.packages.iter().map(|asked| (asked.what.as_str(), &asked.by)).collect();
    let mut chains = resolved.steps;
    for steps in chains.values_mut() {
        // "NAME was asked for": by whom is known here.
        let root = steps.first().and_then(|s| s.split(' ').next()).and_then(|root| asked.get(root));
        if let (Some(by), Some(first)) = (root, steps.first_mut()) {
            *first = format!("{first} by {}", by.join(", "));
        }
    }
    Ok(Chosen { sources, packages: resolved.packages, chains })
}

impl Chosen {
    /// Fetches what the cache does not have.
    pub(crate) fn fetch(self, wanted: &Wanted, cache: &Cache, stages: &Stages) -> Result<Obtained> {
        let Chosen { sources, packages, chains } = self;
        let fetch = Fetch { offline: wanted.offline, locked: wanted.locked };
        let files = stages.run("packages", || Ok(sources.fetch(cache, &packages, fetch, stages)?))?;
        let input = |(locked, file)| PackageInput { locked, deb: Arc::new(DebFile(file)) };
        Ok(Obtained { packages: packages.into_iter().zip(files).map(input).collect(), chains })
    }
}

/// A package's file in the cache.
#[derive(Debug)]
struct DebFile(PathBuf);

impl Deb for DebFile {
    fn read(&self) -> io::Result<Bytes> {
        fs::read(&self.0).map(Bytes::from)
    }
}

/// `dyad lock`: writes the lock file, or checks that the one there still fits.
pub(crate) fn lock(definition: &Path, update: bool) -> Result<()> {
    let merged = load::definition(definition)?.merged;
    let path = lock_path(definition);
    if path.exists() && !update {
        let lock = read_lock(definition, &merged)?;
        println!("{} pins {} packages; --update resolves again", path.display(), lock.packages.len());
        return Ok(());
    }
    let stages = Stages::new();
    let cache = Cache::open_default()?;
    let sources = sources(&merged)?;
    let memory = DiskBlocks::beside(&cache);
    let resolved = stages.run("resolve", || resolve(&merged, &sources, &cache, &memory, false, &stages))?;
    let names = request_names(&request(&merged)?);
    let lock =
        Lock::new(&merged.suite.to_string(), &merged.architecture.to_string(), names, resolved.packages);
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A source file like any other: not private, as temporary files are.
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .with_context(|| format!("creating a file in {}", dir.display()))?;
    file.write_all(lock.to_toml().as_bytes())
        .with_context(|| format!("writing {}", file.path().display()))?;
    file.persist(&path).with_context(|| format!("writing {}", path.display()))?;
    println!("{} pins {} packages", path.display(), lock.packages.len());
    Ok(())
}
