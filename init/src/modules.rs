//! Kernel modules: load by name or alias with what they need, and coldplug of all devices by modalias.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dyad_spec::compiled::{ModuleIndex, TableError};
use rustix::io::Errno;

use crate::log::{self, warning};
use crate::modalias;

/// Where the index lies, in the initrd and in the root.
pub(crate) const INDEX: &str = "/usr/lib/dyad/modules.bin";
/// A device tree that is still growing after so many passes grows for another reason.
const PASSES_MAX: usize = 12;
/// Longest modalias of a device, bytes.
const MODALIAS_BYTES_MAX: usize = 4096;

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    /// Not readable.
    #[error("cannot read {INDEX}: {0}")]
    Read(#[from] io::Error),
    /// Not an index.
    #[error("{INDEX}: {0}")]
    Decode(#[from] TableError),
}

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Not in the image.
    #[error("module {0:?} is not in this image")]
    Unknown(String),
    /// Its file cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The `.ko` file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused it.
    #[error("cannot load module {name}: {source}")]
    Load {
        /// Module name.
        name: String,
        /// What the kernel said; its own log may say more.
        source: Errno,
    },
}

/// The index and what was loaded through it.
pub(crate) struct Modules {
    index: ModuleIndex,
    /// (literal prefix, module) of every alias, sorted: a modalias is tried against the aliases of its own bus only.
    aliases: Vec<(String, u16)>,
    loaded: Vec<bool>,
    refused: HashSet<u16>,
    /// `name.parameter=value` from the kernel's command line.
    parameters: Vec<(String, String)>,
}

impl Modules {
    /// Reads the index and the command line.
    pub(crate) fn open() -> Result<Self, IndexError> {
        let index = ModuleIndex::decode(&std::fs::read(INDEX)?)?;
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Ok(Self::new(index, &cmdline))
    }

    fn new(index: ModuleIndex, cmdline: &str) -> Self {
        let mut aliases: Vec<(String, u16)> = Vec::new();
        for (number, module) in index.modules.iter().enumerate() {
            aliases.extend(module.aliases.iter().map(|alias| (alias.clone(), number as u16)));
        }
        aliases.sort_unstable_by(|a, b| (bus(&a.0), a).cmp(&(bus(&b.0), b)));
        let loaded = vec![false; index.modules.len()];
        Self { index, aliases, loaded, refused: HashSet::new(), parameters: parameters(cmdline) }
    }

    /// The names that the initrd loads first.
    pub(crate) fn initrd_list(&self) -> Vec<String> {
        self.index.initrd.clone()
    }

    fn find(&self, name: &str) -> Option<u16> {
        let name = name.replace('-', "_");
        self.index.modules.binary_search_by(|m| m.name.as_str().cmp(&name)).ok().map(|n| n as u16)
    }

    /// Loads `name param=value ...` with all it needs.
    pub(crate) fn load_line(&mut self, line: &str) -> Result<(), LoadError> {
        let (name, options) = line.split_once(' ').unwrap_or((line, ""));
        let number = self.find(name).ok_or_else(|| LoadError::Unknown(name.to_owned()))?;
        self.load(number, options)
    }

    /// Loads every module that has this name or an alias for it: what the kernel asks a modprobe program for.
    pub(crate) fn load_for(&mut self, wanted: &str) -> Result<(), LoadError> {
        if let Some(number) = self.find(wanted) {
            return self.load(number, "");
        }
        let matching = self.matching(wanted);
        if matching.is_empty() {
            return Err(LoadError::Unknown(wanted.to_owned()));
        }
        matching.into_iter().try_for_each(|number| self.load(number, ""))
    }

    fn load(&mut self, number: u16, options: &str) -> Result<(), LoadError> {
        let needs = self.index.modules[usize::from(number)].needs.clone();
        for need in needs {
            self.load_one(need, "")?;
        }
        self.load_one(number, options)
    }

    fn load_one(&mut self, number: u16, options: &str) -> Result<(), LoadError> {
        let at = usize::from(number);
        if self.loaded[at] || self.refused.contains(&number) {
            return Ok(());
        }
        let module = &self.index.modules[at];
        if Path::new("/sys/module").join(&module.name).join("initstate").exists() {
            self.loaded[at] = true;
            return Ok(());
        }
        let mut all = options.to_owned();
        for (_, value) in self.parameters.iter().filter(|(name, _)| *name == module.name) {
            all.push(' ');
            all.push_str(value);
        }
        let options = CString::new(all).unwrap_or_default();
        let file = File::open(&module.path)
            .map_err(|source| LoadError::Open { path: module.path.clone(), source })?;
        match rustix::system::finit_module(&file, &options, 0) {
            Ok(()) | Err(Errno::EXIST) => {
                self.loaded[at] = true;
                Ok(())
            }
            Err(source) => {
                self.refused.insert(number);
                Err(LoadError::Load { name: module.name.clone(), source })
            }
        }
    }

