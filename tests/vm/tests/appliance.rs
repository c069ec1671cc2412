//! The full appliance on two machines: modules, replicated volumes, bonds, and a virtual machine inside one of them.
//!
//! One boot serves all proofs. What the guests said is kept in cargo's temporary directory of this test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dyad_formats::cpio;
use dyad_formats::tree::{Inode, Kind, Meta, Tree};
use dyad_vm_tests::boot::wait;
use dyad_vm_tests::{Lab, program, root, stdout, with_test_agent};
use serde_json::Value;

mod drbd;

const NODES: [&str; 2] = ["node-a", "node-b"];
/// Modules of which each has its own reason to be there: a device, a table of the image, or the initrd.
const AT_BOOT: &[&str] = &[
    "drbd",
    "kvm",
    "kvm_amd",
    "bonding",
    "dm_mod",
    "dm_verity",
    "tun",
    "vhost_net",
    "virtio_net",
    "i6300esb",
];
/// The line of `nested/init.c`.
const NESTED_LINE: &str = "nested: a guest of the appliance speaks";
/// Emulation in an emulation: a kernel needs half a minute on two free processors.
const NESTED_MS: &str = "180000";
const NESTED_TRIES: u32 = 5;
/// For a standby to show what its primary has committed.
const REPLAY: Duration = Duration::from_secs(120);

/// The configuration of the replicated volume: minor numbers instead of names that udev would make.
const RESOURCE: &str = "global { usage-count no; }
resource r0 {
  net { protocol C; }
  device minor 0;
  disk /dev/mapper/dyad-proof;
  meta-disk internal;
  on node-a { address 10.77.1.11:7789; }
  on node-b { address 10.77.1.12:7789; }
}";

#[test]
fn the_appliance_does_on_two_machines_what_it_is_for() {
    let dir = tempfile::TempDir::new().expect("a temporary directory can be made");
    let definition = with_test_agent("appliance", dir.path());
    // TCG everywhere: its processor has virtualisation of its own, which a host's may not pass on.
    let options = ["--accel", "tcg", "--memory", "1280"];
    let lab = timed("both machines answer SQL", || Lab::up_with(&definition, 2, &options));
    let proofs = Proofs { lab, kept: kept() };
    for node in NODES {
        proofs.keep(&format!("{node}.console"), &proofs.lab.console(node));
    }
    timed("PostgreSQL keeps what it is told", || proofs.postgresql());
    timed("modules load at boot and on demand", || proofs.modules());
    timed("a volume is replicated", || proofs.replication());
    // Minutes on emulated machines: `cargo xtask soak drbd`. Every run holds the model against the record (dyad-sim).
    if ["DYAD_SOAK", "UPDATE_GOLDEN"].iter().any(|name| std::env::var_os(name).is_some()) {
        timed("the model of a volume is true to DRBD", || {
            proofs.keep("drbd.seen", &drbd::calibrate(&proofs.lab))
        });
    }
    timed("bonds lose a member and no connection", || proofs.bonds());
    timed("devices of virtual machines are theirs alone", || proofs.devices());
    // An emulated machine in an emulated machine needs all that the host has; starved for 30 s, the watchdog resets.
    proofs.lab.ok(&["stop", "node-b"]);
    timed("a guest in a guest prints a line", || proofs.nested());
}

/// Says how long a proof took.
#[allow(clippy::disallowed_methods, reason = "the tests' report names the time of each proof")]
fn timed<T>(what: &str, proof: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = proof();
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    result
}

/// An empty directory for the guests' logs.
fn kept() -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("appliance");
    // Absent on the first run; what cannot be removed fails below.
    let _ = fs::remove_dir_all(&kept);
    fs::create_dir_all(&kept).expect("the directory for logs can be made");
    println!("guest logs: {}", kept.display());
    kept
}

struct Proofs {
    lab: Lab,
    kept: PathBuf,
}

impl Proofs {
    fn keep(&self, name: &str, text: &str) {
        fs::write(self.kept.join(name), text).expect("a log can be written");
    }

