//! `.modinfo`: the strings that a module carries about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use bytes::Bytes;
use dyad_formats::tree::{Kind, Tree, base_name};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSection};
use rayon::prelude::*;

use crate::Error;
use crate::path::show;

/// A decompressed module larger than this is refused.
const MODULE_BYTES_MAX: u64 = 256 << 20;

/// One module file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModuleInfo {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) depends: Vec<String>,
    pub(crate) soft_pre: Vec<String>,
    pub(crate) soft_post: Vec<String>,
    pub(crate) aliases: Vec<String>,
    pub(crate) firmware: Vec<String>,
}

/// Every module of a kernel.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) kernel: String,
    /// By name, with underscores.
    pub(crate) modules: BTreeMap<String, ModuleInfo>,
    /// Names that are part of the kernel image itself.
    pub(crate) builtin: BTreeSet<String>,
}

/// The one kernel release that the tree holds.
pub(crate) fn kernel_release(tree: &Tree) -> Result<String, Error> {
    let releases: Vec<String> =
        tree.children(b"/usr/lib/modules").iter().map(|(name, _)| show(name)).collect();
    match releases.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::NoKernel),
        many => Err(Error::ManyKernels(many.join(", "))),
    }
}

/// `virtio-blk` and `virtio_blk` are one module.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

impl Catalogue {
    /// Reads every module below `/usr/lib/modules/RELEASE`, in parallel.
    pub(crate) fn read(tree: &Tree, kernel: &str) -> Result<Self, Error> {
        let base = format!("/usr/lib/modules/{kernel}");
        let files: Vec<(&[u8], &Bytes)> = tree
            .below(base.as_bytes())
            .filter_map(|(path, id)| match &tree.inode(id).kind {
                Kind::File(data) if stem(path).is_some() => Some((path, data)),
                _ => None,
            })
            .collect();
        let infos: Vec<ModuleInfo> = files
            .into_par_iter()
            .map(|(path, data)| read_module(path, data))
            .collect::<Result<_, Error>>()?;
        let mut modules = BTreeMap::new();
        for info in infos {
            let (name, path) = (info.name.clone(), info.path.clone());
            if let Some(old) = modules.insert(info.name.clone(), info) {
                return Err(Error::Module { path, what: format!("{name} is also at {}", old.path) });
            }
        }
        let builtin = match tree.get(format!("{base}/modules.builtin").as_bytes()).map(|i| &i.kind) {
            Some(Kind::File(data)) => show(data).lines().filter_map(|l| stem(l.as_bytes())).collect(),
            _ => BTreeSet::new(),
        };
        Ok(Catalogue { kernel: kernel.to_owned(), modules, builtin })
    }
}

/// `.../virtio-blk.ko.xz` -> `virtio_blk`; `None` if it is not a module.
fn stem(path: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(base_name(path)).ok()?;
    let name = name
        .strip_suffix(".xz")
        .or_else(|| name.strip_suffix(".zst"))
        .or_else(|| name.strip_suffix(".gz"))
        .unwrap_or(name);
    name.strip_suffix(".ko").map(canonical)
}

fn read_module(path: &[u8], data: &Bytes) -> Result<ModuleInfo, Error> {
    let bad = |what: String| Error::Module { path: show(path), what };
    let plain = plain(path, data).map_err(|e| bad(e.to_string()))?;
    let strings = modinfo(&plain).map_err(|e| bad(e.to_string()))?;
    let mut info = ModuleInfo {
        name: stem(path).unwrap_or_default(),
        path: show(path),
        bytes: data.len() as u64,
        ..ModuleInfo::default()
    };
    for string in strings.split(|&b| b == 0) {
        let string = String::from_utf8_lossy(string);
        let Some((key, value)) = string.split_once('=') else { continue };
        match key {
            "depends" => info.depends = value.split(',').filter(|d| !d.is_empty()).map(canonical).collect(),
            "softdep" => soft(value, &mut info),
            "alias" => info.aliases.push(value.to_owned()),
            "firmware" => info.firmware.push(value.to_owned()),
            _ => {}
        }
    }
    Ok(info)
}

/// `pre: a b post: c`
fn soft(value: &str, info: &mut ModuleInfo) {
    let mut post = false;
    for word in value.split_whitespace() {
        match word {
            "pre:" => post = false,
            "post:" => post = true,
            name if post => info.soft_post.push(canonical(name)),
            name => info.soft_pre.push(canonical(name)),
        }
    }
}

/// The module's ELF file; kernels after 6.1 compress them.
fn plain(path: &[u8], data: &Bytes) -> std::io::Result<Bytes> {
    let mut out = Vec::new();
    if path.ends_with(b".ko") {
        return Ok(data.clone());
    }
    if path.ends_with(b".xz") {
        liblzma::read::XzDecoder::new(&data[..]).take(MODULE_BYTES_MAX).read_to_end(&mut out)?;
    } else if path.ends_with(b".zst") {
        zstd::stream::read::Decoder::with_buffer(&data[..])?.take(MODULE_BYTES_MAX).read_to_end(&mut out)?;
    } else {
        flate2::read::GzDecoder::new(&data[..]).take(MODULE_BYTES_MAX).read_to_end(&mut out)?;
    }
    Ok(Bytes::from(out))
}

fn modinfo(elf: &[u8]) -> Result<Vec<u8>, object::Error> {
    type Elf = object::elf::FileHeader64<object::Endianness>;
    Elf::parse(elf)?;
    let file = ElfFile64::<object::Endianness>::parse(elf)?;
    match file.section_by_name(".modinfo") {
        Some(section) => Ok(section.data()?.to_vec()),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_soft_dependencies() {
        assert_eq!(stem(b"/usr/lib/modules/6/kernel/virtio-blk.ko.xz").as_deref(), Some("virtio_blk"));
        assert_eq!(stem(b"/usr/lib/modules/6/modules.order"), None);
        let mut info = ModuleInfo::default();
        soft("pre: crc32c a-b post: z", &mut info);
        assert_eq!(info.soft_pre, ["crc32c", "a_b"]);
        assert_eq!(info.soft_post, ["z"]);
    }
}
