//! Which packages, and their bytes: from the lock file, or resolved against the archive as it is today.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dyad_archive::{Cache, Fetch, Overrides, Refresh, Sources, clock};
use dyad_debian::{Lock, Request, Resolution, Wanted as WantedPackage};
use dyad_spec::image::Merged;
use dyad_tree::{Deb, PackageInput};

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

fn resolve(
    merged: &Merged,
    sources: &Sources,
    cache: &Cache,
    offline: bool,
    stages: &Stages,
) -> Result<Resolution> {
    let refresh = Refresh { offline, now: clock::unix_now() };
    let universe = stages.run("indexes", || Ok(sources.refresh(cache, refresh, stages)?))?;
    stages.run("resolve", || Ok(dyad_debian::resolve(&universe, &request(merged)?)?))
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

/// Resolves (or reads the lock) and fetches.
pub(crate) fn obtain(wanted: &Wanted, merged: &Merged, cache: &Cache, stages: &Stages) -> Result<Obtained> {
    let sources = sources(merged)?;
    let (packages, chains) = if wanted.locked {
        (read_lock(&wanted.definition, merged)?.packages, BTreeMap::new())
    } else {
        let resolution = resolve(merged, &sources, cache, wanted.offline, stages)?;
        let asked: BTreeMap<&str, &Vec<String>> =
            merged.packages.iter().map(|asked| (asked.what.as_str(), &asked.by)).collect();
        let chain = |name: &str| {
            let mut steps = resolution.why(name);
            // "NAME was asked for": by whom is known here.
            let root = steps.first().and_then(|s| s.split(' ').next()).and_then(|root| asked.get(root));
            if let (Some(by), Some(first)) = (root, steps.first_mut()) {
                *first = format!("{first} by {}", by.join(", "));
            }
            steps
        };
        let chains = resolution.packages.iter().map(|p| (p.name.clone(), chain(&p.name))).collect();
        (resolution.packages.iter().map(dyad_debian::Selected::to_locked).collect(), chains)
    };
    let fetch = Fetch { offline: wanted.offline, locked: wanted.locked };
    let files = stages.run("packages", || Ok(sources.fetch(cache, &packages, fetch, stages)?))?;
    let input = |(locked, file)| PackageInput { locked, deb: Arc::new(DebFile(file)) };
    Ok(Obtained { packages: packages.into_iter().zip(files).map(input).collect(), chains })
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
    let resolution = resolve(&merged, &sources(&merged)?, &cache, false, &stages)?;
    let packages = resolution.packages.iter().map(dyad_debian::Selected::to_locked).collect();
    let names = request_names(&request(&merged)?);
    let lock = Lock::new(&merged.suite.to_string(), &merged.architecture.to_string(), names, packages);
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
