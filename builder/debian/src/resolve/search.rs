//! Depth-first search in apt's order, with backtracking over alternatives.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::table::{Need, Node, Table};
use super::{Reason, Request, Resolution, ResolveError, Selected, Wanted};
use crate::packages::{Package, PackageId, Universe};

/// Choices taken back before the search gives up. Real sets need none or a few.
const RETRIES_MAX: usize = 20_000;
/// Similar names shown for an unknown package.
const SIMILAR_MAX: usize = 5;

pub(super) fn run<'u>(universe: &'u Universe, request: &'u Request) -> Result<Resolution, ResolveError> {
    let mut roots: Vec<(PackageId, Cause)> = Vec::new();
    let mut pins = HashMap::new();
    for wanted in &request.packages {
        let package = find(universe, wanted)?;
        if wanted.version.is_some() {
            pins.insert(wanted.name.clone(), package.id);
        }
        roots.push((package.id, Cause::Requested));
    }
    if request.essential {
        roots.extend(universe.essential().map(|package| (package.id, Cause::Essential)));
    }
    let mut table = Table::new(universe, pins, &request.omit);
    table.fill(&roots.iter().map(|(id, _)| *id).collect::<Vec<_>>())?;
    Search { table, retries: 0 }.solve(&roots)
}

/// The package that a wanted name stands for.
fn find<'u>(universe: &'u Universe, wanted: &Wanted) -> Result<Package<'u>, ResolveError> {
    let name = &wanted.name;
    if let Some(version) = &wanted.version {
        let available: Vec<_> = universe.versions(name).map(|p| p.version.to_owned()).collect();
        if !available.is_empty() {
            return universe.versions(name).find(|p| p.version == version).ok_or_else(|| {
                ResolveError::NoVersion { name: name.clone(), wanted: version.clone(), available }
            });
        }
    }
    if let Some(package) = universe.versions(name).next() {
        return Ok(package);
    }
    let providers: BTreeSet<_> = universe.providers(name).map(|(package, _)| package.name).collect();
    match providers.len() {
        0 => Err(unknown(universe, name)),
        1 => Ok(providers.first().and_then(|only| universe.versions(only).next()).expect("it has an entry")),
        _ => {
            let providers = providers.into_iter().map(str::to_owned).collect();
            Err(ResolveError::Virtual { name: name.clone(), providers })
        }
    }
}

fn unknown(universe: &Universe, name: &str) -> ResolveError {
    let mut near: Vec<_> = universe
        .names()
        .filter(|known| known.len().abs_diff(name.len()) <= 2)
        .map(|known| (distance(known, name), known))
        .filter(|(distance, _)| *distance <= 2)
        .collect();
    near.sort();
    let suites: BTreeSet<_> = universe.suites().collect();
    ResolveError::Unknown {
        name: name.to_owned(),
        suites: suites.into_iter().collect::<Vec<_>>().join(", "),
        similar: near.into_iter().take(SIMILAR_MAX).map(|(_, known)| known.to_owned()).collect(),
    }
}

/// Edits between two names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[derive(Debug, Clone, Copy)]
enum Cause {
    Requested,
    Essential,
    /// This need of that package.
    Need(PackageId, usize),
}

/// A partial set: what is in, why, and which needs are still to be looked at (the last first).
#[derive(Clone, Default)]
struct State {
    chosen: Vec<PackageId>,
    members: HashSet<PackageId>,
    causes: HashMap<PackageId, Cause>,
    agenda: Vec<(PackageId, usize)>,
}

/// A choice that can be taken back: the state before it and the options not tried.
struct Choice {
    state: State,
    cause: Cause,
    untried: Vec<PackageId>,
}

struct Search<'u> {
    table: Table<'u>,
    retries: usize,
}

impl<'u> Search<'u> {
    fn solve(mut self, roots: &[(PackageId, Cause)]) -> Result<Resolution, ResolveError> {
        let mut state = State::default();
        for &(id, cause) in roots {
            if state.members.contains(&id) {
                continue;
            }
            if let Some(need) = self.table.broken(id) {
                return Err(self.impossible(id, cause, need));
            }
            if let Some(other) = self.excluded_by(&state, id) {
                state.causes.insert(id, cause);
                return Err(self.conflict(&state, id, other));
            }
            self.take(&mut state, id, cause);
        }
        // The first root's needs come first, so they are on top of the agenda.
        for &(id, _) in roots.iter().rev() {
            self.push_needs(&mut state, id);
        }
        let mut choices: Vec<Choice> = Vec::new();
        let mut first_error = None;
        loop {
            match self.settle(&mut state, &mut choices) {
                Ok(()) => return Ok(self.finish(&state)),
                Err(error) => first_error.get_or_insert(error),
            };
            let Some(choice) = choices.last_mut() else {
                return Err(first_error.expect("it was set just now"));
            };
            self.retries += 1;
            if self.retries > RETRIES_MAX {
                let first = Box::new(first_error.expect("it was set just now"));
                return Err(ResolveError::TooHard { steps: RETRIES_MAX, first });
            }
            let (option, cause) = (choice.untried.remove(0), choice.cause);
            state = choice.state.clone();
            if choice.untried.is_empty() {
                choices.pop();
            }
            self.take(&mut state, option, cause);
            self.push_needs(&mut state, option);
        }
    }

