//! The stages of a tree, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dyad_debian::LockedPackage;
use dyad_formats::tree::{Kind, Tree};
use dyad_spec::compiled::{ImageTable, ModuleIndex};
use dyad_spec::image::Merged;
use rayon::prelude::*;

use crate::accounts::Accounts;
use crate::lay::{self, Layer};
use crate::modules::{Catalogue, facts, is_module, kernel_release};
use crate::open::{Deb, Opened, PackageCache};
use crate::path::{self, show};
use crate::report::{self, Dropped, PackageSize, Report};
use crate::rules::Rules;
use crate::unpack::{self, Limits, Member, MemberKind, Package, Verdict};
use crate::{Error, derive, finish, initrd, libraries, lookup};

/// A locked package and its file.
#[derive(Debug, Clone)]
pub struct PackageInput {
    /// What the lock says.
    pub locked: LockedPackage,
    /// The .deb; its digest is the locked one.
    pub deb: Arc<dyn Deb>,
}

/// A file, link or directory below an overlay's `files/`.
#[derive(Debug, Clone)]
pub struct OverlayFile {
    /// Name of the overlay.
    pub overlay: String,
    /// Absolute path in the image.
    pub path: String,
    /// What it is.
    pub content: OverlayContent,
}

/// Content of an [`OverlayFile`]. Owners and unusual modes come from the overlay's `files` table.
#[derive(Debug, Clone)]
pub enum OverlayContent {
    /// A regular file: 0755 if executable, else 0644.
    File {
        /// Its bytes.
        data: Bytes,
        /// The owner's execute bit.
        executable: bool,
    },
    /// A symbolic link.
    Symlink(String),
    /// A directory (0755).
    Dir,
}

/// A program of our own, or anything else that is laid as it is, after everything else.
#[derive(Debug, Clone)]
pub struct PayloadFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its bytes.
    pub data: Bytes,
    /// Permission bits.
    pub mode: u16,
}

/// What a tree is made of.
pub struct Inputs<'a> {
    /// Packages in any order.
    pub packages: Vec<PackageInput>,
    /// The definition with its overlays.
    pub merged: &'a Merged,
    /// Files of the overlays in use, in any order.
    pub overlay_files: Vec<OverlayFile>,
    /// The static `init`; it becomes `/init` of the initrd and `/usr/lib/dyad/init` of the root.
    pub init: Bytes,
    /// Other programs (`/usr/lib/dyad/supervisor`, `/usr/bin/dyadctl`).
    pub payload: Vec<PayloadFile>,
    /// Bounds for each package.
    pub limits: Limits,
    /// What earlier builds remember of packages.
    pub cache: Option<&'a dyn PackageCache>,
}

/// A finished tree and what stands beside it on the disk.
#[derive(Debug)]
pub struct Built {
    /// The root file system.
    pub root: Tree,
    /// The initrd.
    pub initrd: Tree,
    /// The kernel (`vmlinuz`).
    pub kernel: Bytes,
    /// `linuxx64.efi.stub`: what a UKI starts with.
    pub stub: Bytes,
    /// `systemd-bootx64.efi`.
    pub bootloader: Bytes,
    /// The table in `image.bin`.
    pub image: ImageTable,
    /// What was left out, and sizes.
    pub report: Report,
}

/// Module classes that every initrd and root have: see ARCHITECTURE.md, "Initrd".
const BOOT_MODULES: &str = "@boot";
/// Origin of our own programs and tables.
const OWN_FILE: &str = "derived payload";

