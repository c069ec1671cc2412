//! One definition and its overlays become one image: conflicts are found here, each with the place that made it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::compiled;
use crate::decode::{At, document};
use crate::definition::{RawDefinition, RawModules, RawOmit, RawPathRule};
use crate::diagnostic::{Diagnostic, Diagnostics, Source, nearest};
use crate::image::{Asked, Directory, FileRule, Layout, Link, Merged, OmitRule, PackageSource, PathRule};
use crate::overlay::{RawOverlay, RawService};
use crate::scalar::Text;
use crate::scalar::{ByteSize, ModuleSelector, Name, OutputFormat};

mod accounts;
mod services;

/// File systems that are empty at every boot.
const VOLATILE: [&str; 3] = ["/run/", "/var/", "/tmp/"];
/// Overlays in one image.
const OVERLAYS_MAX: usize = 256;

/// A parsed overlay and where it came from.
struct Laid {
    name: String,
    source: Arc<Source>,
    raw: RawOverlay,
}

impl Laid {
    fn origin(&self) -> String {
        format!("overlay {}", self.name)
    }
}

/// Errors of the merge, collected from all files.
struct Found(Vec<Diagnostic>);

impl Found {
    fn at(&mut self, source: &Arc<Source>, span: &Range<usize>, title: String, label: impl Into<String>) {
        self.0.push(Diagnostic::new(source, span.clone(), title).label(label));
    }
}

/// Reads a definition and those of the given overlays (by directory name) that it needs, and merges them.
///
/// The caller hands over every overlay there is: names that are not in use cost nothing and are suggested where a
/// name is misspelt. All errors of one stage (syntax, overlay names, conflicts) are reported together.
pub fn merge(definition: Source, overlays: &BTreeMap<String, Source>) -> Result<Merged, Diagnostics> {
    let source = Arc::new(definition);
    let raw: RawDefinition = document(&source)?;
    let laid = order(&source, &raw, overlays)?;
    let mut found = Found(Vec::new());
    check_definition(&source, &raw, &mut found);
    let (users, groups) = accounts::merge(&laid, &mut found);
    let services = services::merge(&laid, &mut found);
    let (boot_links, image_links) = links(&laid, &mut found);
    let origin = format!("image {}", raw.name.value);
    let asking = |of: fn(&RawModules) -> Vec<ModuleSelector>| {
        let mut all = Vec::new();
        ask(&mut all, of(&raw.modules).into_iter(), &origin);
        laid.iter().for_each(|o| ask(&mut all, of(&o.raw.modules).into_iter(), &o.origin()));
        all
    };
    let mut load_modules = Vec::new();
    ask(&mut load_modules, raw.modules.load.iter().map(|m| m.to_string()), &origin);
    for overlay in &laid {
        ask(&mut load_modules, overlay.raw.modules.load.iter().map(|m| m.to_string()), &overlay.origin());
    }
    let rules = |of: fn(&RawOverlay) -> &Vec<RawPathRule>, own: &Vec<RawPathRule>| {
        let theirs = laid.iter().flat_map(|o| of(&o.raw).iter().map(|r| path_rule(r, o.origin())));
        theirs.chain(own.iter().map(|r| path_rule(r, origin.clone()))).collect()
    };
    let merged = Merged {
        name: raw.name.to_string(),
        version: raw.version.to_string(),
        description: raw.description.to_string(),
        suite: raw.suite,
        architecture: raw.architecture,
        kernel_package: raw.kernel.to_string(),
        source_date_epoch: raw.source_date_epoch.0 as u32,
        outputs: outputs(&raw),
        source: package_source(&raw),
        layout: layout(&raw),
        command_line: command_line(&raw),
        overlays: laid.iter().map(|o| o.name.clone()).collect(),
        packages: packages(&raw, &laid, &origin),
        package_places: package_places(&source, &raw, &laid),
        omit: omit(&raw, &laid, &origin, &mut found, &source),
        initrd_modules: asking(|m| m.initrd.clone()),
        root_modules: asking(|m| {
            let loaded = m.load.iter().map(|l| ModuleSelector::Name(l.module()));
            m.root.iter().cloned().chain(loaded).collect()
        }),
        load_modules,
        users,
        groups,
        services,
        directories: directories(&laid, &mut found),
        boot_links,
        image_links,
        files: files(&laid, &mut found),
        sysctls: sysctls(&laid, &mut found),
        prune: rules(|o| &o.prune, &raw.prune),
        keep: rules(|o| &o.keep, &raw.keep),
    };
    Diagnostics::check(found.0)?;
    Ok(merged)
}