    /// Works through the agenda until it is empty or a need cannot be met.
    fn settle(&self, state: &mut State, choices: &mut Vec<Choice>) -> Result<(), ResolveError> {
        while let Some((id, number)) = state.agenda.pop() {
            let node = self.table.node(id);
            let need = &node.needs[number];
            if need.options.iter().any(|option| state.members.contains(option)) {
                continue;
            }
            let possible = need.options.iter().filter(|option| self.table.broken(**option).is_none());
            let mut viable = possible.filter(|option| self.excluded_by(state, **option).is_none()).copied();
            let cause = Cause::Need(id, number);
            let Some(option) = viable.next() else {
                return Err(self.no_option(state, id, need, cause));
            };
            let untried: Vec<_> = viable.collect();
            if !untried.is_empty() {
                choices.push(Choice { state: state.clone(), cause, untried });
            }
            self.take(state, option, cause);
            self.push_needs(state, option);
        }
        Ok(())
    }

    fn take(&self, state: &mut State, id: PackageId, cause: Cause) {
        state.chosen.push(id);
        state.members.insert(id);
        state.causes.insert(id, cause);
    }

    fn push_needs(&self, state: &mut State, id: PackageId) {
        let needs = self.table.node(id).needs.len();
        state.agenda.extend((0..needs).rev().map(|number| (id, number)));
    }

    /// A member of the state that excludes this package or is excluded by it.
    fn excluded_by(&self, state: &State, id: PackageId) -> Option<PackageId> {
        let node = self.table.node(id);
        let excludes =
            |other: &Rc<Node<'_>>| node.exclusion_of(other).is_some() || other.exclusion_of(&node).is_some();
        state.chosen.iter().copied().find(|&other| excludes(&self.table.node(other)))
    }

    fn finish(&self, state: &State) -> Resolution {
        let mut packages: Vec<_> = state
            .chosen
            .iter()
            .map(|&id| {
                let reason = match state.causes[&id] {
                    Cause::Requested => Reason::Requested,
                    Cause::Essential => Reason::Essential,
                    Cause::Need(by, number) => {
                        let node = self.table.node(by);
                        let Need { kind, clause, .. } = &node.needs[number];
                        let by = node.package.name.to_owned();
                        Reason::Dependency { by, kind: *kind, clause: clause.to_string() }
                    }
                };
                Selected::new(&self.table.node(id).package, reason)
            })
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Resolution { packages }
    }

    /// The steps that led to this package, from what was asked for.
    fn chain(&self, state: &State, id: PackageId) -> Vec<String> {
        let mut steps = Vec::new();
        let mut at = id;
        loop {
            match state.causes[&at] {
                Cause::Requested => steps.push(format!("{} was asked for", self.describe(at))),
                Cause::Essential => steps.push(format!("{} is essential", self.describe(at))),
                Cause::Need(by, number) => {
                    let node = self.table.node(by);
                    let Need { kind, clause, .. } = &node.needs[number];
                    steps.push(format!("{} {kind} {clause}", self.describe(by)));
                    at = by;
                    continue;
                }
            }
            steps.reverse();
            return steps;
        }
    }

    fn describe(&self, id: PackageId) -> String {
        let package = self.table.node(id).package;
        format!("{} {}", package.name, package.version)
    }

    /// A root that cannot be had: follows the needs down to what is missing.
    fn impossible(&self, root: PackageId, cause: Cause, need: usize) -> ResolveError {
        let asked = if matches!(cause, Cause::Essential) { "is essential" } else { "was asked for" };
        let mut chain = vec![format!("{} {asked}", self.describe(root))];
        let (mut id, mut number, mut seen) = (root, need, HashSet::new());
        loop {
            let node = self.table.node(id);
            let need = &node.needs[number];
            chain.push(format!("{} {} {}", self.describe(id), need.kind, need.clause));
            // Every option of a broken need is broken; a ring of them would go on for ever.
            let next = need.options.iter().find(|option| seen.insert(**option));
            match next.and_then(|&option| Some((option, self.table.broken(option)?))) {
                Some((option, its_need)) => (id, number) = (option, its_need),
                None => return ResolveError::Unsatisfiable { chain, problem: self.missing(need) },
            }
        }
    }

    /// What stands in the place of what a need wants.
    fn missing(&self, need: &Need<'_>) -> String {
        let told: Vec<_> = need
            .clause
            .alternatives
            .iter()
            .map(|alternative| match self.table.candidate(alternative.name) {
                Some(package) => format!("{} is there in version {}", package.name, package.version),
                None => format!("no package is named {} or provides what is wanted of it", alternative.name),
            })
            .collect();
        told.join(" and ")
    }

    /// A need whose options are all excluded by what is in the set already.
    fn no_option(&self, state: &State, id: PackageId, need: &Need<'_>, cause: Cause) -> ResolveError {
        let possible = need.options.iter().copied().filter(|option| self.table.broken(*option).is_none());
        for option in possible {
            if let Some(other) = self.excluded_by(state, option) {
                let mut state = state.clone();
                state.causes.insert(option, cause);
                return self.conflict(&state, option, other);
            }
        }
        let mut chain = self.chain(state, id);
        chain.push(format!("{} {} {}", self.describe(id), need.kind, need.clause));
        ResolveError::Unsatisfiable { chain, problem: self.missing(need) }
    }

    fn conflict(&self, state: &State, id: PackageId, other: PackageId) -> ResolveError {
        let (left, right) = (self.table.node(id), self.table.node(other));
        let (by, to, exclusion) = match left.exclusion_of(&right) {
            Some(exclusion) => (id, other, exclusion),
            None => (other, id, right.exclusion_of(&left).expect("the caller found one")),
        };
        let conflict = format!(
            "{} {} {}, and {} is needed too:",
            self.describe(by),
            exclusion.field,
            exclusion.target,
            self.describe(to)
        );
        ResolveError::Conflict { conflict, left: self.chain(state, id), right: self.chain(state, other) }
    }
}