/// Builds the root and initrd trees. Same inputs in any order, on any number of threads: same trees.
pub fn build(inputs: Inputs<'_>) -> Result<Built, Error> {
    let Inputs { packages: given, merged, overlay_files, init, payload, limits, cache } = inputs;
    let rules = Rules::new(&merged.prune, &merged.keep);
    let mtime = merged.source_date_epoch;
    let mut opened = open_all(given, &rules, &limits, cache)?;
    let chosen = choose_modules(&opened, &overlay_files, merged)?;
    let mut unselected = drop_modules(&mut opened, &chosen.index);
    let loaded: Result<Vec<_>, Error> =
        opened.into_par_iter().with_max_len(1).map(|o| o.load(&limits, cache)).collect();
    let (packages, locked): (Vec<Package>, Vec<LockedPackage>) = loaded?.into_iter().unzip();
    let accounts = accounts(&packages, merged)?;
    let mut dropped = pruned_at_unpack(&packages, merged);
    dropped.append(&mut unselected);
    let (mut tree, notes) = lay::packages(&packages, &accounts, mtime)?;
    drop(packages);
    let mut layer = Layer { tree: &mut tree, accounts: &accounts, mtime, origins: Vec::new() };
    overlays(&mut layer, merged, overlay_files)?;
    let Chosen { kernel, index, initrd_index, firmware } = chosen;
    let (vmlinuz, stub, bootloader) = boot_files(layer.tree, &kernel, &mut dropped)?;
    rest_of_modules(layer.tree, &kernel, &index, &mut dropped);
    drop_firmware(layer.tree, &firmware, &mut dropped);
    let initrd = initrd::tree(&init, &initrd_index, layer.tree, mtime)?;
    derived(&mut layer, merged)?;
    prune_rest(layer.tree, &rules, merged, &mut dropped);
    if let Some(gone) = index.modules.iter().find(|m| layer.tree.get(m.path.as_bytes()).is_none()) {
        // Only a prune rule can take a module away after it was selected.
        return Err(Error::NoFile {
            who: format!("module selection ({})", gone.name),
            path: gone.path.clone(),
        });
    }
    let image = dyad_spec::compile::compile(merged, &accounts)?;
    own_files(&mut layer, init, payload, &image, &index)?;
    let required = programs(layer.tree, merged)?;
    libraries::links(&mut layer)?;
    libraries::close(layer.tree, &rules, &required, &mut dropped)?;
    libraries::cache(&mut layer)?;
    finish::mount_points(&mut layer, &mut dropped)?;
    finish::runtime_etc(&mut layer)?;
    finish::refuse_secrets(layer.tree)?;
    let packages = package_sizes(layer.tree, locked);
    let list = serde_json::to_vec(&packages).expect("strings and numbers always serialise");
    let origin = Arc::from(OWN_FILE);
    layer.put(b"/usr/lib/dyad/packages.json", Kind::File(list.into()), 0o644, (0, 0), origin)?;
    tree.compact();
    dropped.sort_by(|a, b| (&a.path, &a.origin).cmp(&(&b.path, &b.origin)));
    let modules = (index.modules.len(), initrd_index.modules.len());
    let report = Report { dropped, notes, packages, kernel, modules };
    Ok(Built { root: tree, initrd, kernel: vmlinuz, stub, bootloader, image, report })
}

/// Our own programs and tables.
fn own_files(
    layer: &mut Layer<'_>,
    init: Bytes,
    payload: Vec<PayloadFile>,
    image: &ImageTable,
    index: &ModuleIndex,
) -> Result<(), Error> {
    let file = |path: &str, data, mode| PayloadFile { path: path.to_owned(), data, mode };
    let own = [
        file("/usr/lib/dyad/image.bin", image.encode().into(), 0o644),
        file("/usr/lib/dyad/modules.bin", index.encode().into(), 0o644),
        file("/usr/lib/dyad/init", init, 0o755),
    ];
    for file in own.into_iter().chain(payload) {
        let path = path::from_text(&file.path)
            .map_err(|what| Error::NoFile { who: format!("payload ({what})"), path: file.path.clone() })?;
        layer.put(&path, Kind::File(file.data), file.mode, (0, 0), Arc::from(OWN_FILE))?;
    }
    Ok(())
}

/// Opens packages in parallel, the largest first so that none of them is left alone at the end; returns by name.
fn open_all(
    mut given: Vec<PackageInput>,
    rules: &Rules,
    limits: &Limits,
    cache: Option<&dyn PackageCache>,
) -> Result<Vec<Opened>, Error> {
    given.sort_by(|a, b| (b.locked.size, &a.locked).cmp(&(a.locked.size, &b.locked)));
    let filter = |path: &[u8]| {
        let input = derive::INPUTS.iter().any(|start| path.starts_with(start.as_bytes()));
        match if input { None } else { rules.dropped(path) } {
            Some(rule) => Verdict::Drop(rule),
            None => Verdict::Keep,
        }
    };
    let mut opened: Vec<Opened> = given
        .into_par_iter()
        .with_max_len(1)
        .map(|input| Opened::new(input, limits, cache, &filter))
        .collect::<Result<_, Error>>()?;
    opened.sort_by(|a, b| a.package.name.cmp(&b.package.name));
    if let Some(pair) = opened.windows(2).find(|pair| pair[0].package.name == pair[1].package.name) {
        return Err(Error::TwicePackage(pair[0].package.name.clone()));
    }
    Ok(opened)
}

