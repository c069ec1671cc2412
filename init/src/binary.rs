//! The program in memory: PID 1 runs from a copy of its binary that no disk has to give back.
//!
//! A page of a program is read from its file when it is first needed, and again whenever the kernel had no room for it. What
//! closes the gate and ends the services of a node that lost its disk must not read that disk first. The copy is a memfd,
//! sealed; without swap its pages never leave memory, so the process may let go of all that it does not need just now.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::AtFlags;
use rustix::fs::{MemfdFlags, SealFlags};

/// What `statfs` says of a memfd.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// Says that the program already runs from its copy.
pub(crate) const ENTERED: &str = "--from-memory";

/// The binary that this process runs.
pub(crate) const SELF: &str = "/proc/self/exe";

/// Gives back what only a boot or a recovery needed: freed memory, and of the program itself, if it lies in memory, all that
/// is not executed again.
pub(crate) fn let_go() {
    let in_memory = rustix::fs::statfs(SELF).is_ok_and(|fs| fs.f_type == TMPFS);
    dyad_sys::resident::give_back(in_memory);
}

/// A sealed copy of a binary, to be executed.
///
/// # Errors
/// When it cannot be read, or there is no memory for it.
pub(crate) fn copy(path: &Path) -> io::Result<OwnedFd> {
    let bytes = std::fs::read(path)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels from 6.3 on want to be told; older ones do not know the flag.
    let copy = rustix::fs::memfd_create("init", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("init", flags))?;
    let mut file = File::from(copy);
    file.write_all(&bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Executes the copy of this program in its place. Comes back only when that failed, and nothing was changed.
pub(crate) fn enter() -> io::Error {
    // From the auxiliary vector: in a container there is no /proc yet.
    let path = dyad_sys::program::own_path().unwrap_or_default();
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let copy = match copy(path) {
        Ok(copy) => copy,
        Err(error) => return io::Error::new(error.kind(), format!("{}: {error}", path.display())),
    };
    let argv = ["init", ENTERED].map(|word| CString::new(word).unwrap_or_default());
    // Whatever was handed over, text or not: nothing here may end PID 1.
    let word = |(name, value): (OsString, OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    let environment: Vec<CString> = std::env::vars_os().filter_map(word).collect();
    let Err(error) = nix::unistd::execveat(copy, c"", &argv, &environment, AtFlags::AT_EMPTY_PATH);
    error.into()
}
