//! A machine for tests that need root and a kernel of their own: Debian's kernel, the programs of Debian packages
//! (`dyad tools`, nothing installed) and test binaries of this workspace in one initrd, run under QEMU.
//!
//! The tests that want this carry `#[ignore = "run in a guest by tests/vm"]`; the guest runs them with `--ignored`.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use dyad_formats::cpio;
use dyad_formats::tree::{Inode, Kind, Meta, Tree};
use serde_json::Value;

use crate::{dyad, program, stdout};

/// What the tests and the guest's first program call.
const PACKAGES: &[&str] = &[
    "attr",
    "busybox-static",
    "cpio",
    "dmsetup",
    "dosfstools",
    "drbd-utils",
    "e2fsprogs",
    "gdisk",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libgcc-s1",
    "linux-image-amd64",
    "lvm2",
    "mount",
    "nftables",
    "squashfs-tools",
    "strace",
    "systemd",
    "tar",
    "util-linux",
];
/// The parts of the packages that a guest has.
const DIRECTORIES: &[&str] = &[
    "etc",
    "usr/bin",
    "usr/sbin",
    "usr/lib/drbd",
    "usr/lib/systemd/systemd-journald",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
];
/// What the tests call beside the packages' programs.
const APPLETS: &[&str] = &["cat", "chroot", "cp", "ln", "mkdir", "poweroff", "sh", "touch", "truncate"];
/// Temporary files on a file system that keeps all extended attributes, which tmpfs does not.
const ON_EXT4: &str = "truncate -s 1G /tmp/disk; mkfs.ext4 -q /tmp/disk; mkdir -p /scratch\n\
    mount -o loop /tmp/disk /scratch; export TMPDIR=/scratch\n";
/// Longest time for one guest to come up and go down again, beside its tests.
const BOOT_SECONDS: u32 = 90;

/// One run of one test binary in a guest of its own.
#[derive(Debug)]
pub struct Guest<'a> {
    /// The crate whose integration test it is.
    pub package: &'a str,
    /// The integration test: the name of its file.
    pub test: &'a str,
    /// Words for the test binary after `--ignored`: names and `--skip`.
    pub select: &'a [&'a str],
    /// Kernel modules, each behind those it needs.
    pub modules: &'a [&'a str],
    /// Temporary files lie on ext4 (the modules `loop` and `ext4` are needed), not on tmpfs.
    pub ext4: bool,
    /// Environment of the tests.
    pub env: &'a [(&'a str, &'a str)],
    /// Libraries that programs in the guest load: the crates, and the variables that tell the tests where they are.
    pub libraries: &'a [(&'a str, &'a str)],
    /// Memory, which also holds the test's disks.
    pub memory_mib: u32,
    /// How long the tests may take on two processors of which each is emulated.
    pub seconds: u32,
    /// The test binary lays out an image (`machine::inside_layout`) and the guest's first program becomes its `init`,
    /// with this scene as a service; `select` is not used.
    pub scene: Option<&'a str>,
}