/// The overlays of a definition, parsed, each after those it requires.
fn order(
    source: &Arc<Source>,
    raw: &RawDefinition,
    available: &BTreeMap<String, Source>,
) -> Result<Vec<Laid>, Diagnostics> {
    let mut walk = Walk { available, done: BTreeSet::new(), laid: Vec::new(), found: Vec::new() };
    for name in &raw.overlays {
        walk.visit(name, source, &mut Vec::new());
    }
    Diagnostics::check(walk.found)?;
    Ok(walk.laid)
}

struct Walk<'a> {
    available: &'a BTreeMap<String, Source>,
    done: BTreeSet<String>,
    laid: Vec<Laid>,
    found: Vec<Diagnostic>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &At<Name>, asked_in: &Arc<Source>, above: &mut Vec<String>) {
        let text = name.as_str();
        if let Some(at) = above.iter().position(|n| n == text) {
            let title = format!("overlays require each other: {} -> {text}", above[at..].join(" -> "));
            self.found
                .push(Diagnostic::new(asked_in, name.span.clone(), title).label("this closes the circle"));
            return;
        }
        if self.done.contains(text) {
            return;
        }
        if self.done.len() >= OVERLAYS_MAX {
            let title = format!("more than {OVERLAYS_MAX} overlays");
            self.found.push(Diagnostic::new(asked_in, name.span.clone(), title));
            return;
        }
        self.done.insert(text.to_owned());
        let Some(source) = self.available.get(text) else {
            let title = format!("there is no overlay `{text}`");
            let mut d = Diagnostic::new(asked_in, name.span.clone(), title);
            if let Some(near) = nearest(text, self.available.keys().map(String::as_str)) {
                d = d.label(format!("did you mean `{near}`?"));
            }
            let known: Vec<&str> = self.available.keys().map(String::as_str).collect();
            self.found.push(d.help(format!("overlays here: {}", known.join(", "))));
            return;
        };
        let source = Arc::new(source.clone());
        match document::<RawOverlay>(&source) {
            Err(errors) => self.found.extend(errors.into_vec()),
            Ok(raw) => {
                above.push(text.to_owned());
                for required in &raw.requires {
                    self.visit(required, &source, above);
                }
                above.pop();
                self.laid.push(Laid { name: text.to_owned(), source, raw });
            }
        }
    }
}

/// Checks within the definition that need more than one value.
fn check_definition(source: &Arc<Source>, raw: &RawDefinition, found: &mut Found) {
    let layout = &raw.layout;
    for (name, size) in [("esp", &layout.esp), ("root", &layout.root), ("verity", &layout.verity)] {
        if size.bytes() % ByteSize::mib(1).bytes() != 0 {
            found.at(
                source,
                &size.span,
                format!("`layout.{name}`: {} is not a multiple of 1MiB", size.value),
                "partitions start and end on 1 MiB",
            );
        }
    }
    // The hash tree of 4096-byte blocks with 32-byte digests takes 1/127 of the data, and one superblock.
    if layout.verity.bytes() < layout.root.bytes() / 100 {
        let need = layout.root.bytes().div_ceil(100).div_ceil(1 << 20);
        found.at(
            source,
            &layout.verity.span,
            format!(
                "`layout.verity`: {} is too small for a root slot of {}",
                layout.verity.value, layout.root.value
            ),
            format!("expected at least {need}MiB, a hundredth of the root slot"),
        );
    }
    let sector = layout.sector_size.value.0;
    if sector != 512 && sector != 4096 {
        let title = format!("`layout.sector_size`: {sector} is not a sector size");
        found.at(source, &layout.sector_size.span, title, "expected 512 or 4096");
    }
    // Firmware takes a FAT file system with fewer clusters for FAT16: 65,525 of one sector each, and its tables.
    let least = if sector == 4096 { ByteSize::mib(264) } else { ByteSize::mib(36) };
    if layout.esp.value < least {
        let title = format!("`layout.esp`: {} is too small for FAT32", layout.esp.value);
        found.at(
            source,
            &layout.esp.span,
            title,
            format!("expected at least {least} with {sector}-byte sectors"),
        );
    }
}

