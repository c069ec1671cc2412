//! The other supervisors, each as PID 1 of a container whose programs are Debian's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Work;
use super::support::Container;

/// One of them.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// Processes that belong to it.
    pub(super) helpers: &'static [&'static str],
    command: &'static str,
    /// Writes what it reads into the container's root.
    lay: fn(&Path, &Work),
    /// It has a way to start a service when another one says that it is ready.
    pub(super) chains: bool,
}

pub(super) const PEERS: [Peer; 4] = [
    Peer {
        name: "runit",
        helpers: &["runsvdir", "runsv"],
        command: "runsvdir /scan",
        lay: runit,
        chains: false,
    },
    Peer {
        name: "s6",
        helpers: &["s6-svscan", "s6-supervise"],
        command: "s6-svscan -c1000 /scan",
        lay: s6,
        chains: true,
    },
    Peer {
        name: "systemd",
        helpers: &["systemd"],
        command: "/usr/lib/systemd/systemd --unit=bench.target",
        lay: systemd,
        chains: true,
    },
    Peer { name: "finit", helpers: &["finit"], command: "finit", lay: finit, chains: true },
];

impl Peer {
    /// Starts it with this work; Debian's packages are unpacked in `packages`.
    pub(super) fn start(&self, packages: &str, work: &Work) -> Container {
        let root = tempfile::tempdir().expect("a directory");
        let lay = root.path().join("lay");
        fs::create_dir_all(lay.join("bench")).expect("a directory");
        fs::copy(std::env::current_exe().expect("this program"), lay.join("bench/work")).expect("a copy");
        for n in work.all() {
            script(&lay.join(format!("bench/s{n}")), &work.script(n));
        }
        (self.lay)(&lay, work);
        let text = format!(
            "mkdir -p proc sys run tmp var root etc usr
             mount --bind {packages}/usr usr; ln -s usr/bin usr/sbin usr/lib usr/lib64 .
             mount -t proc p proc; mount -t sysfs s sys; mount -t cgroup2 c sys/fs/cgroup; mount -t tmpfs r run
             cp -r {lay}/. .; : > began
             exec chroot . /bin/busybox env -i container=dyad PATH=/usr/sbin:/usr/bin {command} >/dev/null 2>&1",
            lay = lay.display(),
            command = self.command,
        );
        Container::run(root, &text)
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("it is in a directory")).expect("a directory");
    fs::write(path, text).expect("a file");
}

fn script(path: &Path, text: &str) {
    write(path, &format!("#!/bin/busybox sh\n{text}\n"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a file");
}

fn runit(root: &Path, work: &Work) {
    for n in work.all() {
        script(&root.join(format!("scan/s{n}/run")), &work.script(n));
    }
}

/// A service waits for the one before it in its own first lines, as s6 without s6-rc does it.
fn s6(root: &Path, work: &Work) {
    for n in work.all() {
        let waits = match work.before(n) {
            Some(before) => format!("until s6-svwait -U /scan/s{before}; do :; done\n"),
            None => String::new(),
        };
        script(
            &root.join(format!("scan/s{n}/run")),
            &format!("{waits}export READY_FD=3\n{}", work.script(n)),
        );
        if work.is_chain() {
            write(&root.join(format!("scan/s{n}/notification-fd")), "3\n");
        }
    }
}

/// This version takes a PID file for readiness.
fn finit(root: &Path, work: &Work) {
    let mut text = "runlevel 2\n".to_owned();
    for n in work.all() {
        let ready = if work.is_chain() { format!("pid:!/run/s{n}.pid") } else { String::new() };
        let waits = work.before(n).map_or(String::new(), |before| format!("<pid/s{before}>"));
        text += &format!("service [2345] {waits} {ready} name:s{n} /bench/s{n} -- s{n}\n");
    }
    write(&root.join("etc/finit.conf"), &text);
}

fn systemd(root: &Path, work: &Work) {
    write(&root.join("etc/machine-id"), "");
    write(&root.join("etc/systemd/system.conf"), "[Manager]\nDefaultStandardOutput=null\n");
    let mut wants = String::new();
    for n in work.all() {
        let waits = work.before(n).map_or(String::new(), |before| format!("After=s{before}.service\n"));
        let kind = if work.is_chain() { "notify" } else { "simple" };
        write(
            &root.join(format!("etc/systemd/system/s{n}.service")),
            &format!(
                "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n{waits}[Service]\nType={kind}\n\
                 ExecStart=/bench/s{n}\nRestart=always\nRestartSec=0\n"
            ),
        );
        wants += &format!("Wants=s{n}.service\n");
    }
    write(&root.join("etc/systemd/system/bench.target"), &format!("[Unit]\nDefaultDependencies=no\n{wants}"));
}
