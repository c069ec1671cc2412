//! Unified kernel images: a PE stub with kernel, initrd, command line and release file as further sections.

use bytes::Bytes;

use crate::field;

const SECTION_HEADER_BYTES: usize = 40;
const OPTIONAL_MAGIC_PE32_PLUS: u16 = 0x20b;
/// Initialised data, readable: what ukify and objcopy give to added sections.
const CHARACTERISTICS_DATA: u32 = 0x4000_0040;
/// Sections start on a page, whatever smaller alignment the stub was linked with.
const PAGE: u64 = 4096;
/// No stub and no UKI has more.
const SECTIONS_MAX: usize = 96;
/// Index of the certificate table among the data directories.
const DIRECTORY_CERTIFICATES: usize = 4;

/// Why an image could not be assembled or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a PE32+ file, or one that contradicts itself.
    #[error("PE file: {0}")]
    Malformed(&'static str),
    /// The stub has the section already.
    #[error("the UEFI stub has a section {0} already")]
    Duplicate(String),
    /// Section names have 8 bytes.
    #[error("section name {0:?}: 1 to 8 bytes are accepted")]
    Name(String),
    /// Between the section table and the first section there is no room.
    #[error("the UEFI stub has room for {room} more sections, {wanted} are needed")]
    NoRoom {
        /// Headers that fit.
        room: usize,
        /// Headers needed.
        wanted: usize,
    },
    /// PE addresses have 32 bits.
    #[error("section {0}: the image would be larger than 4 GiB")]
    TooLarge(String),
}

/// What goes into the image beside the stub. Empty optional parts are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// `os-release` text: systemd-boot lists only images that have it.
    pub os_release: Bytes,
    /// Kernel command line, without a newline.
    pub cmdline: String,
    /// Kernel release (`uname -r`).
    pub uname: String,
    /// Processor microcode as an uncompressed cpio, if any.
    pub microcode: Option<Bytes>,
    /// The kernel (bzImage).
    pub linux: Bytes,
    /// The initrd.
    pub initrd: Bytes,
}

/// One section of a PE file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Name, such as `.linux`.
    pub name: String,
    /// Address relative to the image base.
    pub address: u32,
    /// Content, without the padding of the file.
    pub data: Bytes,
}

/// Where the parts of a PE header are.
struct Headers {
    pe: usize,
    optional: usize,
    table: usize,
    sections: usize,
    section_alignment: u64,
    file_alignment: u64,
    headers_bytes: usize,
}

impl Headers {
    fn parse(file: &[u8]) -> Result<Self, Error> {
        let short = || Error::Malformed("ends within its headers");
        if file.get(..2) != Some(b"MZ") {
            return Err(Error::Malformed("has no DOS header"));
        }
        let pe = field::u32_le(file, 0x3c).ok_or_else(short)? as usize;
        if file.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0") {
            return Err(Error::Malformed("has no PE signature"));
        }
        let sections = usize::from(field::u16_le(file, pe + 6).ok_or_else(short)?);
        let optional_bytes = usize::from(field::u16_le(file, pe + 20).ok_or_else(short)?);
        let optional = pe + 24;
        if field::u16_le(file, optional).ok_or_else(short)? != OPTIONAL_MAGIC_PE32_PLUS
            || optional_bytes < 112
        {
            return Err(Error::Malformed("is not PE32+ (64 bit)"));
        }
        let word = |at| field::u32_le(file, optional + at).ok_or_else(short);
        let (section_alignment, file_alignment) = (u64::from(word(32)?), u64::from(word(36)?));
        if !section_alignment.is_power_of_two() || !(512..=65_536).contains(&file_alignment) {
            return Err(Error::Malformed("has an impossible alignment"));
        }
        if !file_alignment.is_power_of_two() || sections > SECTIONS_MAX {
            return Err(Error::Malformed("has an impossible alignment or number of sections"));
        }
        let table = optional + optional_bytes;
        let headers_bytes = word(60)? as usize;
        if table + sections * SECTION_HEADER_BYTES > headers_bytes || headers_bytes > file.len() {
            return Err(Error::Malformed("has a section table that does not fit its headers"));
        }
        Ok(Headers { pe, optional, table, sections, section_alignment, file_alignment, headers_bytes })
    }

    fn raw<'a>(&self, file: &'a [u8], index: usize) -> &'a [u8] {
        let at = self.table + index * SECTION_HEADER_BYTES;
        &file[at..at + SECTION_HEADER_BYTES]
    }
}

/// A section header's numbers.
struct Place {
    virtual_bytes: u32,
    address: u32,
    raw_bytes: u32,
    raw_offset: u32,
}

fn place(raw: &[u8]) -> Place {
    let word = |at| field::u32_le(raw, at).unwrap_or(0);
    Place { virtual_bytes: word(8), address: word(12), raw_bytes: word(16), raw_offset: word(20) }
}

fn name_of(raw: &[u8]) -> String {
    let end = raw[..8].iter().position(|&c| c == 0).unwrap_or(8);
    String::from_utf8_lossy(&raw[..end]).into_owned()
}

/// Lists the sections of a PE file; contents share its memory.
pub fn sections(file: &Bytes) -> Result<Vec<Section>, Error> {
    let headers = Headers::parse(file)?;
    (0..headers.sections)
        .map(|i| {
            let raw = headers.raw(file, i);
            let p = place(raw);
            let bytes =
                if p.virtual_bytes == 0 { p.raw_bytes } else { p.raw_bytes.min(p.virtual_bytes) } as usize;
            let start = p.raw_offset as usize;
            let end = start + bytes;
            if end > file.len() {
                return Err(Error::Malformed("has a section that ends behind the file"));
            }
            let data = if bytes == 0 { Bytes::new() } else { file.slice(start..end) };
            Ok(Section { name: name_of(raw), address: p.address, data })
        })
        .collect()
}

