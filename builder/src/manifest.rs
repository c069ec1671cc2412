//! The manifest beside the outputs: where every path of the root comes from, and what was left out.
//!
//! The image itself does not carry this: it is for the people who look at images, and it says nothing that the image's
//! inputs do not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dyad_tree::Built;
use serde::{Deserialize, Serialize};

/// A path that was left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// Path in the root.
    pub(crate) path: String,
    /// Who shipped it.
    pub(crate) origin: String,
    /// Rule and reason.
    pub(crate) rule: String,
    /// Size of its content.
    pub(crate) bytes: u64,
}

/// The whole manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Which image: the dm-verity root hash.
    pub(crate) root_hash: String,
    /// Kernel release.
    pub(crate) kernel: String,
    /// By package: the steps from the image down to it.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// By path: who laid it.
    pub(crate) origins: BTreeMap<String, String>,
    /// What was left out.
    pub(crate) dropped: Vec<Dropped>,
    /// Remarks of the tree stage.
    pub(crate) notes: Vec<String>,
}

impl Manifest {
    /// The manifest of a finished tree.
    pub(crate) fn new(built: &Built, chains: BTreeMap<String, Vec<String>>, root_hash: &[u8; 32]) -> Self {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let dropped = built.report.dropped.iter().map(|d| Dropped {
            path: d.path.clone(),
            origin: d.origin.clone(),
            rule: d.rule.clone(),
            bytes: d.bytes,
        });
        Manifest {
            root_hash: dyad_formats::verity::hex(root_hash),
            kernel: built.report.kernel.clone(),
            chains,
            origins: built
                .root
                .iter()
                .map(|(path, _, inode)| (text(path), inode.origin.to_string()))
                .collect(),
            dropped: dropped.collect(),
            notes: built.report.notes.clone(),
        }
    }

    /// `DIR/NAME_VERSION.manifest.json` for an output `DIR/NAME_VERSION.SUFFIX`.
    pub(crate) fn beside(output: &Path) -> PathBuf {
        output.with_extension("manifest.json")
    }

    /// Reads the manifest beside an output and checks that it belongs to it.
    pub(crate) fn read(output: &Path, root_hash: Option<&str>) -> Result<Self> {
        let path = Self::beside(output);
        let text = std::fs::read(&path).with_context(|| {
            format!("reading {}: `dyad build` writes it beside the image, keep them together", path.display())
        })?;
        let manifest: Manifest =
            serde_json::from_slice(&text).with_context(|| format!("{} is not a manifest", path.display()))?;
        match root_hash {
            Some(hash) if hash != manifest.root_hash => {
                bail!(
                    "{} belongs to another build: its root hash is {}, the image's {hash}",
                    path.display(),
                    manifest.root_hash
                )
            }
            Some(_) | None => Ok(manifest),
        }
    }

    /// The chain that put a path into the image, the outermost first; for a path that was left out, the rule.
    pub(crate) fn why(&self, path: &str) -> Option<Vec<String>> {
        if let Some(origin) = self.origins.get(path) {
            let package = origin.strip_prefix("package ").and_then(|o| o.split(' ').next());
            let mut steps = package.and_then(|name| self.chains.get(name)).cloned().unwrap_or_default();
            steps.push(format!("{origin} ships {path}"));
            return Some(steps);
        }
        let dropped = self.dropped.iter().find(|d| d.path == path)?;
        Some(vec![format!("{} ships {path}", dropped.origin), format!("left out: {}", dropped.rule)])
    }
}
