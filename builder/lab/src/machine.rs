//! One virtual machine: QEMU's command line, its sockets, and starting it.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{AtPath, Doing, Result};
use crate::process::{Launch, Program};
use crate::topology::{Node, Role, mac_text};

/// The virtio-serial port on which the appliance's supervisor answers.
pub(crate) const OPERATOR_PORT: &str = "org.dyad.operator";

/// How the guest's processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Translation in software: slow, and works everywhere.
    Tcg,
}

impl Accel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// What every machine of a lab is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// QEMU.
    pub(crate) qemu: Program,
    /// QEMU's directory of option ROMs and keymaps, when it is not where QEMU was built to look.
    pub(crate) share: Option<PathBuf>,
    /// The UEFI firmware's code image.
    pub(crate) firmware_code: PathBuf,
    /// The UEFI firmware's empty variable store; every node gets a copy.
    pub(crate) firmware_vars: PathBuf,
    /// How processors run.
    pub(crate) accel: Accel,
    /// Memory of a machine.
    pub(crate) memory_mib: u32,
    /// Where an NBD server listens for each node's disk, on a socket of its name; files otherwise.
    pub(crate) disks_at: Option<PathBuf>,
    /// Processors of a machine.
    pub(crate) cpus: u8,
}

/// The lab's ends of a machine's sockets.
pub(crate) struct Sockets {
    /// One per [`Role`], in the order of [`Role::ALL`].
    pub(crate) nics: Vec<UnixDatagram>,
    /// The serial console.
    pub(crate) serial: UnixStream,
    /// The operator's port.
    pub(crate) operator: UnixStream,
    /// QEMU's monitor.
    pub(crate) qmp: UnixStream,
}

/// Makes the sockets and the command line of a node whose disk and variable store lie in `dir`.
pub(crate) fn prepare(setup: &Setup, node: Node, dir: &Path) -> Result<(Launch, Sockets)> {
    let log = dir.join("qemu.log");
    // Each start has its own log: what an earlier machine said would be taken for this one's.
    fs::write(&log, "").at("empty", &log)?;
    let mut passed = Vec::new();
    let mut nics = Vec::new();
    for _ in Role::ALL {
        let (ours, theirs) = UnixDatagram::pair().doing("make a NIC's sockets")?;
        nics.push(ours);
        passed.push(OwnedFd::from(theirs));
    }
    let mut pair = || -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair().doing("make a machine's sockets")?;
        passed.push(OwnedFd::from(theirs));
        Ok(ours)
    };
    let sockets = Sockets { serial: pair()?, operator: pair()?, qmp: pair()?, nics };
    let fds: Vec<i32> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let args = arguments(setup, node, dir, &fds);
    Ok((Launch { program: setup.qemu.clone(), args, stdin: None, passed, log }, sockets))
}

/// QEMU's command line. `fds`: the NICs in role order, then serial, operator and monitor.
fn arguments(setup: &Setup, node: Node, dir: &Path, fds: &[i32]) -> Vec<OsString> {
    let mut args = Args::default();
    args.pair("-name", node.name()).flag("-nodefaults").flag("-no-user-config").pair("-display", "none");
    if let Some(share) = &setup.share {
        args.pair("-L", share);
    }
    args.pair("-machine", format!("q35,accel={}", setup.accel.name())).pair("-cpu", "max");
    args.pair("-smp", setup.cpus.to_string()).pair("-m", setup.memory_mib.to_string());
    let flash = "if=pflash,format=raw,unit=";
    args.pair("-drive", with_path(&format!("{flash}0,readonly=on,file="), &setup.firmware_code));
    args.pair("-drive", with_path(&format!("{flash}1,file="), &dir.join("vars.fd")));
    let disk = "if=none,id=disk,format=raw,discard=unmap,detect-zeroes=unmap,";
    args.pair(
        "-drive",
        match &setup.disks_at {
            None => with_path(&format!("{disk}file="), &dir.join("disk.raw")),
            Some(at) => {
                let server = format!("{disk}file.driver=nbd,file.server.type=unix,file.server.path=");
                with_path(&server, &at.join(node.name()))
            }
        },
    );
    // The boot index also keeps the firmware from trying the network first.
    args.pair("-device", "virtio-blk-pci,drive=disk,serial=dyad-disk,bootindex=0");
    for (role, fd) in Role::ALL.iter().zip(fds) {
        let name = role.name();
        args.pair("-netdev", format!("dgram,id={name},local.type=fd,local.str={fd}"));
        // LACP refuses to aggregate links of unknown speed. No option ROM: the firmware has its own driver.
        let mac = mac_text(node.mac(*role));
        args.pair(
            "-device",
            format!("virtio-net-pci,netdev={name},mac={mac},speed=10000,duplex=full,romfile="),
        );
    }
    let [serial, operator, qmp] = [fds[4], fds[5], fds[6]];
    args.pair("-chardev", format!("socket,id=serial,fd={serial}")).pair("-serial", "chardev:serial");
    args.pair("-device", "virtio-serial-pci").pair("-chardev", format!("socket,id=operator,fd={operator}"));
    args.pair("-device", format!("virtserialport,id=port,chardev=operator,name={OPERATOR_PORT}"));
    args.pair("-chardev", format!("socket,id=qmp,fd={qmp}")).pair("-mon", "chardev=qmp,mode=control");
    args.pair("-device", "virtio-rng-pci").pair("-device", "i6300esb").pair("-action", "watchdog=reset");
    args.0
}

/// QEMU's option lists take a comma in a value when it is doubled.
fn with_path(options: &str, path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut value = options.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        value.push(*byte);
        if *byte == b',' {
            value.push(b',');
        }
    }
    OsString::from_vec(value)
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_names_every_socket_and_survives_commas() {
        let setup = Setup {
            qemu: Program::host("/usr/bin/qemu-system-x86_64".into()),
            share: None,
            firmware_code: "/fw/code.fd".into(),
            firmware_vars: "/fw/vars.fd".into(),
            accel: Accel::Tcg,
            memory_mib: 1024,
            disks_at: None,
            cpus: 2,
        };
        let args = arguments(&setup, Node(1), Path::new("/a,b"), &[10, 11, 12, 13, 14, 15, 16]);
        let text: Vec<_> = args.iter().map(|a| a.to_str().unwrap()).collect();
        let all = text.join(" ");
        assert!(all.contains("unit=0,readonly=on,file=/fw/code.fd"));
        assert!(all.contains("file=/a,,b/disk.raw") && all.contains("unit=1,file=/a,,b/vars.fd"));
        assert!(all.contains("dgram,id=repl1,local.type=fd,local.str=13"));
        assert!(all.contains("netdev=repl1,mac=02:64:79:00:0b:03,speed=10000,duplex=full"));
        assert!(
            all.contains("id=serial,fd=14")
                && all.contains("id=operator,fd=15")
                && all.contains("id=qmp,fd=16")
        );
        let served = Setup { disks_at: Some("/s,t".into()), ..setup };
        let args = arguments(&served, Node(1), Path::new("/a"), &[10, 11, 12, 13, 14, 15, 16]);
        let disk = args.iter().filter_map(|a| a.to_str()).find(|a| a.contains("id=disk")).unwrap();
        assert!(
            disk.ends_with("file.driver=nbd,file.server.type=unix,file.server.path=/s,,t/node-b"),
            "{disk}"
        );
        assert!(all.contains("q35,accel=tcg") && !text.contains(&"-L"));
    }
}
