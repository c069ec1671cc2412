//! `/etc/ld.so.cache` in glibc's format `glibc-ld.so.cache1.1`, as ldconfig writes it.
//!
//! Layout (little-endian): header of 48 bytes, entries of 24 bytes in descending order of the library name, strings.
//! Offsets count from the start of the file. Hardware capabilities are not used.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use dyad_formats::tree::{Kind, Tree};

use super::{SearchDir, elf, is_library_name, search_dirs};
use crate::Error;
use crate::lay::Layer;
use crate::lookup::resolve;
use crate::path::show;

const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// FLAG_ELF_LIBC6 and FLAG_X8664_LIB64.
const FLAGS: u32 = 0x0303;
/// cache_file_new_flags_endian_little.
const LITTLE_ENDIAN: u8 = 2;

/// One library: the name that programs ask for, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    path: String,
}

/// glibc's `_dl_cache_libcmp`: digits compare as numbers and stand after anything else.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while let Some(&x) = a.first() {
        let y = b.first().copied().unwrap_or(0);
        match (x.is_ascii_digit(), y.is_ascii_digit()) {
            (true, true) => {
                let (left, right) = (number(&mut a), number(&mut b));
                if left != right {
                    return left.cmp(&right);
                }
            }
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) if x != y => return (x as i8).cmp(&(y as i8)),
            (false, false) => (a, b) = (&a[1..], &b[1..]),
        }
    }
    if b.is_empty() { Ordering::Equal } else { Ordering::Less }
}

fn number(text: &mut &[u8]) -> i32 {
    let mut value = 0i32;
    while let Some(digit) = text.first().filter(|d| d.is_ascii_digit()) {
        value = value.wrapping_mul(10).wrapping_add(i32::from(digit - b'0'));
        *text = &text[1..];
    }
    value
}

/// Makes the links from a library's name to its file that packages leave to ldconfig.
pub(crate) fn links(layer: &mut Layer<'_>) -> Result<(), Error> {
    for dir in search_dirs(layer.tree) {
        for (name, file) in libraries(layer.tree, &dir) {
            let link = [&dir.path[..], b"/", name.as_bytes()].concat();
            if layer.tree.get(&link).is_none() {
                let origin: Arc<str> = Arc::from("derived library link");
                layer.put(&link, Kind::Symlink(file.into_bytes()), 0o777, (0, 0), origin)?;
            }
        }
    }
    Ok(())
}

/// Makes the cache of the libraries that are in the tree.
pub(crate) fn write(layer: &mut Layer<'_>) -> Result<(), Error> {
    let mut entries = Vec::new();
    for dir in search_dirs(layer.tree) {
        let names = libraries(layer.tree, &dir).into_keys();
        entries.extend(names.map(|name| Entry { path: format!("{}/{name}", dir.text), name }));
    }
    let kind = Kind::File(encode(entries).into());
    layer.put(b"/etc/ld.so.cache", kind, 0o644, (0, 0), Arc::from("derived library cache"))
}

/// The libraries of one directory by name, each with the file that carries it (the highest version, if several do).
fn libraries(tree: &Tree, dir: &SearchDir) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for (name, _) in tree.children(&dir.path).into_iter().filter(|(name, _)| is_library_name(name)) {
        let path = [&dir.path[..], b"/", name].concat();
        let Some(real) = resolve(tree, &path) else { continue };
        let Some(Kind::File(data)) = tree.get(&real).map(|i| &i.kind) else { continue };
        let Some(dynamic) = elf::read(data) else { continue };
        let file = show(name);
        let library = dynamic.soname.unwrap_or_else(|| file.clone());
        let slot = found.entry(library).or_insert_with(|| file.clone());
        if compare(&file, slot) == Ordering::Greater {
            *slot = file;
        }
    }
    found
}

fn encode(mut entries: Vec<Entry>) -> Vec<u8> {
    // Equal names stay in the order of the search directories: the loader takes the first.
    entries.sort_by(|a, b| compare(&b.name, &a.name));
    let strings_at = HEADER + ENTRY * entries.len();
    let mut strings: Vec<u8> = Vec::new();
    let mut table: Vec<u8> = Vec::new();
    for entry in &entries {
        let path_at = strings_at + strings.len();
        strings.extend(entry.path.bytes().chain([0]));
        // The name is the path's tail.
        let name_at = path_at + entry.path.len() - entry.name.len();
        table.extend(FLAGS.to_le_bytes());
        table.extend((name_at as u32).to_le_bytes());
        table.extend((path_at as u32).to_le_bytes());
        table.extend([0; 12]); // OS version, capabilities
    }
    let mut out = MAGIC.to_vec();
    out.extend((entries.len() as u32).to_le_bytes());
    out.extend((strings.len() as u32).to_le_bytes());
    out.extend([LITTLE_ENDIAN, 0, 0, 0]);
    out.resize(HEADER, 0); // no extensions
    out.extend(table);
    out.extend(strings);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_as_numbers() {
        assert_eq!(compare("libc.so.10", "libc.so.9"), Ordering::Greater);
        assert_eq!(compare("liba.so", "liba1.so"), Ordering::Less);
        assert_eq!(compare("liba.so.1", "liba.so.1"), Ordering::Equal);
        assert_eq!(compare("liba", "liba.so"), Ordering::Less);
        assert_eq!(compare("liba.so", "liba"), Ordering::Greater);
    }

    #[test]
    fn layout() {
        let entry = |name: &str| Entry { name: name.into(), path: format!("/lib/{name}") };
        let out = encode(vec![entry("liba.so.1"), entry("libb.so.2")]);
        assert_eq!(&out[..20], MAGIC);
        assert_eq!(out.len(), HEADER + 2 * ENTRY + 2 * 15);
        let name_at = u32::from_le_bytes(out[HEADER + 4..HEADER + 8].try_into().unwrap()) as usize;
        assert_eq!(&out[name_at..name_at + 10], b"libb.so.2\0");
    }
}
