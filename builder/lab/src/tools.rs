//! Programs and firmware that the lab needs.

use std::path::{Path, PathBuf};

use crate::error::{LabError, Result};
use crate::firmware::{self, Firmware};
use crate::process::{Program, on_host};

/// QEMU with its data.
pub(crate) struct Qemu {
    /// The program.
    pub(crate) program: Program,
    /// Its data directory when that is not where it was built to look.
    pub(crate) share: Option<PathBuf>,
}

/// QEMU for x86-64.
pub(crate) fn qemu() -> Result<Qemu> {
    let name = "qemu-system-x86_64";
    match on_host(name) {
        Some(file) => Ok(Qemu { program: Program::host(file), share: None }),
        None => Err(missing(name)),
    }
}

/// The UEFI firmware.
pub(crate) fn firmware() -> Result<Firmware> {
    firmware::below(Path::new("/")).ok_or_else(|| missing("OVMF"))
}

/// PostgreSQL's client.
pub(crate) fn psql() -> Result<Program> {
    on_host("psql").map(Program::host).ok_or_else(|| missing("psql"))
}

fn missing(name: &str) -> LabError {
    LabError::NoTool {
        name: name.into(),
        searched: "PATH and the usual directories".into(),
        hint: "install it".into(),
    }
}