fn outputs(raw: &RawDefinition) -> Vec<OutputFormat> {
    let unique: BTreeSet<OutputFormat> = raw.outputs.iter().copied().collect();
    if unique.is_empty() { vec![OutputFormat::Raw] } else { unique.into_iter().collect() }
}

fn package_source(raw: &RawDefinition) -> PackageSource {
    PackageSource {
        mirror: raw.source.mirror.as_ref().map(|u| u.to_string()),
        security_mirror: raw.source.security_mirror.as_ref().map(|u| u.to_string()),
        keyring: raw.source.keyring.as_ref().map(|p| p.to_string()),
        proxy: raw.source.proxy.as_ref().map(|u| u.to_string()),
    }
}

fn layout(raw: &RawDefinition) -> Layout {
    Layout {
        esp: raw.layout.esp.value,
        root: raw.layout.root.value,
        verity: raw.layout.verity.value,
        sector_size: raw.layout.sector_size.value.0 as u32,
    }
}

fn command_line(raw: &RawDefinition) -> Vec<String> {
    let extras = raw.boot.command_line.iter().map(|w| w.to_string());
    extras.chain(raw.boot.console.iter().map(|c| format!("console={c}"))).collect()
}

/// Adds what one asks for to what is asked for already, keeping the order of the first mention.
fn ask<T: PartialEq>(all: &mut Vec<Asked<T>>, wanted: impl Iterator<Item = T>, by: &str) {
    for what in wanted {
        match all.iter_mut().find(|a| a.what == what) {
            Some(asked) if asked.by.iter().any(|b| b == by) => {}
            Some(asked) => asked.by.push(by.to_owned()),
            None => all.push(Asked { what, by: vec![by.to_owned()] }),
        }
    }
}

fn packages(raw: &RawDefinition, laid: &[Laid], origin: &str) -> Vec<Asked<String>> {
    let mut all = Vec::new();
    let own = std::iter::once(raw.kernel.to_string()).chain(raw.packages.iter().map(|p| p.to_string()));
    ask(&mut all, own, origin);
    for overlay in laid {
        ask(&mut all, overlay.raw.packages.iter().map(|p| p.to_string()), &overlay.origin());
    }
    all.sort_by(|a, b| a.what.cmp(&b.what));
    all
}

/// Where each package is asked for: what a message about it points at.
fn package_places(source: &Source, raw: &RawDefinition, laid: &[Laid]) -> BTreeMap<String, Vec<String>> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let kernel = (raw.kernel.to_string(), source.place(raw.kernel.span.start));
    let own = raw.packages.iter().map(|p| (p.to_string(), source.place(p.span.start)));
    let theirs = laid
        .iter()
        .flat_map(|o| o.raw.packages.iter().map(|p| (p.to_string(), o.source.place(p.span.start))));
    for (package, place) in std::iter::once(kernel).chain(own).chain(theirs) {
        places.entry(package).or_default().push(place);
    }
    places
}

