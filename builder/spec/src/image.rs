//! A definition and its overlays, merged and checked: what the stages of a build take.
//!
//! `origin` fields say who asked: `image NAME` or `overlay NAME`.

use std::collections::BTreeMap;

use crate::compiled;
use crate::glob::PathGlob;
use crate::scalar::{Architecture, ByteSize, ModuleSelector, OutputFormat, Suite};

/// Everything an image is made of. Made by [`crate::merge::merge`] alone, so every value here is consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Name of the image.
    pub name: String,
    /// Version.
    pub version: String,
    /// One line about the image.
    pub description: String,
    /// Debian release.
    pub suite: Suite,
    /// Architecture.
    pub architecture: Architecture,
    /// Package of the kernel; it is among `packages` too.
    pub kernel_package: String,
    /// Modification time of every file, seconds since 1970.
    pub source_date_epoch: u32,
    /// What a build produces by default; never empty.
    pub outputs: Vec<OutputFormat>,
    /// Where packages come from, where the definition says so.
    pub source: PackageSource,
    /// Sizes on disk.
    pub layout: Layout,
    /// Words of the kernel command line after `dyad.root` and `dyad.image`: extras, then `console=` words.
    pub command_line: Vec<String>,
    /// Overlays to lay, in order.
    pub overlays: Vec<String>,
    /// Packages asked for, by name.
    pub packages: Vec<Asked<String>>,
    /// For each of them the places (`FILE:LINE`) that ask for it.
    pub package_places: BTreeMap<String, Vec<String>>,
    /// Packages left out: dependencies on them count as met, and what only they need stays out too.
    pub omit: Vec<OmitRule>,
    /// Modules of the initrd, in the order in which they were asked for.
    pub initrd_modules: Vec<Asked<ModuleSelector>>,
    /// Modules of the root, in the order in which they were asked for.
    pub root_modules: Vec<Asked<ModuleSelector>>,
    /// Modules loaded by name at boot, in order, with their parameters; each is among `root_modules` too.
    pub load_modules: Vec<Asked<String>>,
    /// Users, by number. The base system's own users (root, nobody, ...) are not among them.
    pub users: Vec<User>,
    /// Groups, by number, with the supplementary members that `users` name.
    pub groups: Vec<Group>,
    /// Services, every dependency before its dependents.
    pub services: Vec<Service>,
    /// Directories made at boot, parents first.
    pub directories: Vec<Directory>,
    /// Links made at boot, by path.
    pub boot_links: Vec<Link>,
    /// Links that are part of the image, by path. They replace what packages ship at the same path.
    pub image_links: Vec<Link>,
    /// Attributes of laid files, by path.
    pub files: Vec<FileRule>,
    /// Kernel parameters, by name.
    pub sysctls: Vec<(String, String)>,
    /// Paths left out, unless a keep rule covers them.
    pub prune: Vec<PathRule>,
    /// Paths kept although a prune rule covers them.
    pub keep: Vec<PathRule>,
}

/// Something asked for, and by whom (never empty, in order).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<T> {
    /// What.
    pub what: T,
    /// By whom.
    pub by: Vec<String>,
}

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackageSource {
    /// Debian archive.
    pub mirror: Option<String>,
    /// Debian security archive.
    pub security_mirror: Option<String>,
    /// File of public keys.
    pub keyring: Option<String>,
    /// HTTP proxy.
    pub proxy: Option<String>,
}

/// Sizes of the partitions, each a multiple of 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// EFI system partition.
    pub esp: ByteSize,
    /// Root slot.
    pub root: ByteSize,
    /// Verity slot.
    pub verity: ByteSize,
    /// 512 or 4096.
    pub sector_size: u32,
}

/// A package left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OmitRule {
    /// Package name.
    pub package: String,
    /// Why the image works without it.
    pub reason: String,
    /// Who says so.
    pub origin: String,
}

/// A prune or keep rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// Pattern; see [`PathGlob::covers`].
    pub path: PathGlob,
    /// Why.
    pub reason: String,
    /// Who says so.
    pub origin: String,
}

/// A user that the image has beyond the base system's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Name of the primary group: one of `groups` or of the base system's.
    pub group: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Full name.
    pub gecos: String,
    /// Who asked.
    pub origin: String,
}

/// A group that the image has beyond the base system's, or one of those with further members (`gid` is `None`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Number; `None`: a group of the base system, which only gets members here.
    pub gid: Option<u32>,
    /// Supplementary members, by name.
    pub members: Vec<String>,
    /// Who asked.
    pub origin: String,
}

/// A service with its users by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// All that needs no lookup; `uid`, `gid` and `groups` are filled in by [`crate::compile::compile`].
    pub(crate) table: compiled::Service,
    /// User.
    pub user: String,
    /// Primary group, where not the user's.
    pub group: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Who brought it.
    pub origin: String,
}

impl Service {
    /// Name of the service.
    pub fn name(&self) -> &str {
        &self.table.name
    }

    /// The program that it runs: an absolute path in the image.
    pub fn program(&self) -> &str {
        &self.table.exec[0]
    }
}

/// A directory made at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub user: String,
    /// Group, where not the owner's.
    pub group: Option<String>,
    /// Who asked.
    pub origin: String,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it is.
    pub path: String,
    /// What it points to, verbatim.
    pub target: String,
    /// Who asked.
    pub origin: String,
}

/// Attributes of a laid file that are not the default (root's, 0644 or 0755 by its execute bit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRule {
    /// Path in the image.
    pub path: String,
    /// Permission bits, where given.
    pub mode: Option<u16>,
    /// Owner.
    pub user: String,
    /// Group, where not the owner's.
    pub group: Option<String>,
    /// The overlay that lays the file and says so.
    pub origin: String,
}
