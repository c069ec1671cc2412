//! Archive -> tree: ustar and PAX, what [`super::write`] and every current tar write.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{BLOCK, Error, XATTR_KEY};
use crate::tree::{Inode, Kind, Meta, Tree};

/// PAX records of one member; a hostile archive cannot make them larger.
const PAX_BYTES_MAX: usize = 1 << 20;

/// What PAX records say about the member behind them.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads an uncompressed archive into a tree; file contents share its memory. Directories must come before what is in
/// them, as in every archive of a whole tree.
pub fn read(archive: &Bytes, origin: &str) -> Result<Tree, Error> {
    let origin: Arc<str> = Arc::from(origin);
    let mut tree = Tree::new(0);
    let mut pax = Pax::default();
    let mut at = 0;
    loop {
        let bad = |what| Error::Malformed { at, what };
        let header =
            archive.get(at..at + BLOCK).ok_or(bad("the archive ends without its final zero blocks"))?;
        if header.iter().all(|&b| b == 0) {
            return Ok(tree);
        }
        check_sum(header).ok_or(bad("a header with a wrong checksum"))?;
        let number = |range| octal(&header[range]).ok_or(bad("a header field that is not octal"));
        let size = match pax.size {
            Some(size) => size,
            None => number(124..136)?,
        };
        let start = at + BLOCK;
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        let end =
            end.filter(|end| *end <= archive.len()).ok_or(bad("content that ends behind the archive"))?;
        match header[156] {
            b'x' if end - start > PAX_BYTES_MAX => return Err(bad("more than 1 MiB of PAX records")),
            b'x' => pax = parse_pax(&archive[start..end]).ok_or(bad("a PAX record that is not one"))?,
            b'g' => {}
            kind => {
                let member = Member { header, kind, content: archive.slice(start..end) };
                member.place(&mut tree, std::mem::take(&mut pax), at, &origin)?;
            }
        }
        at = end.next_multiple_of(BLOCK);
    }
}

struct Member<'a> {
    header: &'a [u8],
    kind: u8,
    content: Bytes,
}

impl Member<'_> {
    fn place(self, tree: &mut Tree, pax: Pax, at: usize, origin: &Arc<str>) -> Result<(), Error> {
        let bad = |what| Error::Malformed { at, what };
        let number = |range| octal(&self.header[range]).ok_or(bad("a header field that is not octal"));
        let word = |value: u64| u32::try_from(value).map_err(|_| bad("a number of more than 32 bits"));
        let path = absolute(&pax.path.unwrap_or_else(|| ustar_name(self.header)));
        let link = pax.link.unwrap_or_else(|| text(&self.header[157..257]).to_vec());
        let tree_error = |source| Error::Tree { at, source };
        if self.kind == b'1' {
            tree.hard_link(&path, &absolute(&link)).map_err(tree_error)?;
            return Ok(());
        }
        let device = || Ok::<_, Error>((word(number(329..337)?)?, word(number(337..345)?)?));
        let kind = match self.kind {
            b'0' | 0 => Kind::File(self.content.clone()),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::Char(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            _ => return Err(bad("a member of unknown type")),
        };
        let or_field = |value: Option<u64>, range| value.map_or_else(|| number(range), Ok);
        let meta = Meta {
            mode: (number(100..108)? & 0o7777) as u16,
            uid: word(or_field(pax.uid, 108..116)?)?,
            gid: word(or_field(pax.gid, 116..124)?)?,
            mtime: word(number(136..148)?)?,
            xattrs: pax.xattrs,
        };
        tree.insert(&path, Inode { meta, kind, origin: origin.clone() }).map_err(tree_error)?;
        Ok(())
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(&[])
}

fn ustar_name(header: &[u8]) -> Vec<u8> {
    let (prefix, name) = (text(&header[345..500]), text(&header[..100]));
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// `./a/b/` -> `/a/b`; the tree judges what is left.
fn absolute(name: &[u8]) -> Vec<u8> {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let name = name.strip_prefix(b"./").unwrap_or(name);
    if name.is_empty() || name == b"." { b"/".to_vec() } else { [b"/", name].concat() }
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    let digits =
        std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|c| (b'0'..=b'7').contains(&c)))?;
    u64::from_str_radix(digits, 8).ok()
}

fn check_sum(header: &[u8]) -> Option<()> {
    let outside = header.iter().enumerate().filter(|(i, _)| !(148..156).contains(i));
    let sum: u64 = outside.map(|(_, &b)| u64::from(b)).sum::<u64>() + 8 * u64::from(b' ');
    (octal(&header[148..156])? == sum).then_some(())
}

/// Records of the form `LENGTH KEY=VALUE\n`.
fn parse_pax(mut records: &[u8]) -> Option<Pax> {
    let mut pax = Pax::default();
    while !records.is_empty() {
        let space = records.iter().position(|&b| b == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
        records = &records[length..];
        let equals = record.iter().position(|&b| b == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.link = Some(value.to_vec()),
            b"uid" => pax.uid = Some(number()?),
            b"gid" => pax.gid = Some(number()?),
            b"size" => pax.size = Some(number()?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_KEY) {
                    pax.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
    }
    Some(pax)
}
