//! `dyad build`: the stages of an image, strung together.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use dyad_archive::Cache;
use dyad_debian::LockedPackage;
use dyad_spec::OutputFormat;
use dyad_tree::unpack::Limits;
use dyad_tree::{Inputs, PackageCache};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::blocks::DiskBlocks;
use crate::cli::BuildArgs;
use crate::emit::{self, Finished, Output};
use crate::manifest::Manifest;
use crate::record::BuildRecord;
use crate::stage::{Stages, Timed, Times};
use crate::{key, load, packages, payload, sbom};

/// Start of the name of a build's own directory inside the output directory.
const SCRATCH_PREFIX: &str = ".dyad-build-";
/// Held locked while its build runs.
const SCRATCH_LOCK: &str = "lock";
/// Kind of entry of the cache: how long each stage took.
const TIMES: &str = "times";

/// What to build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Definition file.
    pub(crate) definition: PathBuf,
    /// Directory for the outputs.
    pub(crate) out: PathBuf,
    /// Formats; the definition's own when empty.
    pub(crate) formats: Vec<OutputFormat>,
    /// Trust the lock file alone.
    pub(crate) locked: bool,
    /// Use the cache alone.
    pub(crate) offline: bool,
    /// Site file to bake.
    pub(crate) site: Option<PathBuf>,
    /// Private key that signs the build record.
    pub(crate) key: Option<PathBuf>,
    /// Hash the outputs as whole files: a second for a disk, so only where the digest is shown.
    pub(crate) sha256: bool,
}

impl From<BuildArgs> for Wanted {
    fn from(args: BuildArgs) -> Self {
        let BuildArgs { definition, out, formats, locked, offline, site, key, json } = args;
        Wanted { definition, out, formats, locked, offline, site, key, sha256: json }
    }
}

/// The root in a record.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RootRecord {
    /// Compressed bytes.
    pub(crate) bytes: u64,
    /// The dm-verity root hash, lower-case hex.
    pub(crate) verity_root_hash: String,
}

/// What `--json` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    /// Image name.
    pub(crate) name: String,
    /// Image version.
    pub(crate) version: String,
    /// Files made.
    pub(crate) outputs: Vec<Output>,
    /// The root file system.
    pub(crate) root: RootRecord,
    /// Bytes of the unified kernel image.
    pub(crate) uki_bytes: u64,
    /// Number of packages.
    pub(crate) packages: usize,
    /// Number of paths in the root.
    pub(crate) files: usize,
    /// Squashfs blocks: all, and how many came from the cache.
    pub(crate) blocks: (u64, u64),
    /// Wall time of each stage.
    pub(crate) stages: Vec<Timed>,
}

impl Record {
    /// For a person, on standard output.
    pub(crate) fn print(&self) {
        const MIB: f64 = 1024.0 * 1024.0;
        println!(
            "{} {}: {} packages, {} files, root {:.1} MiB compressed, kernel image {:.1} MiB",
            self.name,
            self.version,
            self.packages,
            self.files,
            self.root.bytes as f64 / MIB,
            self.uki_bytes as f64 / MIB
        );
        println!("root hash {}", self.root.verity_root_hash);
        for output in &self.outputs {
            println!("{:<6} {} ({} bytes)", output.format, output.path.display(), output.bytes);
        }
    }
}

/// A directory for unfinished files inside the output directory, so that the last step is a rename. Directories that a
/// killed build left are removed: nobody holds their lock any more.
fn scratch(out: &Path) -> Result<(TempDir, File)> {
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    for entry in fs::read_dir(out).with_context(|| format!("reading {}", out.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            let abandoned = File::open(entry.path().join(SCRATCH_LOCK))
                .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
            if abandoned {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("removing {}", entry.path().display()))?;
            }
        }
    }
    let dir = tempfile::Builder::new()
        .prefix(SCRATCH_PREFIX)
        .tempdir_in(out)
        .with_context(|| format!("creating a directory in {}", out.display()))?;
    // Locked before it has the name under which others try it.
    let unnamed = dir.path().join("new-lock");
    let lock = File::create(&unnamed)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).context("locking the build's directory")?;
    fs::rename(&unnamed, dir.path().join(SCRATCH_LOCK))?;
    Ok((dir, lock))
}

/// The site file, checked against its schema before it enters anything.
fn site(path: &Path) -> Result<Bytes> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let source = dyad_spec::Source::new(path.display().to_string(), text.clone());
    dyad_spec::site::Site::parse(source).map_err(|d| anyhow!("{}", d.render(false).trim_end()))?;
    Ok(text.into())
}