impl Guest<'_> {
    /// Runs the tests; panics with the guest's console when one fails, none ran, or the time is over.
    pub fn run(&self) {
        let console = self.console(&mut |_| false);
        assert!(console.contains("\nGUEST END 0"), "the tests failed or did not end, see above");
        let ran =
            console.lines().any(|line| line.starts_with("test result: ok. ") && !line.contains(" 0 passed"));
        assert!(ran, "no test ran, see above");
    }

    /// Runs the machine until it powers itself off, its time is over, or `enough` is true of a line on its console; what
    /// was there. With a scene it starts again after a reset.
    pub fn console(&self, enough: &mut dyn FnMut(&str) -> bool) -> String {
        let packages = packages();
        let binaries = self.binaries();
        let mut tree = system(&packages);
        for name in self.modules {
            let file = find(&packages.join("usr/lib/modules"), &format!("{name}.ko"));
            add_file(&mut tree, format!("/modules/{name}.ko").as_bytes(), &file);
        }
        for file in binaries.iter() {
            add_file(&mut tree, file.as_os_str().as_bytes(), file);
        }
        let libraries =
            self.libraries.iter().map(|(package, name)| (library(package), *name)).collect::<Vec<_>>();
        for (file, _) in &libraries {
            add_file(&mut tree, file.as_os_str().as_bytes(), file);
        }
        let init = self.init(&libraries, binaries.last().expect("cargo built the test"));
        add(&mut tree, b"/init", 0o755, Kind::File(init.into()));

        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let initrd = dir.path().join("initrd");
        let mut out = BufWriter::new(fs::File::create(&initrd).expect("the initrd can be made"));
        cpio::write(&tree, &mut out).expect("the initrd can be written");
        out.flush().expect("the initrd can be written");
        let kernel = find(&packages.join("boot"), "vmlinuz-*");
        self.boot(&kernel, &initrd, enough)
    }

    /// What cargo builds for the test: programs under test first, the test itself last.
    fn binaries(&self) -> Vec<PathBuf> {
        let mut programs = Vec::new();
        let mut tests = Vec::new();
        for message in cargo(&["test", "--no-run", "-p", self.package, "--test", self.test]) {
            let Some(file) = message["executable"].as_str() else { continue };
            let is_test = message["profile"]["test"] == true;
            if is_test { &mut tests } else { &mut programs }.push(PathBuf::from(file));
        }
        assert_eq!(tests.len(), 1, "cargo built {tests:?} for --test {}", self.test);
        programs.append(&mut tests);
        programs
    }

    /// The guest's first program.
    fn init(&self, libraries: &[(PathBuf, &str)], test: &Path) -> String {
        let mut env: String =
            self.env.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        env.extend(libraries.iter().map(|(file, name)| format!("export {name}='{}'\n", file.display())));
        let test = test.display();
        let select = self.select.join(" ");
        let work = match self.scene {
            Some(scene) => format!(
                "DYAD_SCENE={scene} '{test}' --ignored --exact machine::inside_layout || poweroff -f\n\
                 exec busybox env -i /usr/lib/dyad/init\n"
            ),
            None => format!(
                "'{test}' --ignored --test-threads 1 {select} </dev/null 2>&1\n\
                 status=$?; echo; echo GUEST END $status\n\
                 poweroff -f\n"
            ),
        };
        format!(
            "#!/usr/bin/busybox sh\n\
             export PATH=/usr/sbin:/usr/bin TMPDIR=/tmp HOME=/root\n\
             for applet in {applets}; do [ -e /usr/bin/$applet ] || busybox ln -s busybox /usr/bin/$applet; done\n\
             mkdir -p /proc /sys /dev /run /tmp /var /root\n\
             mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev\n\
             mount -t tmpfs -o size=90% tmp /tmp; mount -t tmpfs run /run\n\
             mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
             for module in {modules}; do busybox insmod /modules/$module.ko || echo GUEST NO MODULE $module; done\n\
             ip link set lo up; cd /tmp\n\
             {scratch}{env}{work}",
            scratch = if self.ext4 { ON_EXT4 } else { "" },
            applets = APPLETS.join(" "),
            modules = self.modules.join(" "),
        )
    }

    /// Runs the machine to its end; what was on its console.
    fn boot(&self, kernel: &Path, initrd: &Path, enough: &mut dyn FnMut(&str) -> bool) -> String {
        let seconds = (BOOT_SECONDS + self.seconds).to_string();
        let memory = self.memory_mib.to_string();
        let path = |path: &Path| path.to_str().expect("test paths are UTF-8").to_owned();
        let (kernel, initrd) = (path(kernel), path(initrd));
        let mut args = vec!["--kill-after=5", &seconds, "qemu-system-x86_64", "-accel", "tcg,thread=multi"];
        args.extend([
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            &memory,
            "-nodefaults",
            "-no-user-config",
            "-device",
            "i6300esb",
            "-action",
            "watchdog=reset",
        ]);
        let inject = if self.scene.is_some() {
            " dyad.inject"
        } else {
            args.push("-no-reboot");
            ""
        };
        let words = format!("console=ttyS0 quiet loglevel=1 panic=-1{inject}");
        args.extend(["-display", "none", "-nic", "none", "-serial", "stdio"]);
        args.extend(["-kernel", &kernel, "-initrd", &initrd]);
        args.extend(["-append", &words]);
        streamed("timeout", &args, enough)
    }
}

/// What cargo says of everything that it built.
fn cargo(words: &[&str]) -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let text = stdout("cargo", &program(&cargo, &[words, &["--locked", "--message-format=json"]].concat()));
    text.lines().map(|line| serde_json::from_str(line).expect("cargo's messages are JSON")).collect()
}

