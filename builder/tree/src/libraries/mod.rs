//! Shared libraries: which of them the image's programs can reach, and the loader's cache of where they are.

mod cache;
mod elf;

use std::collections::{BTreeMap, BTreeSet};

use dyad_formats::tree::{Kind, Tree, base_name, parent};
use rayon::prelude::*;

use crate::lookup::resolve;
use crate::path::{merge_usr, show};
use crate::report::Dropped;
use crate::rules::Rules;
use crate::{Error, finish};

pub(crate) use cache::{links, write as cache};
use elf::Dynamic;

/// Libraries that the C library itself opens by name, so that no file lists them: thread cancellation and the usual
/// name services. Further ones are named by keep rules.
const OPENED_BY_LIBC: [&str; 4] =
    ["libgcc_s.so.1", "libnss_compat.so.2", "libnss_dns.so.2", "libnss_files.so.2"];
/// Files that ld.so.conf may include, nested, before it counts as a loop.
const CONF_FILES_MAX: usize = 256;

/// A directory that the loader searches: as configured, and where it is in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SearchDir {
    text: String,
    path: Vec<u8>,
}

/// ldconfig's idea of a library's file name.
fn is_library_name(name: &[u8]) -> bool {
    (name.starts_with(b"lib") || name.starts_with(b"ld-")) && name.windows(3).any(|w| w == b".so")
}

/// Directories of `/etc/ld.so.conf` in order, then the built-in ones; each directory once.
fn search_dirs(tree: &Tree) -> Vec<SearchDir> {
    let mut texts = Vec::new();
    conf(tree, b"/etc/ld.so.conf", &mut texts, &mut 0);
    texts.extend(
        ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"].map(str::to_owned),
    );
    let mut dirs: Vec<SearchDir> = Vec::new();
    for text in texts {
        let Some(path) = resolve(tree, &merge_usr(text.as_bytes().to_vec())) else { continue };
        if dirs.iter().all(|d| d.path != path) {
            dirs.push(SearchDir { text, path });
        }
    }
    dirs
}

fn conf(tree: &Tree, path: &[u8], dirs: &mut Vec<String>, files: &mut usize) {
    *files += 1;
    let Some(Kind::File(data)) = tree.get(path).map(|i| &i.kind) else { return };
    for line in show(data).lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include").map(str::trim) {
            // Debian writes one form only: DIRECTORY/*.conf
            let Some(dir) = pattern.strip_suffix("/*.conf") else { continue };
            for (name, _) in tree.children(dir.as_bytes()) {
                if name.ends_with(b".conf") && *files < CONF_FILES_MAX {
                    conf(tree, &[dir.as_bytes(), b"/", name].concat(), dirs, files);
                }
            }
        } else if line.starts_with('/') {
            dirs.push(line.trim_end_matches('/').to_owned());
        }
    }
}

/// A DT_NEEDED entry and the file that the loader would find for it.
type Need = (String, Option<Vec<u8>>);

/// Every dynamic ELF file of a tree and what it needs.
struct Graph {
    files: BTreeMap<Vec<u8>, Dynamic>,
    dirs: Vec<SearchDir>,
    /// Files outside the search directories by their last component; the first path of several.
    private: BTreeMap<Vec<u8>, Vec<u8>>,
    /// For each file its DT_NEEDED entries with the file that each finds.
    needs: BTreeMap<Vec<u8>, Vec<Need>>,
}

impl Graph {
    fn read(tree: &Tree) -> Self {
        let all: Vec<_> = tree.iter().map(|(path, _, inode)| (path, &inode.kind)).collect();
        let files: BTreeMap<Vec<u8>, Dynamic> = all
            .into_par_iter()
            .filter_map(|(path, kind)| match kind {
                Kind::File(data) => Some((path.to_vec(), elf::read(data)?)),
                _ => None,
            })
            .collect();
        let mut graph =
            Graph { files, dirs: search_dirs(tree), private: BTreeMap::new(), needs: BTreeMap::new() };
        let private = graph.files.keys().rev().filter(|path| !graph.is_library(path));
        graph.private = private.map(|path| (base_name(path).to_vec(), path.clone())).collect();
        for (path, dynamic) in &graph.files {
            let found =
                dynamic.needed.iter().map(|name| (name.clone(), graph.find(tree, path, dynamic, name)));
            graph.needs.insert(path.clone(), found.collect());
        }
        graph
    }

