//! A build is a program like any other: it mounts nothing, changes no root, makes no namespace, touches no loop or
//! device-mapper device and, offline, opens no socket. The kernel kills it at the first try.

use std::os::unix::process::ExitStatusExt;

use dyad_image_tests::{Installed, Surroundings, text};

/// Loads the filter, then becomes the program that it is given. What is denied is fatal, so that a build which tries and
/// then does without is found as well.
const FILTER: &str = r#"
import os, sys
from seccomp import SyscallFilter, Arg, ALLOW, EQ, KILL_PROCESS, MASKED_EQ, NE, ERRNO
import errno
f = SyscallFilter(ALLOW)
for name in ("mount", "umount2", "unshare", "setns", "chroot", "pivot_root", "move_mount", "open_tree", "fsopen",
             "init_module", "finit_module", "mknod", "mknodat", "ptrace", "bpf", "swapon", "reboot"):
    f.add_rule(KILL_PROCESS, name)
for kind in (0x4c, 0xfd):  # loop, device-mapper
    f.add_rule(KILL_PROCESS, "ioctl", Arg(1, MASKED_EQ, 0xff00, kind << 8))
for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):  # CLONE_NEW*
    f.add_rule(KILL_PROCESS, "clone", Arg(0, MASKED_EQ, flag, flag))
# Its flags lie in memory, where a filter cannot look; C libraries then use clone.
f.add_rule(ERRNO(errno.ENOSYS), "clone3")
f.add_rule(KILL_PROCESS, "socket", Arg(0, NE, 1))  # everything but AF_UNIX
f.load()
os.execvp(sys.argv[1], sys.argv[1:])
"#;

const SIGSYS: i32 = 31;

fn confined() -> Surroundings {
    // Debian's own interpreter: python3-seccomp is a Debian package.
    Surroundings { wrapper: vec!["/usr/bin/python3", "-c", FILTER], ..Surroundings::default() }
}

#[test]
fn a_build_needs_no_privilege_no_namespace_no_device_and_no_network() {
    let installed = Installed::new();
    let around = Surroundings { directory: Some(installed.path("src")), ..confined() };

    // The filter does what it says.
    let denied: [&[&str]; 6] = [
        &["unshare", "--user", "true"],
        &["chroot", "/", "true"],
        &["mount", "-t", "tmpfs", "none", "/mnt"],
        &["/usr/bin/python3", "-c", "import socket; socket.socket(socket.AF_INET)"],
        &["/usr/bin/python3", "-c", "import fcntl; fcntl.ioctl(0, 0x4c82)"],
        &["/usr/bin/python3", "-c", "import fcntl; fcntl.ioctl(0, 0xc138fd00)"],
    ];
    for argv in denied {
        let argv: Vec<String> = argv.iter().map(|&s| s.to_owned()).collect();
        let status = installed.command(&around, &argv).status;
        assert_eq!(status.signal(), Some(SIGSYS), "{argv:?} was not killed: {status}");
    }

    let out = installed.path("confined");
    for more in [&["--locked"][..], &[]] {
        let free = Surroundings { directory: Some(installed.path("src")), ..Surroundings::default() };
        let expected = installed.digests(&free, &out, &["raw", "qcow2", "pxe", "tree"], more);
        assert_eq!(
            installed.digests(&around, &out, &["raw", "qcow2", "pxe", "tree"], more),
            expected,
            "{more:?}"
        );
    }

    // Without --offline the archive is asked, and that is what the filter denies.
    let mut argv = installed.build_line(&out, &["tree"], &[]);
    argv.retain(|word| word != "--offline");
    let status = installed.command(&around, &argv).status;
    assert!(!status.success(), "a build that may ask the network did not: {}", text(&out));
}
