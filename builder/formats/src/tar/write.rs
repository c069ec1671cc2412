//! Tree -> archive.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use super::{BLOCK, Error, OCTAL_8_MAX, XATTR_KEY};
use crate::tree::{Inode, InodeId, Kind, Tree};

/// GNU tar pads archives to this.
const RECORD: u64 = 20 * BLOCK as u64;
const NAME_BYTES: usize = 100;
/// Largest number in an octal field of 12 bytes.
const OCTAL_12_MAX: u64 = 0o77_777_777_777;

/// Writes a tree in path order. Names start with `./`; the later names of an inode are hard links to its first.
/// Equal trees give equal bytes.
pub fn write(tree: &Tree, out: &mut impl Write) -> Result<(), Error> {
    let mut writer = Writer { out, written: 0 };
    let mut first: HashMap<InodeId, &[u8]> = HashMap::new();
    for (path, id, inode) in tree.iter() {
        let original = *first.entry(id).or_insert(path);
        writer.member(path, inode, (original != path).then_some(original))?;
    }
    writer.put(&[0; 2 * BLOCK])?;
    let pad = writer.written.next_multiple_of(RECORD) - writer.written;
    writer.put(&vec![0; pad as usize])?;
    Ok(())
}

struct Writer<'a, W> {
    out: &'a mut W,
    written: u64,
}

/// A header's fields.
struct Header<'a> {
    name: &'a [u8],
    link: &'a [u8],
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: u32,
    device: Option<(u32, u32)>,
}

/// `/a/b` -> `./a/b`, with a slash behind directories.
fn member_name(path: &[u8], dir: bool) -> Vec<u8> {
    let mut name = b".".to_vec();
    name.extend(path);
    if dir && name.last() != Some(&b'/') {
        name.push(b'/');
    }
    name
}

impl<W: Write> Writer<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn member(&mut self, path: &[u8], inode: &Inode, original: Option<&[u8]>) -> Result<(), Error> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let name = member_name(path, matches!(inode.kind, Kind::Dir));
        let link_name;
        let mut content: &[u8] = b"";
        let (mut link, mut device): (&[u8], _) = (b"", None);
        let mut kind = match &inode.kind {
            Kind::Dir => b'5',
            Kind::File(_) => b'0',
            Kind::Symlink(target) => {
                link = target;
                b'2'
            }
            Kind::Char(..) => b'3',
            Kind::Block(..) => b'4',
            Kind::Fifo => b'6',
            Kind::Socket => return Err(Error::Socket(shown())),
        };
        if let Kind::Char(major, minor) | Kind::Block(major, minor) = inode.kind {
            if let Some(&number) = [major, minor].iter().find(|n| u64::from(**n) > OCTAL_8_MAX) {
                return Err(Error::Device { path: shown(), number });
            }
            device = Some((major, minor));
        }
        match (original, &inode.kind) {
            (Some(original), _) => {
                link_name = member_name(original, false);
                (kind, link) = (b'1', &link_name);
            }
            (None, Kind::File(data)) => content = data,
            (None, _) => {}
        }
        let meta = &inode.meta;
        let size = content.len() as u64;
        let header = Header {
            name: &name,
            link,
            kind,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            size,
            mtime: meta.mtime,
            device,
        };
        self.extended(&header, original.is_none().then_some(&meta.xattrs))?;
        self.put(&header.encode())?;
        self.content(content)?;
        Ok(())
    }

    /// The PAX member in front of a member that needs one.
    fn extended(
        &mut self,
        header: &Header,
        xattrs: Option<&BTreeMap<Vec<u8>, Vec<u8>>>,
    ) -> Result<(), Error> {
        let mut pax = header.pax_records();
        for (name, value) in xattrs.into_iter().flatten() {
            pax_record(&mut pax, &[XATTR_KEY, name.as_slice()].concat(), value);
        }
        if pax.is_empty() {
            return Ok(());
        }
        let own = Header {
            name: b"././@PaxHeader",
            link: b"",
            kind: b'x',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: pax.len() as u64,
            mtime: header.mtime,
            device: None,
        };
        self.put(&own.encode())?;
        Ok(self.content(&pax)?)
    }

    fn content(&mut self, content: &[u8]) -> io::Result<()> {
        self.put(content)?;
        self.put(&[0; BLOCK][..content.len().next_multiple_of(BLOCK) - content.len()])
    }
}

impl Header<'_> {
    /// Records for what the fixed fields cannot hold.
    fn pax_records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.name.len() > NAME_BYTES {
            pax_record(&mut out, b"path", self.name);
        }
        if self.link.len() > NAME_BYTES {
            pax_record(&mut out, b"linkpath", self.link);
        }
        for (key, value, max) in [
            (&b"uid"[..], u64::from(self.uid), OCTAL_8_MAX),
            (b"gid", u64::from(self.gid), OCTAL_8_MAX),
            (b"size", self.size, OCTAL_12_MAX),
        ] {
            if value > max {
                pax_record(&mut out, key, value.to_string().as_bytes());
            }
        }
        out
    }

    fn encode(&self) -> [u8; BLOCK] {
        let mut b = [0u8; BLOCK];
        let cut = |s: &[u8]| s[..s.len().min(NAME_BYTES)].to_vec();
        let (name, link) = (cut(self.name), cut(self.link));
        b[..name.len()].copy_from_slice(&name);
        octal(&mut b[100..108], u64::from(self.mode));
        octal(&mut b[108..116], u64::from(self.uid));
        octal(&mut b[116..124], u64::from(self.gid));
        octal(&mut b[124..136], self.size);
        octal(&mut b[136..148], u64::from(self.mtime));
        b[148..156].fill(b' ');
        b[156] = self.kind;
        b[157..157 + link.len()].copy_from_slice(&link);
        b[257..265].copy_from_slice(b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            octal(&mut b[329..337], u64::from(major));
            octal(&mut b[337..345], u64::from(minor));
        }
        let sum: u64 = b.iter().map(|&c| u64::from(c)).sum();
        octal(&mut b[148..155], sum);
        b
    }
}

/// Zero-padded octal with a NUL behind; zero when it does not fit, as a PAX record has the number then.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let fits = value >> (3 * digits) == 0;
    let text = format!("{:0digits$o}", if fits { value } else { 0 });
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut total = rest + 1;
    while total != rest + total.to_string().len() {
        total = rest + total.to_string().len();
    }
    out.extend(total.to_string().as_bytes());
    out.push(b' ');
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}