fn accounts(packages: &[Package], merged: &Merged) -> Result<Accounts, Error> {
    let find = |path: &str| {
        let members = packages.iter().filter(|p| p.name == "base-passwd").flat_map(|p| &p.members);
        let found = members.filter(|m| m.path == path.as_bytes()).find_map(|m| match &m.kind {
            unpack::MemberKind::File(data) => Some(show(data)),
            _ => None,
        });
        found.ok_or_else(|| Error::Needs { path: path.to_owned(), package: "base-passwd" })
    };
    let passwd = find("/usr/share/base-passwd/passwd.master")?;
    let mut accounts = Accounts::parse(&passwd, &find("/usr/share/base-passwd/group.master")?)?;
    accounts.add(&merged.users, &merged.groups)?;
    Ok(accounts)
}

fn rule_text(merged: &Merged, rule: u32) -> String {
    let rule = &merged.prune[rule as usize];
    format!("{}: {}: {}", rule.origin, rule.path.as_str(), rule.reason)
}

fn pruned_at_unpack(packages: &[Package], merged: &Merged) -> Vec<Dropped> {
    let mut dropped = Vec::new();
    for package in packages {
        let origin = format!("package {} {}", package.name, package.version);
        dropped.extend(package.pruned.iter().map(|p| Dropped {
            path: show(&p.path),
            origin: origin.clone(),
            rule: rule_text(merged, p.rule),
            bytes: p.bytes,
        }));
    }
    dropped
}

/// Rules once more, for what was read after unpacking and what arrived through a link at another path.
fn prune_rest(tree: &mut Tree, rules: &Rules, merged: &Merged, dropped: &mut Vec<Dropped>) {
    let doomed: Vec<(Vec<u8>, u32)> = tree
        .iter()
        .filter(|(_, _, inode)| inode.origin.starts_with("package "))
        .filter_map(|(path, _, _)| Some((path.to_vec(), rules.dropped(path)?)))
        .collect();
    for (path, rule) in doomed.iter().rev() {
        // A directory that still holds something kept stays.
        if tree.below(path).next().is_none() {
            finish::drop_path(tree, path, &rule_text(merged, *rule), dropped);
        }
    }
}

/// Lays overlay files over the packages; between overlays no path may be laid twice.
fn overlays(layer: &mut Layer<'_>, merged: &Merged, mut files: Vec<OverlayFile>) -> Result<(), Error> {
    files.sort_by(|a, b| (&a.path, &a.overlay).cmp(&(&b.path, &b.overlay)));
    let mut laid: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for file in &files {
        let refuse = |what: String| Error::OverlayPath {
            overlay: file.overlay.clone(),
            path: file.path.clone(),
            what,
        };
        let path = path::from_text(&file.path).map_err(|what| refuse(what.to_owned()))?;
        let path = lookup::through_links(layer.tree, &path).map_err(refuse)?;
        let dir = matches!(file.content, OverlayContent::Dir);
        if let (Some(first), false) = (laid.insert(path.clone(), file.overlay.clone()), dir) {
            let (first, second) = (first, file.overlay.clone());
            return Err(Error::SameOverlayPath { path: file.path.clone(), first, second });
        }
        let (kind, mode) = match &file.content {
            OverlayContent::File { data, executable } => {
                (Kind::File(data.clone()), if *executable { 0o755 } else { 0o644 })
            }
            OverlayContent::Symlink(target) => (Kind::Symlink(target.clone().into_bytes()), 0o777),
            OverlayContent::Dir if layer.tree.get(&path).is_some() => continue,
            OverlayContent::Dir => (Kind::Dir, 0o755),
        };
        let rule = merged.files.iter().find(|r| r.path == file.path);
        let (uid, gid) = match rule {
            None => (0, 0),
            Some(rule) => owner(layer.accounts, &rule.origin, &rule.user, rule.group.as_deref())?,
        };
        let mode = rule.and_then(|r| r.mode).unwrap_or(mode);
        layer.put(&path, kind, mode, (uid, gid), Arc::from(format!("overlay {}", file.overlay)))?;
    }
    for rule in &merged.files {
        if !files.iter().any(|f| f.path == rule.path) {
            return Err(Error::NoFile { who: format!("{} `files`", rule.origin), path: rule.path.clone() });
        }
    }
    Ok(())
}

fn owner(accounts: &Accounts, who: &str, user: &str, group: Option<&str>) -> Result<(u32, u32), Error> {
    let missing = |what: &str, name: &str| Error::Accounts(format!("{who}: there is no {what} {name}"));
    let found = accounts.users.iter().find(|u| u.name == user).ok_or_else(|| missing("user", user))?;
    let gid = match group {
        None => found.gid,
        Some(group) => accounts.gid(group).ok_or_else(|| missing("group", group))?,
    };
    Ok((found.uid, gid))
}

