//! The initrd stage: from an empty machine to a verified root.

mod gpt;
mod slot;
mod verity;

use std::ffi::CString;
use std::path::Path;

use crate::log::{critical, info, warning};
use crate::modules::{IndexError, Modules, load_list};
use crate::mounts::{self, MountError};
use crate::{clock, log, uevent};

pub(crate) use verity::{HashError, RootHash};

/// How long the disk may take to appear.
const SLOT_WAIT_MS: u64 = 30_000;
/// Between two looks at the devices when the kernel tells of none.
const SLOT_POLL_MS: u64 = 250;
/// What stands on the console before the machine resets, so that somebody can read it.
const PAUSE_BEFORE_RESET_MS: u64 = 10_000;
const NEW_ROOT: &str = "/sysroot";
const NEW_INIT: &str = "/usr/lib/dyad/init";

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Slot(#[from] slot::SlotError),
    #[error(transparent)]
    Verity(#[from] verity::VerityError),
    #[error("cannot mount the root {device} (verity root hash {hash}): {source}")]
    Root { device: &'static str, hash: RootHash, source: rustix::io::Errno },
    #[error("cannot enter the root: {0}")]
    Switch(#[source] std::io::Error),
    #[error("cannot execute {NEW_INIT} of the root: {0}")]
    Exec(#[source] nix::errno::Errno),
}

/// Runs the stage. It ends in the root's init, or tells why not and resets the machine, so that boot counting can fall
/// back to the other slot.
pub(crate) fn run() -> ! {
    let error = match stage() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    critical!("initrd: no root: {error}");
    critical!("initrd: the machine resets in {} s", PAUSE_BEFORE_RESET_MS / 1000);
    clock::pause_ms(PAUSE_BEFORE_RESET_MS);
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    loop {
        clock::pause_ms(PAUSE_BEFORE_RESET_MS);
    }
}

/// Tells how long a phase took, in a form that the lab reads.
fn mark(phase: &str, since_ms: u64) -> u64 {
    let now = clock::boot_ms();
    let took = now.saturating_sub(since_ms);
    info!("initrd: {phase} {}.{:03}s", took / 1000, took % 1000);
    now
}

fn stage() -> Result<std::convert::Infallible, Error> {
    let began = clock::boot_ms();
    mounts::mount_all(mounts::FIRST)?;
    // The kernel drops lines of a chatty writer otherwise.
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    log::open();
    info!("initrd: kernel {}.{:03}s", began / 1000, began % 1000);
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let hash = RootHash::from_cmdline(&cmdline)?;
    let uevents = uevent::open().inspect_err(|error| warning!("initrd: no device events: {error}")).ok();
    let mut modules = Modules::open()?;
    let list = modules.initrd_list();
    load_list(&mut modules, &list);
    let count = modules.coldplug();
    let at = mark("modules", began);
    info!("initrd: {count} modules by modalias");
    let pair = if Path::new(slot::NETWORK_ROOT).exists() {
        slot::from_initrd()?
    } else {
        wait_for_slot(&hash, &mut modules, uevents.as_ref())?
    };
    let at = mark("slot", at);
    verity::open(&pair, &hash)?;
    let at = mark("verity", at);
    mount_root(&hash)?;
    mark("root", at);
    mark("total", began);
    free_initramfs();
    mounts::switch_root(NEW_ROOT).map_err(Error::Switch)?;
    let init = CString::new(NEW_INIT).expect("no zero in it");
    let environment = [format!("DYAD_SLOT={}", pair.origin), format!("DYAD_KERNEL_MS={began}")]
        .map(|text| CString::new(text).expect("no zero in it"));
    nix::unistd::execve(&init, &[init.as_c_str()], &environment).map_err(Error::Exec)
}

fn wait_for_slot(
    hash: &RootHash,
    modules: &mut Modules,
    uevents: Option<&rustix::fd::OwnedFd>,
) -> Result<slot::Pair, Error> {
    let deadline = clock::boot_ms() + SLOT_WAIT_MS;
    loop {
        match slot::find(hash) {
            Ok(pair) => return Ok(pair),
            Err(error) if clock::boot_ms() >= deadline => return Err(error.into()),
            Err(_) => {}
        }
        match uevents {
            Some(socket) => uevent::wait(socket, SLOT_POLL_MS),
            None => clock::pause_ms(SLOT_POLL_MS),
        }
        modules.coldplug();
    }
}

fn mount_root(hash: &RootHash) -> Result<(), Error> {
    let _ = std::fs::create_dir(NEW_ROOT);
    let flags = rustix::mount::MountFlags::RDONLY | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount(verity::DEVICE, NEW_ROOT, "squashfs", flags, None).map_err(|source| Error::Root {
        device: verity::DEVICE,
        hash: hash.clone(),
        source,
    })
}

/// Gives the memory of the initrd back. A root that came in it stays: its loop devices hold the files open.
fn free_initramfs() {
    for path in ["/init", slot::NETWORK_ROOT, slot::NETWORK_VERITY] {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir_all("/usr");
}
