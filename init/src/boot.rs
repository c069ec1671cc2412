//! Early boot in the root: mounts, directories, kernel settings. Everything here is quick and cannot wait for a device;
//! what can is an early boot phase in a helper process.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use dyad_spec::compiled::{ImageTable, TableError};

use crate::log::{info, warning};
use crate::{clock, log, mounts};

/// The image's table.
pub(crate) const TABLE: &str = "/usr/lib/dyad/image.bin";
/// PID 1's own runtime directory.
pub(crate) const RUNTIME: &str = "/run/dyad";
const MODPROBE: &str = "/proc/sys/kernel/modprobe";
/// Datagrams that a unix socket queues: 3 s of 10,000 messages a second, while journald starts again. What they take is
/// bounded by the senders' buffers.
const DATAGRAM_QUEUE: &str = "32768\n";

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The table is not readable.
    #[error("cannot read {TABLE}: {0}")]
    Read(#[from] io::Error),
    /// The table is not a table.
    #[error("{TABLE}: {0}")]
    Decode(#[from] TableError),
    /// A kernel file system is missing.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
}

/// Reads the table.
pub(crate) fn table() -> Result<ImageTable, Error> {
    Ok(ImageTable::decode(&fs::read(TABLE)?)?)
}

/// Where PID 1 writes that this is a container: after a re-exec, and in its helpers, the variable is gone. The name is
/// systemd's, so that Debian's programs find it too.
const CONTAINER: &str = "/run/systemd/container";

/// Whether this is a container: no devices, no disks, no kernel settings but those of its own network.
pub(crate) fn in_container() -> bool {
    std::env::var_os("container").is_some() || Path::new(CONTAINER).exists()
}

/// Makes the machine ready for its first service.
pub(crate) fn prepare(container: bool) -> Result<ImageTable, Error> {
    let began = clock::boot_ms();
    mounts::mount_all(mounts::FIRST)?;
    if !container {
        log::open();
    }
    mounts::mount_all(mounts::REST)?;
    let table = table()?;
    kernel_settings(&table, container);
    // Before any socket is bound.
    try_write("/proc/sys/net/unix/max_dgram_qlen", DATAGRAM_QUEUE);
    directories(&table);
    if container {
        write_once(CONTAINER, "dyad\n");
    }
    device_links();
    identity(&table);
    let took = clock::boot_ms().saturating_sub(began);
    info!("early {}.{:03}s ({} {})", took / 1000, took % 1000, table.name, table.version);
    Ok(table)
}

fn try_write(path: &str, text: &str) {
    if let Err(error) = fs::write(path, text) {
        warning!("cannot write {:?} to {path}: {error}", text.trim());
    }
}

fn kernel_settings(table: &ImageTable, container: bool) {
    for (name, value) in &table.sysctls {
        // All other settings are the whole machine's.
        if !container || ["net.ipv4.", "net.ipv6."].iter().any(|own| name.starts_with(own)) {
            try_write(&format!("/proc/sys/{}", name.replace('.', "/")), &format!("{value}\n"));
        }
    }
    if container {
        return;
    }
    // The kernel calls this with `-q -- NAME` when it wants a module; there is no other modprobe.
    if Path::new(MODPROBE).exists() {
        try_write(MODPROBE, "/usr/lib/dyad/init\n");
    }
    // Ctrl-Alt-Del becomes a SIGINT for PID 1 instead of an instant reset.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
}

fn directories(table: &ImageTable) {
    let own = [
        (RUNTIME, 0o755),
        ("/run/dyad/etc", 0o755),
        ("/run/systemd", 0o755),
        ("/run/systemd/journal", 0o755),
    ];
    for (path, mode) in own {
        directory(path, mode, 0, 0);
    }
    for dir in &table.directories {
        // Below /state and /data nothing is there yet: the phases make what is theirs.
        if !dir.path.starts_with("/state/") && !dir.path.starts_with("/data/") {
            directory(&dir.path, dir.mode, dir.uid, dir.gid);
        }
    }
    for link in &table.links {
        make_link(&link.target, &link.path);
    }
    make_link("/run", "/var/run");
    make_link("/run/lock", "/var/lock");
    directory("/run/lock", 0o1777, 0, 0);
}

fn directory(path: &str, mode: u16, uid: u32, gid: u32) {
    let made = fs::create_dir_all(path)
        .and_then(|()| chown(path, Some(uid), Some(gid)))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(u32::from(mode))));
    if let Err(error) = made {
        warning!("cannot make the directory {path}: {error}");
    }
}

fn make_link(target: &str, path: &str) {
    match symlink(target, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => warning!("cannot link {path} to {target}: {error}"),
    }
}

fn device_links() {
    for (target, path) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("/run/systemd/journal/dev-log", "/dev/log"),
    ] {
        make_link(target, path);
    }
}

/// Host name, hosts, and a machine id for this boot; phase `state` puts the lasting one in its place.
fn identity(table: &ImageTable) {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    write_once("/run/dyad/etc/machine-id", &id.replace('-', ""));
    write_once("/run/dyad/etc/hostname", &format!("{}\n", table.name));
    write_once("/run/dyad/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    write_once("/run/dyad/etc/resolv.conf", "");
    let name = fs::read_to_string("/run/dyad/etc/hostname").unwrap_or_default();
    if let Err(error) = rustix::system::sethostname(name.trim().as_bytes()) {
        warning!("cannot set the host name {:?}: {error}", name.trim());
    }
}

fn write_once(path: &str, text: &str) {
    if !Path::new(path).exists() {
        try_write(path, text);
    }
}

/// Group of the programs that run virtual machines; an image without any has no such group.
const VM_GROUP: &str = "kvm";

/// Opens device nodes to those who need them; devtmpfs makes them for root only. Called again after each coldplug.
pub(crate) fn device_permissions() {
    for path in ["null", "zero", "full", "random", "urandom", "tty", "ptmx"] {
        open_device(&format!("/dev/{path}"), None, 0o666);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(gid) = group_number(&groups, VM_GROUP) else { return };
    for path in ["/dev/kvm", "/dev/vhost-net", "/dev/net/tun"] {
        open_device(path, Some(gid), 0o660);
    }
}

fn open_device(path: &str, gid: Option<u32>, mode: u32) {
    if !Path::new(path).exists() {
        return;
    }
    let owned = std::os::unix::fs::chown(path, None, gid);
    if let Err(error) = owned.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))) {
        warning!("cannot open {path} to its users: {error}");
    }
}

/// Number of a group in the text of `/etc/group` (`name:password:number:members`).
fn group_number(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        fields.nth(1).filter(|_| found)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_numbers() {
        let text = "root:x:0:\nkvm2:x:7:\nkvm:x:204:vm\nbroken\n";
        assert_eq!(group_number(text, "kvm"), Some(204));
        assert_eq!(group_number(text, "root"), Some(0));
        assert_eq!(group_number(text, "broken"), None);
        assert_eq!(group_number(text, "vm"), None);
    }
}
