//! Which modules an image needs: classes and names, closed over dependencies, in load order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dyad_spec::compiled::{Module, ModuleIndex};

use super::classes::CLASSES;
use super::info::{Catalogue, ModuleInfo, canonical};
use crate::Error;

/// A closed set of modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Names, with everything that they need.
    pub(crate) names: BTreeSet<String>,
    /// Modules that were named one by one (not by class), in the order written, without built-in ones.
    pub(crate) named: Vec<String>,
}

impl Catalogue {
    /// Closes selectors (`@class` or a module name) over hard and soft dependencies.
    pub(crate) fn select(&self, selectors: &[String]) -> Result<Selection, Error> {
        let mut selection = Selection::default();
        let mut queue: Vec<String> = Vec::new();
        for selector in selectors {
            match selector.strip_prefix('@') {
                Some(class) => queue.extend(self.class(class)?),
                None => {
                    let name = canonical(selector);
                    if self.modules.contains_key(&name) {
                        if !selection.named.contains(&name) {
                            selection.named.push(name.clone());
                        }
                        queue.push(name);
                    } else if !self.builtin.contains(&name) {
                        return Err(self.unknown(&name));
                    }
                }
            }
        }
        let providers = self.providers();
        while let Some(name) = queue.pop() {
            if !selection.names.insert(name.clone()) {
                continue;
            }
            let info = &self.modules[&name];
            queue.extend(self.hard(info)?.map(str::to_owned));
            for soft in info.soft_pre.iter().chain(&info.soft_post) {
                queue.extend(providers.get(soft.as_str()).into_iter().flatten().map(|&n| n.to_owned()));
            }
        }
        Ok(selection)
    }

