//! What a build left out and why, and which package costs how much.

use std::collections::BTreeMap;

use dyad_formats::tree::{Kind, Tree};

/// A path that was in a package and is not in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Canonical path.
    pub path: String,
    /// Who shipped it: `package NAME VERSION`.
    pub origin: String,
    /// The rule, with its author and reason.
    pub rule: String,
    /// Size of its content.
    pub bytes: u64,
}

/// A package and what it puts into the image (an object of `packages.json`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PackageSize {
    /// Package name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture.
    pub architecture: String,
    /// SHA-256 of the .deb, lower-case hex.
    pub sha256: String,
    /// Size of the .deb, bytes.
    pub size: u64,
    /// Files of it in the image.
    pub files: u64,
    /// Their content, bytes.
    pub bytes: u64,
}

/// Facts about a build that are not in its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Paths left out, in path order.
    pub dropped: Vec<Dropped>,
    /// Things that a person may want to know: links that stay links, dpkg-divert, differing directories.
    pub notes: Vec<String>,
    /// Packages by name.
    pub packages: Vec<PackageSize>,
    /// Kernel release.
    pub kernel: String,
    /// Modules in the root and in the initrd.
    pub modules: (usize, usize),
}

/// Files and content bytes by origin.
pub(crate) fn sizes(tree: &Tree) -> BTreeMap<String, (u64, u64)> {
    let mut sizes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for (_, id, inode) in tree.iter() {
        if let Kind::File(data) = &inode.kind {
            let entry = sizes.entry(inode.origin.to_string()).or_default();
            entry.0 += 1;
            if seen.insert(id) {
                entry.1 += data.len() as u64;
            }
        }
    }
    sizes
}

/// Why a path is in the tree: who laid it, and the chain that brought that package in.
///
/// `chains` comes from the resolver: for each package name the steps from the image to it. `None`: no such path.
pub fn why(tree: &Tree, chains: &BTreeMap<String, Vec<String>>, path: &[u8]) -> Option<Vec<String>> {
    let inode = tree.get(&crate::path::merge_usr(path.to_vec()))?;
    let mut steps = vec![inode.origin.to_string()];
    if let Some(package) = inode.origin.strip_prefix("package ").and_then(|o| o.split(' ').next()) {
        steps.splice(0..0, chains.get(package).cloned().unwrap_or_default());
    }
    Some(steps)
}