    fn matching(&self, alias: &str) -> Vec<u16> {
        let start = self.aliases.partition_point(|(pattern, _)| bus(pattern) < bus(alias));
        let mut found: Vec<u16> = self.aliases[start..]
            .iter()
            .take_while(|(pattern, _)| bus(pattern) == bus(alias))
            .chain(self.aliases.iter().take_while(|(pattern, _)| bus(pattern).is_empty()))
            .filter(|(pattern, _)| {
                alias.starts_with(modalias::literal_prefix(pattern))
                    && modalias::matches(pattern.as_bytes(), alias.as_bytes())
            })
            .map(|(_, number)| *number)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Loads the drivers of all devices, in passes, because a bus driver brings new devices up; gives the number of
    /// modules loaded. A module that refuses is told once and does not stop the others.
    pub(crate) fn coldplug(&mut self) -> usize {
        let mut seen: HashSet<String> = HashSet::new();
        let before = self.loaded.iter().filter(|l| **l).count();
        for _ in 0..PASSES_MAX {
            let mut aliases = HashSet::new();
            collect(Path::new("/sys/devices"), &mut aliases);
            let mut quiet = true;
            for alias in aliases {
                if !seen.insert(alias.clone()) {
                    continue;
                }
                for number in self.matching(&alias) {
                    if self.loaded[usize::from(number)] || self.refused.contains(&number) {
                        continue;
                    }
                    quiet = false;
                    if let Err(error) = self.load(number, "") {
                        // Drivers refuse what they do not recognise after all: no news on real machines.
                        log_refusal(&error);
                    }
                }
            }
            if quiet {
                break;
            }
        }
        self.loaded.iter().filter(|l| **l).count() - before
    }
}

fn log_refusal(error: &LoadError) {
    let level = match error {
        LoadError::Load { source: Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP, .. } => log::Level::Info,
        _ => log::Level::Warning,
    };
    log::write(level, format_args!("{error}"));
}

/// Loads each line; a module that cannot be loaded is told and does not stop the others.
pub(crate) fn load_list(modules: &mut Modules, lines: &[String]) {
    for line in lines {
        if let Err(error) = modules.load_line(line) {
            warning!("{error}");
        }
    }
}

/// The bus of a modalias or pattern: what stands before the first `:`; empty where a wildcard stands there, or none.
fn bus(alias: &str) -> &str {
    match alias.find([':', '*', '?', '[']) {
        Some(at) if alias.as_bytes()[at] == b':' => &alias[..at],
        _ => "",
    }
}

/// `name.parameter=value` words of a command line, with the name's dashes made underscores.
fn parameters(cmdline: &str) -> Vec<(String, String)> {
    cmdline
        .split_ascii_whitespace()
        .filter(|word| !word.starts_with("dyad."))
        .filter_map(|word| {
            let (name, rest) = word.split_once('.')?;
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            (plain && rest.contains('=')).then(|| (name.replace('-', "_"), rest.to_owned()))
        })
        .collect()
}

/// Every `modalias` file below a directory; links are not followed, so the walk ends.
fn collect(dir: &Path, aliases: &mut HashSet<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&entry.path(), aliases);
        } else if entry.file_name() == "modalias" {
            let mut text = String::new();
            let read = File::open(entry.path())
                .and_then(|file| file.take(MODALIAS_BYTES_MAX as u64).read_to_string(&mut text));
            if read.is_ok() && !text.trim().is_empty() {
                aliases.insert(text.trim().to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_spec::compiled::Module;

    fn module(name: &str, aliases: &[&str]) -> Module {
        Module {
            name: name.into(),
            path: format!("/m/{name}.ko"),
            needs: vec![],
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    fn modules() -> Modules {
        let index = ModuleIndex {
            kernel: "6.1".into(),
            modules: vec![
                module("button", &["acpi*:LNXPWRBN:*", "acpi*:PNP0C0C:*"]),
                module("ext4", &["fs-ext4"]),
                module("virtio_blk", &["virtio:d00000002v*"]),
                module("virtio_net", &["virtio:d00000001v*"]),
            ],
            initrd: vec![],
        };
        Modules::new(index, "console=ttyS0 dyad.root=00 drbd.usermode_helper=/x virtio-blk.queues=1 quiet")
    }

    #[test]
    fn aliases_are_found_by_bus_and_without_one() {
        let modules = modules();
        assert_eq!(modules.matching("virtio:d00000002v00001AF4"), [2]);
        assert_eq!(modules.matching("virtio:d00000001v00001AF4"), [3]);
        assert_eq!(modules.matching("acpi:LNXPWRBN:"), [0]);
        assert_eq!(modules.matching("fs-ext4"), [1]);
        assert!(modules.matching("fs-ext3").is_empty());
    }

    #[test]
    fn names_take_dashes_and_parameters_come_from_the_command_line() {
        let modules = modules();
        assert_eq!(modules.find("virtio-net"), Some(3));
        assert_eq!(
            modules.parameters,
            [("drbd".into(), "usermode_helper=/x".into()), ("virtio_blk".into(), "queues=1".into())]
        );
    }
}