    fn class(&self, class: &str) -> Result<Vec<String>, Error> {
        let (_, _, entries) = CLASSES.iter().find(|(name, _, _)| *name == class).ok_or_else(|| {
            let known: Vec<String> = CLASSES.iter().map(|(name, _, _)| format!("@{name}")).collect();
            Error::NoClass { class: class.to_owned(), known: known.join(" ") }
        })?;
        let mut names = Vec::new();
        for entry in *entries {
            let name = canonical(entry);
            if self.modules.contains_key(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Hard dependencies that are files; each must exist or be built in.
    fn hard<'a>(&'a self, info: &'a ModuleInfo) -> Result<impl Iterator<Item = &'a str>, Error> {
        for dep in &info.depends {
            if !self.modules.contains_key(dep) && !self.builtin.contains(dep) {
                let what = format!("needs module {dep}, which the kernel package does not have");
                return Err(Error::Module { path: info.path.clone(), what });
            }
        }
        Ok(info.depends.iter().map(String::as_str).filter(|d| self.modules.contains_key(*d)))
    }

    /// What a soft dependency can name: a module, or an alias without wildcards (`crc32c` means all its providers).
    fn providers(&self) -> HashMap<&str, Vec<&str>> {
        let mut providers: HashMap<&str, Vec<&str>> = HashMap::new();
        for info in self.modules.values() {
            providers.entry(&info.name).or_default().push(&info.name);
            for alias in info.aliases.iter().filter(|a| !a.contains(['*', '?', '[', ':'])) {
                if *alias != info.name {
                    providers.entry(alias).or_default().push(&info.name);
                }
            }
        }
        providers
    }

    /// What the initrd loads first thing: its own needs, then modules named one by one, in the order written.
    pub(crate) fn boot_order(&self, initrd: &Selection) -> Vec<String> {
        let own = ["dm_verity", "squashfs", "loop"].map(str::to_owned).into_iter();
        let mut order = Vec::new();
        for name in own.chain(initrd.named.iter().cloned()) {
            if initrd.names.contains(&name) && !order.contains(&name) {
                order.push(name);
            }
        }
        order
    }

    /// Firmware files that the selected modules name, relative to the firmware directory.
    pub(crate) fn firmware(&self, selection: &Selection) -> BTreeSet<String> {
        selection.names.iter().flat_map(|name| self.modules[name].firmware.iter().cloned()).collect()
    }

    fn unknown(&self, name: &str) -> Error {
        let mut scored: Vec<(usize, &String)> =
            self.modules.keys().chain(&self.builtin).map(|known| (distance(name, known), known)).collect();
        scored.sort_unstable();
        let near: Vec<&str> = scored.iter().take(3).map(|(_, known)| known.as_str()).collect();
        Error::NoModule { name: name.to_owned(), kernel: self.kernel.clone(), near: near.join(", ") }
    }

    /// The index of a selection: sorted by name, each with everything that must be loaded before it, in order.
    pub(crate) fn index(&self, selection: &Selection, initrd: Vec<String>) -> Result<ModuleIndex, Error> {
        let numbers: BTreeMap<&str, u16> =
            selection.names.iter().enumerate().map(|(i, name)| (name.as_str(), i as u16)).collect();
        if selection.names.len() > usize::from(u16::MAX) {
            return Err(Error::Module {
                path: "module index".into(),
                what: "more than 65535 modules".into(),
            });
        }
        let providers = self.providers();
        let mut modules = Vec::with_capacity(numbers.len());
        for name in &selection.names {
            let info = &self.modules[name];
            let mut order = Vec::new();
            self.before(name, &numbers, &providers, &mut BTreeSet::new(), &mut order);
            order.pop(); // the module itself comes last
            modules.push(Module {
                name: name.clone(),
                path: info.path.clone(),
                needs: order.iter().map(|n| numbers[n]).collect(),
                aliases: info.aliases.clone(),
            });
        }
        Ok(ModuleIndex { kernel: self.kernel.clone(), modules, initrd })
    }

    /// Depth first: dependencies before dependents. Soft dependencies may form circles; the first visit breaks them.
    fn before<'a>(
        &'a self,
        name: &'a str,
        selected: &BTreeMap<&'a str, u16>,
        providers: &HashMap<&'a str, Vec<&'a str>>,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) {
        if !selected.contains_key(name) || !seen.insert(name) {
            return;
        }
        let info = &self.modules[name];
        for soft in &info.soft_pre {
            for provider in providers.get(soft.as_str()).into_iter().flatten() {
                self.before(provider, selected, providers, seen, order);
            }
        }
        for dep in &info.depends {
            self.before(dep, selected, providers, seen, order);
        }
        order.push(name);
    }
}

/// Edit distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(ca != cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, hard dependencies, soft dependencies, aliases.
    type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str]);

    fn catalogue(list: &[Row<'_>]) -> Catalogue {
        let strings = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let modules = list
            .iter()
            .map(|(name, depends, soft_pre, aliases)| {
                let info = ModuleInfo {
                    name: (*name).to_owned(),
                    path: format!("/usr/lib/modules/6/{name}.ko"),
                    depends: strings(depends),
                    soft_pre: strings(soft_pre),
                    aliases: strings(aliases),
                    ..ModuleInfo::default()
                };
                ((*name).to_owned(), info)
            })
            .collect();
        Catalogue { kernel: "6".into(), modules, builtin: BTreeSet::from(["crypto".to_owned()]) }
    }

    fn names(index: &ModuleIndex, module: &str) -> Vec<String> {
        let found = index.modules.iter().find(|m| m.name == module).unwrap();
        found.needs.iter().map(|&i| index.modules[usize::from(i)].name.clone()).collect()
    }

    #[test]
    fn closure_and_order() {
        let c = catalogue(&[
            ("libcrc32c", &["crypto"], &["crc32c"], &[]),
            ("crc32c_generic", &["crypto"], &[], &["crc32c", "crypto-crc32c"]),
            ("crc32c_intel", &[], &[], &["crc32c"]),
            ("drbd", &["lru_cache", "libcrc32c"], &[], &["block-major-147-*"]),
            ("lru_cache", &[], &["drbd"], &[]),
            ("other", &[], &[], &[]),
        ]);
        let selection = c.select(&["drbd".into(), "crypto".into()]).unwrap();
        assert!(!selection.names.contains("other"));
        assert_eq!(selection.named, ["drbd"]);
        let index = c.index(&selection, vec![]).unwrap();
        assert_eq!(names(&index, "drbd"), ["lru_cache", "crc32c_generic", "crc32c_intel", "libcrc32c"]);
        assert_eq!(names(&index, "libcrc32c"), ["crc32c_generic", "crc32c_intel"]);
    }

    #[test]
    fn unknown_names_are_refused_with_neighbours() {
        let c = catalogue(&[("virtio_blk", &[], &[], &[]), ("virtio_net", &[], &[], &[])]);
        let error = c.select(&["virtio-blkk".into()]).unwrap_err().to_string();
        assert!(error.contains("virtio_blkk") && error.contains("virtio_blk,"), "{error}");
        let error = c.select(&["@nonsense".into()]).unwrap_err().to_string();
        assert!(error.contains("@virtio"), "{error}");
        let c = catalogue(&[("a", &["gone"], &[], &[])]);
        assert!(c.select(&["a".into()]).unwrap_err().to_string().contains("gone"));
    }
}
