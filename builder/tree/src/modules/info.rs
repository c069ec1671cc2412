//! `.modinfo`: the strings that a module carries about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use bytes::Bytes;
use dyad_formats::tree::base_name;
use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSection};

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

/// Where all modules are.
const MODULES: &[u8] = b"/usr/lib/modules/";
/// List of what is part of the kernel image, in the directory of a release.
const BUILTIN: &[u8] = b"modules.builtin";

/// The release that a path below the modules' directory belongs to.
fn release_of(path: &[u8]) -> Option<&[u8]> {
    path.strip_prefix(MODULES)?.split(|&b| b == b'/').next().filter(|release| !release.is_empty())
}

/// The one kernel release that these paths name.
pub(crate) fn kernel_release<'a>(paths: impl Iterator<Item = &'a [u8]>) -> Result<String, Error> {
    let releases: BTreeSet<&[u8]> = paths.filter_map(release_of).collect();
    let releases: Vec<String> = releases.into_iter().map(show).collect();
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

/// What module selection reads of a file: `.modinfo` of a module, the text of the list of built-in ones; `None` for any
/// other path.
pub(crate) fn facts(path: &[u8], data: &Bytes) -> Result<Option<Vec<u8>>, Error> {
    if release_of(path).is_none() {
        return Ok(None);
    }
    if base_name(path) == BUILTIN {
        return Ok(Some(data.to_vec()));
    }
    if stem(path).is_none() {
        return Ok(None);
    }
    let bad = |what: String| Error::Module { path: show(path), what };
    let plain = plain(path, data).map_err(|e| bad(e.to_string()))?;
    modinfo(&plain).map(Some).map_err(|e| bad(e.to_string()))
}

/// Whether a path is a module's.
pub(crate) fn is_module(path: &[u8]) -> bool {
    release_of(path).is_some() && stem(path).is_some()
}

impl Catalogue {
    /// All modules of a kernel release: path, size and [`facts`] of each.
    pub(crate) fn read<'a>(
        kernel: &str,
        files: impl Iterator<Item = (&'a [u8], u64, &'a [u8])>,
    ) -> Result<Self, Error> {
        let mut catalogue = Catalogue { kernel: kernel.to_owned(), ..Catalogue::default() };
        for (path, bytes, facts) in files.filter(|(path, ..)| release_of(path) == Some(kernel.as_bytes())) {
            if stem(path).is_none() {
                catalogue.builtin.extend(show(facts).lines().filter_map(|l| stem(l.as_bytes())));
                continue;
            }
            let info = described(path, bytes, facts);
            let (name, path) = (info.name.clone(), info.path.clone());
            if let Some(old) =
                catalogue.modules.insert(info.name.clone(), info).filter(|old| old.path != path)
            {
                return Err(Error::Module { path, what: format!("{name} is also at {}", old.path) });
            }
        }
        Ok(catalogue)
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

/// For fuzzers: the bytes of a module through all that reads it, as an ELF file and as the strings in one.
pub fn read_module(data: &Bytes) {
    const PATH: &[u8] = b"/usr/lib/modules/6.1.0/kernel/a-b.ko";
    let strings = facts(PATH, data).ok().flatten().unwrap_or_else(|| data.to_vec());
    let info = described(PATH, data.len() as u64, &strings);
    assert_eq!(info.name, "a_b");
    let needed = info.depends.iter().chain(&info.soft_pre).chain(&info.soft_post);
    assert!(needed.clone().all(|name| !name.contains('-')), "modules have one name each");
}

fn described(path: &[u8], bytes: u64, strings: &[u8]) -> ModuleInfo {
    let mut info =
        ModuleInfo { name: stem(path).unwrap_or_default(), path: show(path), bytes, ..ModuleInfo::default() };
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
    info
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