/// How long each stage of this image's last build took; nothing when that is not known.
fn last_times(memory: &DiskBlocks, image: &str) -> Times {
    let known = memory.recall(TIMES, &Sha256::digest(image).into());
    known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn remember_times(memory: &DiskBlocks, image: &str, stages: &[Timed]) -> Result<()> {
    let times: Times = stages.iter().map(|stage| (stage.name.to_owned(), stage.seconds)).collect();
    memory.remember(TIMES, &Sha256::digest(image).into(), &serde_json::to_vec(&times)?);
    Ok(())
}

/// Runs one piece of work beside another; the error of `here` comes first.
fn side_by_side<A: Send, B>(
    other: impl FnOnce() -> Result<A> + Send,
    here: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let here = here();
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        here.and_then(|here| Ok((other?, here)))
    })
}

/// Builds an image.
pub(crate) fn build(wanted: &Wanted) -> Result<Record> {
    let stages = Stages::new();
    let loaded = stages.run("definition", || load::definition(&wanted.definition))?;
    let merged = &loaded.merged;
    let site = wanted.site.as_deref().map(site).transpose()?;
    let (dir, _lock) = scratch(&wanted.out)?;
    let cache = Cache::open_default()?;
    let memory = DiskBlocks::beside(&cache);
    stages.compare_with(last_times(&memory, &merged.name));
    // What cannot be is said before minutes go into compiling.
    let chosen = packages::choose(wanted, merged, &cache, &memory, &stages)?;
    // Compiling our own programs and fetching packages wait for different things.
    let (programs, obtained) = side_by_side(
        || stages.run("payload", || payload::programs(wanted.offline)),
        || chosen.fetch(wanted, &cache, &stages),
    )?;
    let mut bill: Vec<LockedPackage> = obtained.packages.iter().map(|p| p.locked.clone()).collect();
    bill.sort();
    let overlay_files = loaded.overlay_files()?;
    let mut inputs = loaded.digests(&overlay_files);
    inputs.extend(programs.iter().map(|p| load::input(format!("program {}", p.path), &p.bytes)));
    inputs.extend(site.iter().map(|text| load::input("site file".to_owned(), text)));
    let built = stages.run("tree", || {
        let (init, payload) = payload::files(programs)?;
        let (packages, limits) = (obtained.packages, Limits::default());
        let cache = Some(&memory as &dyn PackageCache);
        Ok(dyad_tree::build(Inputs { packages, merged, overlay_files, init, payload, limits, cache })?)
    })?;
    // The initrd is compressed by one thread for as long as it takes: it begins with the squashfs.
    let (initrd, root) = side_by_side(
        || stages.run("initrd", || emit::initrd(&built, &memory)),
        || stages.run("squashfs", || emit::root(&built, dir.path(), &memory)),
    )?;
    let boot = stages.run("kernel image", || emit::boot(merged, &built, &root.hash, initrd))?;
    let formats = if wanted.formats.is_empty() { &merged.outputs } else { &wanted.formats };
    let finished = Finished { merged, built: &built, root, boot, site, sha256: wanted.sha256 };
    let hash = finished.root.hash;
    let beside = |outputs: &[Output]| {
        let manifest = Manifest::new(&built, obtained.chains, &hash);
        let made = outputs.iter().map(Output::made).collect();
        let record = BuildRecord::new((&merged.name, &merged.version), &hash, inputs, &bill, made).text()?;
        let mut files = vec![
            ("manifest.json", serde_json::to_vec(&manifest).context("writing the manifest")?),
            ("spdx.json", serde_json::to_vec(&sbom::document(merged, &bill, &hash))?),
        ];
        if let Some(key) = &wanted.key {
            files.push(("build.sig", key::sign(key, &record)?.into_bytes()));
        }
        files.push(("build.json", record));
        Ok(files)
    };
    let outputs = stages.run("outputs", || finished.outputs(formats, beside, dir.path(), &wanted.out))?;
    remember_times(&memory, &merged.name, &stages.finished())?;
    memory.trim();
    Ok(Record {
        name: merged.name.clone(),
        version: merged.version.clone(),
        outputs,
        root: RootRecord {
            bytes: finished.root.stats.bytes,
            verity_root_hash: dyad_formats::verity::hex(&finished.root.hash),
        },
        uki_bytes: finished.boot.uki.len() as u64,
        packages: built.report.packages.len(),
        files: built.root.len(),
        blocks: (finished.root.stats.blocks, finished.root.stats.cached_blocks),
        stages: stages.finished(),
    })
}