    /// Runs a shell text that must succeed.
    fn sh(&self, node: &str, text: &str) -> String {
        let script = format!("export PATH=/usr/sbin:/usr/bin; {text}");
        self.lab.guest_ok(node, &["/bin/sh", "-ec", &script])
    }

    /// Waits in the guest until a file has the text; the agent's deadline ends a wait that is in vain.
    fn until(&self, node: &str, file: &str, text: &str) {
        self.sh(
            node,
            &format!("while :; do case $(cat {file}) in *'{text}'*) exit 0;; esac; sleep 0.5; done"),
        );
    }

    fn postgresql(&self) {
        self.lab.sql("create table proof (node text); insert into proof values ('kept')");
        for node in NODES {
            let ask = || self.lab.run(&["psql", "--node", node, "--", "-XAtqc", "select node from proof"]);
            wait(&format!("{node} has the row"), REPLAY, || ask().stdout == b"kept\n");
        }
    }

    fn modules(&self) {
        for node in NODES {
            // The processor's modules are large and may still be linking when PostgreSQL answers.
            self.until(node, "/proc/modules", "kvm_amd ");
            let text = self.sh(node, "cat /proc/modules");
            self.keep(&format!("{node}.modules"), &text);
            for module in AT_BOOT {
                assert!(loaded(&text, module), "{node} has not loaded {module}:\n{text}");
            }
            // The kernel asks for the packet filter's parts by alias, LVM for its target by name.
            let rules = "nft 'table inet proof { set vip { type ipv4_addr; flags timeout; }; chain in { \
                         type filter hook input priority 0; ip daddr @vip ct state new limit rate 9/second log \
                         reject with tcp reset; }; }'; nft 'add element inet proof vip { 192.0.2.1 timeout 60s }'; \
                         nft list ruleset; nft delete table inet proof";
            let rules = self.sh(node, rules);
            assert!(
                rules.contains("192.0.2.1 timeout") && rules.contains("reject with tcp reset"),
                "{rules}"
            );
            self.sh(node, "lvcreate -qq -y -Wn -Zn -L 32m -n proof dyad");
            let volumes =
                self.sh(node, "lvcreate -qq -y -s -L 8m -n snap dyad/proof; lvs; lvremove -qq -fy dyad/snap");
            assert!(volumes.contains("snap"), "{volumes}");
            let text = self.sh(node, "cat /proc/modules");
            for module in ["nf_tables", "nft_ct", "nft_limit", "nft_reject_inet", "dm_snapshot"] {
                assert!(loaded(&text, module), "{node} has not loaded {module}:\n{text}");
            }
        }
    }

    fn replication(&self) {
        let admin = "drbdadm -c /run/drbd/proof.res";
        for node in NODES {
            let config = format!("echo '{RESOURCE}' > /run/drbd/proof.res");
            let clean = "dd if=/dev/zero of=/dev/mapper/dyad-proof bs=1M count=32 oflag=direct 2>/dev/null";
            self.sh(node, &format!("{config}; {clean}; {admin} create-md --force r0; {admin} up r0"));
        }
        self.until(
            "node-a",
            "/proc/drbd",
            "cs:Connected ro:Secondary/Secondary ds:Inconsistent/Inconsistent",
        );
        self.sh("node-a", &format!("{admin} primary --force r0"));
        self.until("node-a", "/proc/drbd", "ro:Primary/Secondary ds:UpToDate/UpToDate");
        // A file system and a file in it, written through the block device: the image has no mount program.
        let write = "mke2fs -q -t ext4 /dev/drbd0; echo replicated > /tmp/proof; \
                     debugfs -w -R 'write /tmp/proof proof' /dev/drbd0 2>&1; debugfs -R 'cat proof' /dev/drbd0";
        let written = self.sh("node-a", write);
        assert!(written.contains("replicated"), "{written}");
        let status = self.sh("node-a", &format!("drbdsetup status; cat /proc/drbd; {admin} secondary r0"));
        self.keep("node-a.drbd", &status);
        let read =
            format!("{admin} primary r0; fsck.ext4 -fn /dev/drbd0 2>&1; debugfs -R 'cat proof' /dev/drbd0");
        let read = self.sh("node-b", &read);
        assert!(read.contains("replicated") && read.contains("/dev/drbd0: 12/"), "{read}");
        let status = self.sh("node-b", "cat /proc/drbd");
        assert!(status.contains("ro:Primary/Secondary ds:UpToDate/UpToDate"), "{status}");
        self.keep("node-b.drbd", &format!("{status}{read}"));
    }

