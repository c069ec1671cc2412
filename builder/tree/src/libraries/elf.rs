//! What the dynamic loader reads from an ELF file.

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// The parts of the dynamic section that decide which libraries a file gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dynamic {
    pub(super) soname: Option<String>,
    pub(super) needed: Vec<String>,
    /// DT_RUNPATH and DT_RPATH, split at colons.
    pub(super) run_path: Vec<String>,
    /// A program: it names a loader.
    pub(super) program: bool,
}

/// Reads a 64-bit x86 file; `None` for anything else, for static programs, and for damaged files, which the loader
/// would not load either.
pub(super) fn read(data: &[u8]) -> Option<Dynamic> {
    if !data.starts_with(b"\x7fELF") {
        return None;
    }
    let header = elf::FileHeader64::<object::LittleEndian>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return None;
    }
    let segments = header.program_headers(endian, data).ok()?;
    let file_offset = |address: u64| {
        let mut loads = segments.iter().filter(|s| s.p_type(endian) == elf::PT_LOAD);
        loads.find_map(|s| {
            let within = address.checked_sub(s.p_vaddr(endian))?;
            (within < s.p_filesz(endian)).then(|| s.p_offset(endian).checked_add(within)).flatten()
        })
    };
    let entries = segments.iter().find_map(|s| s.dynamic(endian, data).ok().flatten())?;
    let value = |tag| entries.iter().find(|e| e.d_tag(endian) == tag).map(|e| e.d_val(endian));
    let strings_at = file_offset(value(elf::DT_STRTAB)?)? as usize;
    let strings = data.get(strings_at..)?;
    let strings = &strings[..strings.len().min(value(elf::DT_STRSZ)? as usize)];
    let text = |at: u64| -> Option<String> {
        let rest = strings.get(at as usize..)?;
        let end = rest.iter().position(|&b| b == 0)?;
        String::from_utf8(rest[..end].to_vec()).ok()
    };
    let mut dynamic = Dynamic {
        program: segments.iter().any(|s| s.p_type(endian) == elf::PT_INTERP),
        ..Dynamic::default()
    };
    for entry in entries {
        let string = || text(entry.d_val(endian));
        match entry.d_tag(endian) {
            elf::DT_NULL => break,
            elf::DT_NEEDED => dynamic.needed.push(string()?),
            elf::DT_SONAME => dynamic.soname = Some(string()?),
            elf::DT_RPATH | elf::DT_RUNPATH => {
                dynamic.run_path.extend(string()?.split(':').filter(|d| !d.is_empty()).map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(dynamic)
}
