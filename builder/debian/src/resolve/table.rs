//! Parsed relations of the packages that a search can reach, and which of them cannot be had at all.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::{DependencyKind, ResolveError};
use crate::packages::{MultiArch, Package, PackageId, Universe};
use crate::relation::{Alternative, Clause, Constraint, parse_provides, parse_relations};

/// One clause with the packages that satisfy it, best first.
pub(super) struct Need<'u> {
    pub(super) kind: DependencyKind,
    pub(super) clause: Clause<'u>,
    pub(super) options: Vec<PackageId>,
}

/// What a package excludes.
#[derive(Clone, Copy)]
pub(super) struct Exclusion<'u> {
    pub(super) field: &'static str,
    pub(super) target: Alternative<'u>,
}

/// A package with its relations read.
pub(super) struct Node<'u> {
    pub(super) package: Package<'u>,
    pub(super) needs: Vec<Need<'u>>,
    pub(super) exclusions: Vec<Exclusion<'u>>,
    provides: Vec<(&'u str, Option<&'u str>)>,
}

pub(super) struct Table<'u> {
    universe: &'u Universe,
    pins: HashMap<String, PackageId>,
    omit: &'u BTreeSet<String>,
    nodes: HashMap<PackageId, Rc<Node<'u>>>,
    /// Packages with a need that nothing satisfies, and the number of that need.
    broken: HashMap<PackageId, usize>,
}

impl<'u> Table<'u> {
    pub(super) fn new(
        universe: &'u Universe,
        pins: HashMap<String, PackageId>,
        omit: &'u BTreeSet<String>,
    ) -> Self {
        Self { universe, pins, omit, nodes: HashMap::new(), broken: HashMap::new() }
    }

    /// Reads everything that can be reached from `roots` and finds out what cannot be had.
    pub(super) fn fill(&mut self, roots: &[PackageId]) -> Result<(), ResolveError> {
        let mut open = roots.to_vec();
        while let Some(id) = open.pop() {
            if self.nodes.contains_key(&id) {
                continue;
            }
            let node = self.read(id)?;
            open.extend(node.needs.iter().flat_map(|need| &need.options));
            self.nodes.insert(id, Rc::new(node));
        }
        loop {
            let broken = &self.broken;
            let newly: Vec<_> = self
                .nodes
                .iter()
                .filter(|(id, _)| !broken.contains_key(id))
                .filter_map(|(id, node)| {
                    let hopeless =
                        |need: &Need<'_>| need.options.iter().all(|option| broken.contains_key(option));
                    Some((*id, node.needs.iter().position(hopeless)?))
                })
                .collect();
            if newly.is_empty() {
                return Ok(());
            }
            self.broken.extend(newly);
        }
    }