/// A package that is asked for by name cannot be left out by another file.
fn omit(
    raw: &RawDefinition,
    laid: &[Laid],
    origin: &str,
    found: &mut Found,
    source: &Arc<Source>,
) -> Vec<OmitRule> {
    let asked = packages(raw, laid, origin);
    let own = raw.omit.iter().map(|rule| (rule, origin.to_owned(), source));
    let theirs = laid.iter().flat_map(|o| o.raw.omit.iter().map(|rule| (rule, o.origin(), &o.source)));
    let mut all: BTreeMap<String, OmitRule> = BTreeMap::new();
    for (rule, origin, source) in theirs.chain(own) {
        let RawOmit { package, reason } = rule;
        if let Some(wanted) = asked.iter().find(|a| a.what == package.as_str()) {
            let title =
                format!("package `{package}` is left out here, but {} asks for it", wanted.by.join(", "));
            found.at(source, &package.span, title, "drop this rule or the request");
        }
        let made = OmitRule { package: package.to_string(), reason: reason.to_string(), origin };
        all.entry(made.package.clone()).or_insert(made);
    }
    all.into_values().collect()
}

fn path_rule(rule: &RawPathRule, origin: String) -> PathRule {
    PathRule { path: rule.path.clone(), reason: rule.reason.to_string(), origin }
}

fn volatile(path: &str) -> bool {
    VOLATILE.iter().any(|root| path.starts_with(root))
}

/// Two overlays may ask for the same directory in the same words; anything else is a conflict.
fn directories(laid: &[Laid], found: &mut Found) -> Vec<Directory> {
    let mut all: BTreeMap<String, Directory> = BTreeMap::new();
    for overlay in laid {
        for raw in &overlay.raw.directories {
            let path = raw.path.value.to_string();
            if !volatile(&path) && !path.starts_with("/state/") {
                let title = format!("`directories`: {path} is not on a file system that is filled at boot");
                let label = "expected a path below /run, /var, /tmp or /state";
                found.at(&overlay.source, &raw.path.span, title, label);
            }
            let made = Directory {
                path: path.clone(),
                mode: raw.mode.bits(),
                user: raw.user.as_ref().map_or("root".into(), |u| u.to_string()),
                group: raw.group.as_ref().map(|g| g.to_string()),
                origin: overlay.origin(),
            };
            match all.get(&path) {
                Some(other)
                    if (other.mode, &other.user, &other.group) != (made.mode, &made.user, &made.group) =>
                {
                    let title = format!("directory {path} has another mode or owner in {}", other.origin);
                    found.at(&overlay.source, &raw.path.span, title, "the two must agree");
                }
                Some(_) => {}
                None => drop(all.insert(path, made)),
            }
        }
    }
    all.into_values().collect()
}

/// Links made at boot and links of the image.
fn links(laid: &[Laid], found: &mut Found) -> (Vec<Link>, Vec<Link>) {
    let mut all: BTreeMap<String, Link> = BTreeMap::new();
    for overlay in laid {
        for raw in &overlay.raw.links {
            let path = raw.path.value.to_string();
            let made = Link { path: path.clone(), target: raw.target.to_string(), origin: overlay.origin() };
            let directory =
                laid.iter().find(|o| o.raw.directories.iter().any(|d| d.path.value == raw.path.value));
            if let Some(other) = directory {
                let title = format!("{path} is a link here and a directory in {}", other.origin());
                found.at(&overlay.source, &raw.path.span, title, "it can only be one of them");
            }
            match all.get(&path) {
                Some(other) if other.target != made.target => {
                    let title = format!("link {path} points to {} in {}", other.target, other.origin);
                    found.at(&overlay.source, &raw.path.span, title, "the two must agree");
                }
                Some(_) => {}
                None => drop(all.insert(path, made)),
            }
        }
    }
    all.into_values().partition(|link| volatile(&link.path))
}