    /// The loader's search: the file's own run path, then the configured directories.
    fn find(&self, tree: &Tree, from: &[u8], dynamic: &Dynamic, name: &str) -> Option<Vec<u8>> {
        let library = |dir: &[u8]| {
            let path = resolve(tree, &merge_usr([dir, b"/", name.as_bytes()].concat()))?;
            self.files.contains_key(&path).then_some(path)
        };
        let origin = show(parent(from));
        let own =
            dynamic.run_path.iter().map(|d| d.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin));
        let own = own.filter(|d| d.starts_with('/')).find_map(|d| library(normal(&d).as_bytes()));
        own.or_else(|| self.dirs.iter().find_map(|d| library(&d.path))).or_else(|| self.private(name))
    }

    /// A library in a program's private directory: the loader takes it when the program's run path has loaded it
    /// before. Which program that is cannot be told from here, so any such file counts.
    fn private(&self, name: &str) -> Option<Vec<u8>> {
        self.private.get(name.as_bytes()).cloned()
    }

    /// Files that the loader would refuse because something they need is not there, each with the name that is missing.
    fn broken(&self) -> BTreeMap<&[u8], &str> {
        let mut broken: BTreeMap<&[u8], &str> = BTreeMap::new();
        loop {
            let before = broken.len();
            for (path, needs) in &self.needs {
                let bad = needs.iter().find(|(_, found)| match found {
                    None => true,
                    Some(file) => broken.contains_key(file.as_slice()),
                });
                if let (Some((name, found)), false) = (bad, broken.contains_key(path.as_slice())) {
                    let name = found.as_ref().map_or(name.as_str(), |file| broken[file.as_slice()]);
                    broken.insert(path, name);
                }
            }
            if broken.len() == before {
                return broken;
            }
        }
    }

    /// Whether a path lies where the loader looks for libraries; anything else is a program or a plug-in.
    fn is_library(&self, path: &[u8]) -> bool {
        is_library_name(base_name(path)) && self.dirs.iter().any(|d| d.path == parent(path))
    }
}

/// `/a/b/../c` -> `/a/c`, as run paths with `$ORIGIN/..` have it.
fn normal(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

/// Drops libraries that nothing kept needs, and programs and plug-ins that could not be loaded for want of a library.
/// `required` are programs that the image cannot do without.
pub(crate) fn close(
    tree: &mut Tree,
    rules: &Rules,
    required: &BTreeSet<Vec<u8>>,
    dropped: &mut Vec<Dropped>,
) -> Result<(), Error> {
    let graph = Graph::read(tree);
    let broken = graph.broken();
    let why = |library: &str| {
        // The file behind `libx.so.1` is often `libx.so.1.2`.
        let file = |d: &&Dropped| {
            let name = d.path.rsplit('/').next().unwrap_or_default();
            name.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        match dropped.iter().find(file) {
            Some(d) => format!("was left out ({})", d.rule),
            None => "no package in the image ships".to_owned(),
        }
    };
    let mut doomed: Vec<(Vec<u8>, String)> = Vec::new();
    for (path, library) in broken.iter().filter(|(path, _)| !graph.is_library(path)) {
        if required.contains(*path) || rules.kept(path) {
            let (path, library) = (show(path), (*library).to_owned());
            return Err(Error::NoLibrary { path, why: why(&library), library });
        }
        doomed.push((
            path.to_vec(),
            format!("derived: cannot be loaded: needs {library}, which {}", why(library)),
        ));
    }
    let reached = reached(tree, &graph, rules, &broken);
    for (path, id) in tree.iter().map(|(path, id, _)| (path, id)).filter(|(path, _)| graph.is_library(path)) {
        let file = match tree.inode(id).kind {
            Kind::File(_) => Some(path.to_vec()),
            Kind::Symlink(_) => resolve(tree, path),
            _ => continue,
        };
        // What is no ELF file (linker scripts) or leads nowhere is of no use to the loader either.
        if !file.is_some_and(|f| reached.contains(&f)) && !rules.kept(path) {
            doomed.push((path.to_vec(), "derived: library that nothing in the image needs".to_owned()));
        }
    }
    for (path, rule) in doomed {
        finish::drop_path(tree, &path, &rule, dropped);
    }
    Ok(())
}

fn reached(tree: &Tree, graph: &Graph, rules: &Rules, broken: &BTreeMap<&[u8], &str>) -> BTreeSet<Vec<u8>> {
    let by_libc: BTreeSet<Vec<u8>> = graph
        .dirs
        .iter()
        .flat_map(|d| OPENED_BY_LIBC.iter().map(|name| [&d.path[..], b"/", name.as_bytes()].concat()))
        .filter_map(|path| resolve(tree, &path))
        .collect();
    // A keep rule may name the link under which a program opens a library.
    let kept = tree.iter().map(|(path, _, _)| path).filter(|p| graph.is_library(p) && rules.kept(p));
    let kept: BTreeSet<Vec<u8>> = kept.filter_map(|path| resolve(tree, path)).collect();
    let root = |path: &Vec<u8>| !graph.is_library(path) || kept.contains(path) || by_libc.contains(path);
    let mut queue: Vec<&Vec<u8>> =
        graph.files.keys().filter(|p| root(p) && !broken.contains_key(p.as_slice())).collect();
    // The loader itself is named by programs, not needed by them.
    let loader = resolve(tree, b"/usr/lib64/ld-linux-x86-64.so.2");
    let mut reached: BTreeSet<Vec<u8>> = loader.into_iter().collect();
    while let Some(path) = queue.pop() {
        if reached.insert(path.clone()) {
            queue.extend(graph.needs[path].iter().filter_map(|(_, found)| found.as_ref()));
        }
    }
    reached
}