    pub(super) fn node(&self, id: PackageId) -> Rc<Node<'u>> {
        Rc::clone(&self.nodes[&id])
    }

    /// The number of the need that makes this package impossible.
    pub(super) fn broken(&self, id: PackageId) -> Option<usize> {
        self.broken.get(&id).copied()
    }

    fn read(&self, id: PackageId) -> Result<Node<'u>, ResolveError> {
        let package = self.universe.package(id);
        let relations = |field: &'static str, text: &'u str| {
            parse_relations(text, self.universe.arch()).map_err(|source| ResolveError::Relation {
                package: format!("{} {}", package.name, package.version),
                field,
                source,
            })
        };
        let mut needs = Vec::new();
        let fields = [
            ("Pre-Depends", DependencyKind::PreDepends, package.pre_depends),
            ("Depends", DependencyKind::Depends, package.depends),
        ];
        for (field, kind, text) in fields {
            for clause in relations(field, text)? {
                let options = self.options(&clause);
                // A package that satisfies its own need (by what it provides) needs nobody for it.
                if !options.contains(&id) && !self.is_omitted(&clause, &options) {
                    needs.push(Need { kind, clause, options });
                }
            }
        }
        let mut exclusions = Vec::new();
        for (field, text) in [("conflicts with", package.conflicts), ("breaks", package.breaks)] {
            for clause in relations(field, text)? {
                exclusions.extend(clause.alternatives.iter().map(|&target| Exclusion { field, target }));
            }
        }
        // The Provides fields were read once already, when the index was added.
        let provides = parse_provides(package.provides).unwrap_or_default();
        Ok(Node { package, needs, exclusions, provides })
    }

    /// Whether a clause counts as met because what would meet it is left out on purpose.
    fn is_omitted(&self, clause: &Clause<'_>, options: &[PackageId]) -> bool {
        let mut named = clause.alternatives.iter().map(|alternative| alternative.name);
        let mut found = options.iter().map(|&id| self.universe.package(id).name);
        named.any(|name| self.omit.contains(name)) || found.any(|name| self.omit.contains(name))
    }

    /// The version of a package that may be chosen.
    pub(super) fn candidate(&self, name: &str) -> Option<Package<'u>> {
        match self.pins.get(name) {
            Some(&id) => Some(self.universe.package(id)),
            None => self.universe.versions(name).next(),
        }
    }

    fn is_candidate(&self, package: &Package<'_>) -> bool {
        self.candidate(package.name).is_some_and(|candidate| candidate.id == package.id)
    }

    /// The packages that satisfy a clause: by alternative as written, the package of that name before those that
    /// provide it, and those in apt's order: essential, by priority, then as the indexes list them.
    fn options(&self, clause: &Clause<'u>) -> Vec<PackageId> {
        let mut options = Vec::new();
        for alternative in &clause.alternatives {
            let real = self.candidate(alternative.name);
            let real = real.filter(|p| self.satisfies_by_name(p, alternative)).map(|p| p.id);
            let mut providers: Vec<_> = self
                .universe
                .providers(alternative.name)
                .filter(|(package, _)| self.is_candidate(package))
                .filter(|(package, version)| self.satisfies_by_provision(package, *version, alternative))
                .map(|(package, _)| package)
                .collect();
            providers.sort_by_key(|package| (!package.essential, package.priority, package.id));
            for id in real.into_iter().chain(providers.into_iter().map(|package| package.id)) {
                if !options.contains(&id) {
                    options.push(id);
                }
            }
        }
        options
    }

    fn satisfies_by_name(&self, package: &Package<'_>, wanted: &Alternative<'_>) -> bool {
        let arch_fits = match wanted.qualifier {
            None | Some("native") => true,
            Some("any") => package.multi_arch == MultiArch::Allowed,
            Some(arch) => arch == self.universe.arch(),
        };
        arch_fits && accepts(wanted.constraint, package.version)
    }

    /// A versioned dependency is satisfied only by a versioned provision (policy 7.5).
    fn satisfies_by_provision(
        &self,
        package: &Package<'_>,
        version: Option<&str>,
        wanted: &Alternative<'_>,
    ) -> bool {
        let arch_fits = match wanted.qualifier {
            None | Some("native") => true,
            Some("any") => package.multi_arch == MultiArch::Allowed,
            Some(arch) => arch == self.universe.arch(),
        };
        let version_fits = match (wanted.constraint, version) {
            (None, _) => true,
            (Some(constraint), Some(version)) => constraint.accepts(version),
            (Some(_), None) => false,
        };
        arch_fits && version_fits
    }
}

fn accepts(constraint: Option<Constraint<'_>>, version: &str) -> bool {
    constraint.is_none_or(|constraint| constraint.accepts(version))
}

impl Node<'_> {
    /// The exclusion of this package that hits `other`, if any. A package never excludes itself.
    pub(super) fn exclusion_of(&self, other: &Node<'_>) -> Option<&Exclusion<'_>> {
        if self.package.name == other.package.name {
            return None;
        }
        self.exclusions.iter().find(|exclusion| other.is_hit_by(&exclusion.target))
    }

    fn is_hit_by(&self, target: &Alternative<'_>) -> bool {
        if target
            .qualifier
            .is_some_and(|arch| !matches!(arch, "any" | "native") && arch != self.package.architecture)
        {
            return false;
        }
        if self.package.name == target.name && accepts(target.constraint, self.package.version) {
            return true;
        }
        self.provides.iter().any(|&(name, version)| {
            name == target.name
                && match (target.constraint, version) {
                    (None, _) => true,
                    (Some(constraint), Some(version)) => constraint.accepts(version),
                    (Some(_), None) => false,
                }
        })
    }
}