/// Takes the kernel and the EFI programs out of the tree; nothing of /boot stays.
fn boot_files(
    tree: &mut Tree,
    kernel: &str,
    dropped: &mut Vec<Dropped>,
) -> Result<(Bytes, Bytes, Bytes), Error> {
    const EFI: &str = "/usr/lib/systemd/boot/efi";
    let take = |path: String, package| {
        // A copy, so that the kernel package's archive can be freed.
        derive::file(tree, path.as_bytes())
            .map(|d| Bytes::copy_from_slice(d))
            .ok_or(Error::Needs { path, package })
    };
    let vmlinuz = take(format!("/boot/vmlinuz-{kernel}"), "of the kernel")?;
    let stub = take(format!("{EFI}/linuxx64.efi.stub"), "systemd-boot-efi")?;
    let bootloader = take(format!("{EFI}/systemd-bootx64.efi"), "systemd-boot-efi")?;
    let rule = "derived: kernel and boot loader are on the EFI system partition";
    for dir in ["/boot", "/usr/lib/systemd/boot"] {
        finish::drop_below(tree, dir.as_bytes(), rule, dropped);
        tree.remove(dir.as_bytes());
    }
    Ok((vmlinuz, stub, bootloader))
}

/// The modules of an image.
struct Chosen {
    kernel: String,
    index: ModuleIndex,
    initrd_index: ModuleIndex,
    /// Firmware that the selected modules name.
    firmware: BTreeSet<String>,
}

/// Selects modules for root and initrd by what they say of themselves.
fn choose_modules(opened: &[Opened], laid: &[OverlayFile], merged: &Merged) -> Result<Chosen, Error> {
    let members = opened.iter().flat_map(|o| &o.package.members).map(|m| m.path.as_slice());
    let laid: Vec<(Vec<u8>, &OverlayFile)> =
        laid.iter().map(|f| (path::merge_usr(f.path.clone().into_bytes()), f)).collect();
    let kernel = kernel_release(members.chain(laid.iter().map(|(path, _)| path.as_slice())))?;
    let mut own = Vec::new();
    for (path, file) in &laid {
        if let OverlayContent::File { data, .. } = &file.content {
            own.extend(facts(path, data)?.map(|facts| (path, data.len() as u64, facts)));
        }
    }
    let own = own.iter().map(|(path, bytes, facts)| (path.as_slice(), *bytes, facts.as_slice()));
    let catalogue = Catalogue::read(&kernel, opened.iter().flat_map(Opened::facts).chain(own))?;
    let initrd_selectors: Vec<String> = std::iter::once(BOOT_MODULES.to_owned())
        .chain(merged.initrd_modules.iter().map(|m| m.what.to_string()))
        .collect();
    let initrd = catalogue.select(&initrd_selectors)?;
    let load = merged.load_modules.iter().filter_map(|m| m.what.split_whitespace().next());
    let root_selectors: Vec<String> = initrd_selectors
        .iter()
        .cloned()
        .chain(merged.root_modules.iter().map(|m| m.what.to_string()))
        .chain(load.map(str::to_owned))
        .collect();
    let root = catalogue.select(&root_selectors)?;
    let first = catalogue.boot_order(&initrd);
    Ok(Chosen {
        initrd_index: catalogue.index(&initrd, first.clone())?,
        index: catalogue.index(&root, first)?,
        firmware: catalogue.firmware(&root),
        kernel,
    })
}

/// Why a module is left out.
const UNSELECTED: &str = "derived: kernel module that nothing selects";

/// Leaves out the modules that nothing selects, before their contents are looked for.
fn drop_modules(opened: &mut [Opened], index: &ModuleIndex) -> Vec<Dropped> {
    let kept: BTreeSet<&[u8]> = index.modules.iter().map(|m| m.path.as_bytes()).collect();
    let mut dropped = Vec::new();
    for package in opened {
        let members = std::mem::take(&mut package.package.members);
        let goes = |m: &Member<u32>| is_module(&m.path) && !kept.contains(m.path.as_slice());
        let (gone, stay): (Vec<_>, Vec<_>) = members.into_iter().partition(goes);
        package.package.members = stay;
        let origin = format!("package {} {}", package.package.name, package.package.version);
        dropped.extend(gone.into_iter().map(|member| Dropped {
            path: show(&member.path),
            origin: origin.clone(),
            rule: UNSELECTED.to_owned(),
            bytes: if let MemberKind::File(number) = member.kind { package.bytes(number) } else { 0 },
        }));
    }
    dropped
}