fn files(laid: &[Laid], found: &mut Found) -> Vec<FileRule> {
    let mut all: BTreeMap<String, FileRule> = BTreeMap::new();
    for overlay in laid {
        for raw in &overlay.raw.files {
            let made = FileRule {
                path: raw.path.value.to_string(),
                mode: raw.mode.map(|m| m.bits()),
                user: raw.user.as_ref().map_or("root".into(), |u| u.to_string()),
                group: raw.group.as_ref().map(|g| g.to_string()),
                origin: overlay.origin(),
            };
            if let Some(other) = all.get(&made.path) {
                let title = format!("attributes of {} are given in {} already", made.path, other.origin);
                found.at(&overlay.source, &raw.path.span, title, "one overlay lays a file, and says how");
            }
            all.insert(made.path.clone(), made);
        }
    }
    all.into_values().collect()
}

fn sysctls(laid: &[Laid], found: &mut Found) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, (String, String)> = BTreeMap::new();
    for overlay in laid {
        for (name, value) in overlay.raw.sysctls.iter() {
            let name_text = name.value.to_string();
            match all.get(&name_text) {
                Some((other, origin)) if *other != value.0 => {
                    let title = format!("`{name_text}` is {other} in {origin}");
                    found.at(&overlay.source, &value.span, title, "the two must agree");
                }
                Some(_) => {}
                None => drop(all.insert(name_text, (value.0.clone(), overlay.origin()))),
            }
        }
    }
    all.into_iter().map(|(name, (value, _))| (name, value)).collect()
}

/// What compiles without knowing any account.
fn service_table(name: &str, raw: &RawService, after: Vec<u16>) -> compiled::Service {
    compiled::Service {
        name: name.to_owned(),
        exec: raw.exec.iter().map(|a| a.to_string()).collect(),
        env: raw.env.iter().map(|(k, v)| (k.value.to_string(), v.to_string())).collect(),
        cwd: raw.cwd.as_ref().map_or("/".into(), |p| p.to_string()),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        capabilities: raw.capabilities.as_ref().map(|all| {
            let unique: BTreeSet<u8> = all.iter().map(|c| c.0).collect();
            unique.into_iter().collect()
        }),
        autostart: raw.autostart,
        after,
        readiness: raw.readiness.compiled(),
        start_timeout_ms: raw.start_timeout.map_or(0, |t| t.get()),
        restart: raw.restart.compiled(),
        restart_min_ms: raw.restart_min.get(),
        restart_max_ms: raw.restart_max.get(),
        restart_burst: raw.restart_burst.0 as u16,
        restart_window_ms: raw.restart_window.get(),
        give_up: raw.give_up.compiled(),
        stop: raw
            .stop
            .iter()
            .map(|s| compiled::StopStep { signal: s.signal.0, wait_ms: s.wait.get() })
            .collect(),
        sockets: raw
            .sockets
            .iter()
            .map(|s| compiled::Socket {
                path: s.path.value.to_string(),
                kind: s.kind.compiled(),
                mode: s.mode.bits(),
                name: s.name.to_string(),
                pass_credentials: s.pass_credentials,
            })
            .collect(),
        fd_store_max: raw.fd_store_max.0 as u16,
        nofile: raw.nofile.map_or(0, |n| n.0 as u64),
        oom_score_adj: raw.oom_score_adj.0 as i16,
        no_new_privs: raw.no_new_privs,
        private_tmp: raw.private_tmp,
        read_only: raw.read_only.iter().map(|p| p.to_string()).collect(),
        hidden: raw.hidden.iter().map(|p| p.to_string()).collect(),
        syscalls: raw.syscalls.as_ref().map(|all| {
            let unique: BTreeSet<u16> = all.iter().map(|call| call.0).collect();
            unique.into_iter().collect()
        }),
        console: raw.console,
        phases: raw.phases.iter().map(|p| p.to_string()).collect(),
        begins_after: raw.begins_after.as_ref().map(|all| all.iter().map(|p| p.to_string()).collect()),
        warm_up: raw.warm_up.iter().map(|word| word.value.to_string()).collect(),
        watchdog_ms: raw.watchdog.map_or(0, |t| t.get()),
        fence: raw.fence,
    }
}