/// Assembles an image. The stub keeps its own sections (`.sbat` among them); its symbol table, signature and time stamp
/// are dropped, so that equal parts give equal bytes.
pub fn assemble(stub: &[u8], parts: &Parts) -> Result<Vec<u8>, Error> {
    let mut added: Vec<(&str, &[u8])> = vec![
        (".osrel", &parts.os_release),
        (".cmdline", parts.cmdline.as_bytes()),
        (".uname", parts.uname.as_bytes()),
    ];
    if let Some(microcode) = &parts.microcode {
        added.push((".ucode", microcode));
    }
    added.push((".linux", &parts.linux));
    added.push((".initrd", &parts.initrd));
    added.retain(|(_, data)| !data.is_empty());
    add_sections(stub, &added)
}

/// Appends sections to a PE file and makes its headers agree.
pub fn add_sections(stub: &[u8], added: &[(&str, &[u8])]) -> Result<Vec<u8>, Error> {
    let h = Headers::parse(stub)?;
    let mut address_end = h.headers_bytes as u64;
    let mut file_end = h.headers_bytes;
    let mut first_raw = h.headers_bytes;
    for i in 0..h.sections {
        let raw = h.raw(stub, i);
        let p = place(raw);
        if raw[0] == b'/' {
            return Err(Error::Malformed("has long section names, which need the symbol table"));
        }
        if added.iter().any(|(name, _)| *name == name_of(raw)) {
            return Err(Error::Duplicate(name_of(raw)));
        }
        address_end = address_end.max(u64::from(p.address) + u64::from(p.virtual_bytes.max(p.raw_bytes)));
        if p.raw_bytes > 0 {
            first_raw = first_raw.min(p.raw_offset as usize);
            file_end = file_end.max(p.raw_offset as usize + p.raw_bytes as usize);
        }
    }
    let room = (first_raw.saturating_sub(h.table) / SECTION_HEADER_BYTES).saturating_sub(h.sections);
    if added.len() > room {
        return Err(Error::NoRoom { room, wanted: added.len() });
    }
    let mut out =
        stub.get(..file_end).ok_or(Error::Malformed("has a section that ends behind the file"))?.to_vec();
    out.reserve(added.iter().map(|(_, d)| d.len() + h.file_alignment as usize).sum());
    for (i, (name, data)) in added.iter().enumerate() {
        out.resize(out.len().next_multiple_of(h.file_alignment as usize), 0);
        let address = address_end.next_multiple_of(h.section_alignment.max(PAGE));
        address_end = address + data.len() as u64;
        let header = section_header(name, data, address, &out, h.file_alignment)?;
        let at = h.table + (h.sections + i) * SECTION_HEADER_BYTES;
        out[at..at + SECTION_HEADER_BYTES].copy_from_slice(&header);
        out.extend(*data);
    }
    out.resize(out.len().next_multiple_of(h.file_alignment as usize), 0);
    let image_bytes = u32::try_from(address_end.next_multiple_of(h.section_alignment.max(PAGE)))
        .map_err(|_| Error::TooLarge("of the whole image".into()))?;
    fix_headers(&mut out, &h, added.len(), image_bytes);
    Ok(out)
}

fn section_header(
    name: &str,
    data: &[u8],
    address: u64,
    out: &[u8],
    file_alignment: u64,
) -> Result<[u8; SECTION_HEADER_BYTES], Error> {
    if name.is_empty() || name.len() > 8 {
        return Err(Error::Name(name.to_owned()));
    }
    let word = |value: u64| u32::try_from(value).map_err(|_| Error::TooLarge(name.to_owned()));
    let bytes = data.len() as u64;
    word(address + bytes)?;
    let mut h = [0u8; SECTION_HEADER_BYTES];
    h[..name.len()].copy_from_slice(name.as_bytes());
    h[8..12].copy_from_slice(&word(bytes)?.to_le_bytes());
    h[12..16].copy_from_slice(&word(address)?.to_le_bytes());
    h[16..20].copy_from_slice(&word(bytes.next_multiple_of(file_alignment))?.to_le_bytes());
    h[20..24].copy_from_slice(&word(out.len() as u64)?.to_le_bytes());
    h[36..40].copy_from_slice(&CHARACTERISTICS_DATA.to_le_bytes());
    Ok(h)
}

fn fix_headers(out: &mut [u8], h: &Headers, added: usize, image_bytes: u32) {
    let count = (h.sections + added) as u16;
    out[h.pe + 6..h.pe + 8].copy_from_slice(&count.to_le_bytes());
    out[h.pe + 8..h.pe + 20].fill(0); // time stamp, symbol table, number of symbols
    out[h.optional + 56..h.optional + 60].copy_from_slice(&image_bytes.to_le_bytes());
    out[h.optional + 64..h.optional + 68].fill(0); // checksum: firmware does not look at it
    let directories = field::u32_le(out, h.optional + 108).unwrap_or(0) as usize;
    let certificates = h.optional + 112 + DIRECTORY_CERTIFICATES * 8;
    if directories > DIRECTORY_CERTIFICATES && certificates + 8 <= h.table {
        out[certificates..certificates + 8].fill(0);
    }
}