    fn bonds(&self) {
        for (node, partner) in [("node-a", "02:64:79:00:0b:02"), ("node-b", "02:64:79:00:0a:02")] {
            self.until(node, "/proc/net/bonding/bond1", "Number of ports: 2");
            let bond = self.sh(node, "cat /proc/net/bonding/bond1");
            self.keep(&format!("{node}.bond1"), &bond);
            assert!(bond.contains("IEEE 802.3ad") && bond.contains(partner), "{bond}");
            assert_eq!(bond.matches("Slave Interface: repl").count(), 2, "{bond}");
        }
        // The supervisor takes a member that somebody took down up again, after a while.
        let lacp = self.losing("repl0", "10.77.1.12");
        assert!(lacp.contains("Link Failure Count: 1"), "{lacp}");
        self.until("node-a", "/sys/class/net/repl0/bonding_slave/mii_status", "up");
        self.until("node-a", "/proc/net/bonding/bond1", "Number of ports: 2");
        let backup = self.losing("lan0", "10.77.0.12");
        assert!(backup.contains("Currently Active Slave: lan1"), "{backup}");
        let answer = self.lab.ok(&["psql", "--node", "node-a", "--", "-XAtqc", "select 1"]);
        assert_eq!(answer.trim(), "1", "the lab reaches node-a through its other port");
        self.until("node-a", "/sys/class/net/lan0/bonding_slave/mii_status", "up");
    }

    /// Takes a link of node-a down under a ping to `address`, which must go on; how the bond was a second later.
    fn losing(&self, link: &str, address: &str) -> String {
        let text = format!(
            "ping -n -i 0.2 -c 60 {address} > /tmp/ping & sleep 2; ip link set {link} down; sleep 1; \
             cat /proc/net/bonding/$(basename $(readlink \
             /sys/class/net/{link}/master)); wait; cat /tmp/ping"
        );
        let said = self.sh("node-a", &text);
        self.keep(&format!("node-a.without-{link}"), &said);
        let last = said.lines().rfind(|l| l.contains("icmp_seq=")).unwrap_or_default();
        assert!(last.contains("icmp_seq=60 "), "the ping did not go on:\n{said}");
        // LACP with fast rate notices a silent member within three seconds: fifteen of these pings, and as many of slack.
        let answers = said.lines().filter(|l| l.contains("icmp_seq=")).count();
        assert!(answers >= 30, "{answers} of 60 pings were answered:\n{said}");
        said
    }