/// Drops what else lies among the modules: lists for other programs, overlays' modules, empty directories.
fn rest_of_modules(tree: &mut Tree, kernel: &str, index: &ModuleIndex, dropped: &mut Vec<Dropped>) {
    let kept: BTreeSet<&str> = index.modules.iter().map(|m| m.path.as_str()).collect();
    let base = format!("/usr/lib/modules/{kernel}");
    let doomed: Vec<Vec<u8>> = tree
        .below(base.as_bytes())
        .filter(|(path, id)| {
            !matches!(tree.inode(*id).kind, Kind::Dir) && !kept.contains(show(path).as_str())
        })
        .map(|(path, _)| path.to_vec())
        .collect();
    for path in &doomed {
        finish::drop_path(tree, path, UNSELECTED, dropped);
    }
    let dirs: Vec<Vec<u8>> = tree
        .below(base.as_bytes())
        .filter(|(_, id)| matches!(tree.inode(*id).kind, Kind::Dir))
        .map(|(path, _)| path.to_vec())
        .collect();
    for dir in dirs.iter().rev() {
        if tree.below(dir).next().is_none() {
            tree.remove(dir);
        }
    }
}

/// Keeps firmware that a selected module names, and what links among it lead to.
fn drop_firmware(tree: &mut Tree, needed: &BTreeSet<String>, dropped: &mut Vec<Dropped>) {
    const BASE: &[u8] = b"/usr/lib/firmware/";
    let plain = |path: &[u8]| {
        let name = show(&path[BASE.len()..]);
        name.strip_suffix(".xz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name).to_owned()
    };
    let mut kept: BTreeSet<Vec<u8>> = BTreeSet::new();
    for (path, id) in tree.below(b"/usr/lib/firmware") {
        if !needed.contains(&plain(path)) {
            continue;
        }
        kept.insert(path.to_vec());
        if let Kind::Symlink(target) = &tree.inode(id).kind {
            kept.extend(path::link_target(path, target));
        }
    }
    let doomed: Vec<Vec<u8>> = tree
        .below(b"/usr/lib/firmware")
        .filter(|(path, id)| !matches!(tree.inode(*id).kind, Kind::Dir) && !kept.contains(*path))
        .map(|(path, _)| path.to_vec())
        .collect();
    for path in doomed {
        finish::drop_path(tree, &path, "derived: firmware that no selected module names", dropped);
    }
}

/// Accounts, copies, links: everything that scripts would have made.
fn derived(layer: &mut Layer<'_>, merged: &Merged) -> Result<(), Error> {
    let shadow = layer.accounts.gid("shadow").unwrap_or(0);
    for (path, mode, text) in layer.accounts.files() {
        let gid = if mode == 0o640 { shadow } else { 0 };
        let origin = Arc::from("derived accounts");
        layer.put(path.as_bytes(), Kind::File(text.into_bytes().into()), mode, (0, gid), origin)?;
    }
    derive::all(layer)?;
    for link in &merged.image_links {
        let path = path::from_text(&link.path).map_err(|what| Error::NoFile {
            who: format!("{} link ({what})", link.origin),
            path: link.path.clone(),
        })?;
        if layer.tree.get(&path).is_some_and(|i| !matches!(i.kind, Kind::Dir)) {
            layer.tree.remove(&path);
        }
        let target = Kind::Symlink(link.target.clone().into_bytes());
        layer.put(&path, target, 0o777, (0, 0), Arc::from(link.origin.as_str()))?;
    }
    Ok(())
}

/// Every service's program must be there; returns where they are.
fn programs(tree: &Tree, merged: &Merged) -> Result<BTreeSet<Vec<u8>>, Error> {
    let find = |service: &dyad_spec::image::Service| {
        let path = path::from_text(service.program()).ok()?;
        let real = lookup::resolve(tree, &path)?;
        derive::file(tree, &real).map(|_| real)
    };
    let mut found = BTreeSet::new();
    for service in &merged.services {
        found.insert(find(service).ok_or_else(|| Error::NoFile {
            who: format!("{}: service {}", service.origin, service.name()),
            path: service.program().to_owned(),
        })?);
    }
    Ok(found)
}

fn package_sizes(tree: &Tree, locked: Vec<LockedPackage>) -> Vec<PackageSize> {
    let sizes = report::sizes(tree);
    let size = |p: LockedPackage| {
        let origin = format!("package {} {}", p.name, p.version);
        let (files, bytes) = sizes.get(&origin).copied().unwrap_or_default();
        let sha256 = p.sha256.to_string();
        PackageSize {
            name: p.name,
            version: p.version,
            architecture: p.arch,
            sha256,
            size: p.size,
            files,
            bytes,
        }
    };
    locked.into_iter().map(size).collect()
}