/// The library that is made of a crate.
fn library(package: &str) -> PathBuf {
    let files = cargo(&["build", "-p", package]);
    let made = files
        .iter()
        .filter_map(|message| message["filenames"][0].as_str())
        .rfind(|file| file.ends_with(".so"));
    made.unwrap_or_else(|| panic!("cargo made no library of {package}")).into()
}

/// Runs a program to its end, or until `enough` is true of a line, and prints what it writes as it comes; all of it.
#[allow(clippy::disallowed_methods, reason = "the guest's console is read while it runs")]
fn streamed(name: &str, args: &[&str], enough: &mut dyn FnMut(&str) -> bool) -> String {
    let mut child = Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{name} (needed by this test) cannot be started: {e}"));
    let mut output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    let (mut all, mut line) = (String::new(), Vec::new());
    while output.read_until(b'\n', &mut line).expect("a pipe can be read") > 0 {
        let text = String::from_utf8_lossy(&line).replace('\r', "");
        print!("{text}");
        all += &text;
        line.clear();
        if enough(&text) {
            // `timeout` hands it on.
            stdout("kill", &program("kill", &[&child.id().to_string()]));
        }
    }
    let status = child.wait().expect("the program can be waited for");
    println!("{name}: {status}");
    all
}

/// The directory with the unpacked packages.
fn packages() -> PathBuf {
    let dyad = dyad();
    let mut args = vec!["tools"];
    args.extend(PACKAGES);
    let output = program(dyad.to_str().expect("test paths are UTF-8"), &args);
    PathBuf::from(stdout("dyad tools", &output).trim())
}

/// The one file below a directory with this name; a `*` at the end stands for anything.
fn find(directory: &Path, name: &str) -> PathBuf {
    let matches = |file: &OsStr| match name.strip_suffix('*') {
        Some(start) => file.as_bytes().starts_with(start.as_bytes()),
        None => file.as_bytes() == name.as_bytes(),
    };
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
            let entry = entry.expect("a directory can be read");
            if entry.file_type().expect("a file has a type").is_dir() {
                directories.push(entry.path());
            } else if matches(&entry.file_name()) {
                return entry.path();
            }
        }
    }
    panic!("the kernel's package has no {name}");
}

/// The packages' programs and libraries, without what only an installed system needs.
fn system(packages: &Path) -> Tree {
    let mut tree = Tree::new(0);
    for name in ["bin", "lib", "lib64", "sbin"] {
        add(&mut tree, format!("/{name}").as_bytes(), 0o777, Kind::Symlink(format!("usr/{name}").into()));
    }
    for name in DIRECTORIES {
        copy(&mut tree, packages, Path::new(name));
    }
    tree
}

fn copy(tree: &mut Tree, packages: &Path, name: &Path) {
    let from = packages.join(name);
    let to = Path::new("/").join(name);
    let to = to.as_os_str().as_bytes();
    let metadata = fs::symlink_metadata(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    if metadata.is_symlink() {
        let target = fs::read_link(&from).expect("a link can be read");
        add(tree, to, 0o777, Kind::Symlink(target.as_os_str().as_bytes().to_vec()));
    } else if metadata.is_dir() {
        for entry in fs::read_dir(&from).expect("a directory can be read") {
            copy(tree, packages, &name.join(entry.expect("a directory can be read").file_name()));
        }
    } else {
        add_file(tree, to, &from);
    }
}

fn add_file(tree: &mut Tree, path: &[u8], from: &Path) {
    let content = fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    let mode = fs::metadata(from).expect("it was read").permissions().mode();
    add(tree, path, if mode & 0o100 == 0 { 0o644 } else { 0o755 }, Kind::File(Bytes::from(content)));
}

/// Adds a path, and the directories above it where they are missing.
fn add(tree: &mut Tree, path: &[u8], mode: u16, kind: Kind) {
    let above = dyad_formats::tree::parent(path).to_vec();
    if tree.get(&above).is_none() {
        add(tree, &above, 0o755, Kind::Dir);
    }
    let meta = Meta { mode, ..Meta::default() };
    tree.insert(path, Inode { meta, kind, origin: Arc::from("test") }).expect("the path is new");
}