    fn nested(&self) {
        let (offset, size) = self.kernel_in_uki();
        let initrd: String = initrd().iter().map(|byte| format!("{byte:02X}")).collect();
        self.sh(
            "node-a",
            &format!(
                "dd if=$(echo /efi/EFI/Linux/*.efi) of=/run/vm/kernel bs=1M iflag=skip_bytes,count_bytes \
                 skip={offset} count={size} 2>/dev/null; echo {initrd} | basenc --base16 -d > /run/vm/initrd; \
                 chown vm:vm /run/vm/kernel /run/vm/initrd"
            ),
        );
        let qemu = "id; exec qemu-system-x86_64 -accel kvm -cpu host -machine microvm -m 128 -nodefaults \
                    -no-user-config -display none -no-reboot -serial stdio -kernel /run/vm/kernel \
                    -initrd /run/vm/initrd -append 'console=ttyS0 quiet panic=-1' 2>&1";
        let argv = ["/usr/sbin/chroot", "--userspec=vm:vm", "/", "/bin/sh", "-c", qemu];
        let mut args = vec!["ctl", "node-a", "--", "exec", "--json", "--deadline-ms", NESTED_MS, "--"];
        args.extend(argv);
        // The processor that QEMU emulates sometimes leaves a machine inside its machine standing still, and resets it in the
        // middle of a line about once in ten: another try tells.
        let attempt = || {
            let answer: Value = serde_json::from_slice(&self.lab.run(&args).stdout).unwrap_or_default();
            self.keep("nested.console", answer["stdout"].as_str().unwrap_or_default());
            answer
        };
        let spoke = |answer: &Value| answer["stdout"].as_str().is_some_and(|said| said.contains(NESTED_LINE));
        let answer = (1..NESTED_TRIES).map(|_| attempt()).find(spoke).unwrap_or_else(attempt);
        let said = answer["stdout"].as_str().unwrap_or_default();
        assert!(said.contains("uid=203(vm) gid=203(vm)"), "{answer}");
        assert!(said.contains(NESTED_LINE), "{answer}");
        assert_eq!(answer["status"], 0, "the nested machine powered itself off: {answer}");
        println!("{}", said.trim());
    }

    fn devices(&self) {
        for node in NODES {
            let owners =
                self.sh(node, "stat -c '%a %U:%G %n' /dev/kvm /dev/vhost-net /dev/net/tun /dev/null");
            let expected = "660 root:kvm /dev/kvm\n660 root:kvm /dev/vhost-net\n660 root:kvm /dev/net/tun\n\
                            666 root:root /dev/null\n";
            assert_eq!(owners, expected, "{node}");
        }
    }

    /// Where the kernel of the running image lies in its UKI: (offset, bytes).
    fn kernel_in_uki(&self) -> (u32, u32) {
        let text = self.sh("node-a", "od -An -v -tx1 -N 4096 $(echo /efi/EFI/Linux/*.efi)");
        let head: Vec<u8> = text
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).expect("od prints hexadecimal bytes"))
            .collect();
        let at = head.windows(8).position(|w| w == b".linux\0\0").expect("the UKI has a section .linux");
        // The section header of PE: name, virtual size, address, size in the file, offset in the file.
        let word = |field: usize| {
            let bytes = head[at + field..].first_chunk().expect("the header is whole");
            u32::from_le_bytes(*bytes)
        };
        (word(20), word(8))
    }
}

fn loaded(modules: &str, name: &str) -> bool {
    modules.lines().any(|line| line.split(' ').next() == Some(name))
}

/// A cpio archive with `nested/init.c`, compiled, as its only program.
fn initrd() -> Vec<u8> {
    let dir = tempfile::TempDir::new().expect("a temporary directory can be made");
    let out = dir.path().join("init");
    let source = root().join("tests/vm/tests/nested/init.c");
    let path = |path: &Path| path.to_str().expect("test paths are UTF-8").to_owned();
    let flags = "-static -nostdlib -Os -fno-stack-protector -fno-asynchronous-unwind-tables -s \
                 -Wl,--build-id=none,-z,norelro,-z,noseparate-code -o";
    let mut args: Vec<&str> = flags.split_whitespace().collect();
    let (out, source) = (path(&out), path(&source));
    args.extend([out.as_str(), source.as_str()]);
    stdout("cc", &program("cc", &args));
    let content = fs::read(&out).expect("the compiler's output can be read");
    let mut tree = Tree::new(0);
    let meta = Meta { mode: 0o755, ..Meta::default() };
    let inode = Inode { meta, kind: Kind::File(content.into()), origin: Arc::from("test") };
    tree.insert(b"/init", inode).expect("the path is new");
    let mut archive = Vec::new();
    cpio::write(&tree, &mut archive).expect("the archive can be written");
    archive
}
