//! Programs and firmware that the lab needs: the host's, else unpacked from Debian packages into the cache and run from
//! there with their own loader and libraries. Nothing is installed, nobody is root.

mod root;
mod sets;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{LabError, Result, refuse};
use crate::firmware::{self, Firmware};
use crate::process::{Program, on_host};
use root::Root;
use sets::{FIRMWARE, NFT, PSQL, QEMU, Set};

/// `packages` makes every tool come from packages, even where the host has it.
const VARIABLE: &str = "DYAD_LAB_TOOLS";

/// QEMU with its data.
pub(crate) struct Qemu {
    /// The program.
    pub(crate) program: Program,
    /// Its data directory when that is not where it was built to look.
    pub(crate) share: Option<PathBuf>,
}

/// PostgreSQL's client.
pub(crate) struct Psql {
    /// The program.
    pub(crate) program: Program,
    /// It was unpacked just now, with threads that may still be there.
    pub(crate) fresh: bool,
}

/// Whether the host's own tools may be used.
fn host_counts() -> Result<bool> {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("" | "host") => Ok(true),
        Ok("packages") => Ok(false),
        Ok(other) => refuse(format!(
            "{VARIABLE} is {other:?}; `host` (the host's tools where it has them) or `packages` is accepted"
        )),
    }
}

/// QEMU for x86-64. `say` tells what takes time.
pub(crate) fn qemu(say: &dyn Fn(&str)) -> Result<Qemu> {
    if let (true, Some(file)) = (host_counts()?, on_host("qemu-system-x86_64")) {
        return Ok(Qemu { program: Program::host(file), share: None });
    }
    let root = Root::obtain(QEMU, say)?;
    let file = root.file("usr/bin/qemu-system-x86_64")?;
    let mut program = root.program(file)?;
    // Accelerators are loadable modules, looked for where the package would be installed.
    program.env.push(("QEMU_MODULE_DIR".into(), root.file("usr/lib/x86_64-linux-gnu/qemu")?));
    Ok(Qemu { program, share: Some(root.file("usr/share/qemu")?) })
}

/// The UEFI firmware.
pub(crate) fn firmware(say: &dyn Fn(&str)) -> Result<Firmware> {
    if let (true, Some(found)) = (host_counts()?, firmware::below(Path::new("/"))) {
        return Ok(found);
    }
    let root = Root::obtain(FIRMWARE, say)?;
    firmware::below(root.path())
        .ok_or_else(|| LabError::NoTool { name: "UEFI firmware".into(), place: root.path().to_path_buf() })
}

/// PostgreSQL's client.
pub(crate) fn psql(say: &dyn Fn(&str)) -> Result<Psql> {
    if let (true, Some(file)) = (host_counts()?, on_host("psql")) {
        return Ok(Psql { program: Program::host(file), fresh: false });
    }
    let root = Root::obtain(PSQL, say)?;
    // The package's /usr/bin/psql is a wrapper in Perl; this is the program.
    let file = root.file(&format!("usr/lib/postgresql/{}/bin/psql", sets::POSTGRESQL))?;
    Ok(Psql { program: root.program(file)?, fresh: root.fresh() })
}

/// The packet filter's program.
pub(crate) fn nft(say: &dyn Fn(&str)) -> Result<Program> {
    if let (true, Some(file)) = (host_counts()?, on_host("nft")) {
        return Ok(Program::host(file));
    }
    let root = Root::obtain(NFT, say)?;
    root.program(root.file("usr/sbin/nft")?)
}

/// Unpacks these packages with what they need, without their maintainer scripts, and returns the root directory: at once
/// when the same names were unpacked before.
pub fn unpack(packages: &[String], say: &dyn Fn(&str)) -> Result<PathBuf> {
    let mut names: Vec<&str> = packages.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let digest = Sha256::digest(names.join(" "));
    let name: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    let set = Set { name: &format!("set-{name}"), packages: &names, omitted: sets::NEVER_NEEDED };
    Ok(Root::obtain(set, say)?.path().to_path_buf())
}
