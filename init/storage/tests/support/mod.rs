//! A disk as the builder leaves it, and boots of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dyad_gpt::{Found, Guid, Partition, Table, types};

pub(crate) const MIB: u64 = 1 << 20;

/// A disk in a file behind a loop device.
pub(crate) struct Disk {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) root: Guid,
    pub(crate) device: PathBuf,
}

#[allow(clippy::disallowed_methods, reason = "tests drive outside tools")]
pub(crate) fn command(program: &str) -> Command {
    Command::new(program)
}

pub(crate) fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Disk {
    /// An image as the builder makes it, on a disk of `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create_new(directory.path().join("disk")).unwrap();
        let mut seed = [0; 16];
        File::open("/dev/urandom").unwrap().read_exact_at(&mut seed, 0).unwrap();
        let root = Guid::from_text_order(seed);
        let mut table = Table::new(512, 40 * MIB / 512, Guid::from_u128(1)).unwrap();
        for (number, type_guid, size) in [
            (1, types::ESP, 8 * MIB),
            (2, types::ROOT_X86_64, 20 * MIB),
            (3, types::ROOT_X86_64_VERITY, 2 * MIB),
        ] {
            let guid = if number == 2 { root } else { Guid::from_u128(0x100 + u128::from(number)) };
            let partition = Partition {
                type_guid,
                guid,
                first_lba: 0,
                last_lba: 0,
                attributes: 0,
                name: "lab_1.0".to_owned(),
            };
            table.add(number, Some(size), partition).unwrap();
        }
        let encoded = table.encode();
        file.write_all_at(&encoded.head, 0).unwrap();
        file.write_all_at(&encoded.tail, encoded.tail_offset).unwrap();
        file.set_len(bytes).unwrap();
        let mut disk = Self { directory, root, device: PathBuf::new() };
        disk.attach();
        disk
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    pub(crate) fn attach(&mut self) {
        let mut losetup = command("/usr/sbin/losetup");
        let out = losetup.args(["--find", "--show", "--partscan"]).arg(self.file()).output().unwrap();
        self.device = PathBuf::from(ok(out).trim_end());
    }

    /// The kernel forgets what it was told about the disk, as over a reboot.
    pub(crate) fn reboot(&mut self) {
        self.detach();
        self.attach();
    }

    pub(crate) fn detach(&self) {
        // Volumes that a cut-off run left active would outlive the disk. Namespaces are taken down in the
        // background, so the last mount may go a moment later: dmsetup tries again for some seconds.
        if Path::new("/dev/mapper/control").exists() {
            for volume in ["dyad-pg"] {
                if command("/usr/sbin/dmsetup").args(["info", volume]).output().unwrap().status.success() {
                    ok(command("/usr/sbin/dmsetup").args(["remove", "--retry", volume]).output().unwrap());
                }
            }
            // LVM's links to them; a new boot starts with a new /dev.
            let _ = fs::remove_dir_all("/dev/dyad");
        }
        ok(command("/usr/sbin/losetup").arg("-d").arg(&self.device).output().unwrap());
    }

    pub(crate) fn cmdline(&self) -> String {
        let half: String = self.root.text_order().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("quiet dyad.root={half}{}", "0".repeat(32))
    }

    /// Runs phases in one boot; `cut` kills at the n-th call of a kind.
    pub(crate) fn boot(&self, phases: &str, cut: Option<(&str, u32)>) -> (bool, String) {
        let mut boot = command("/usr/bin/unshare");
        boot.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if let Some((call, count)) = cut {
            boot.args(["/usr/bin/strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            boot.args(["-e", &format!("inject={call}:signal=KILL:when={count}")]);
        }
        let out = boot
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "one_boot", "--ignored", "--nocapture", "--test-threads", "1"])
            .env("DYAD_TEST_PHASES", phases)
            .env("DYAD_TEST_CMDLINE", self.cmdline())
            .env("DYAD_TEST_DIRECTORY", self.directory.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success(), text)
    }

    pub(crate) fn good_boot(&self, phases: &str) -> Vec<String> {
        let (success, text) = self.boot(phases, None);
        assert!(success, "{text}");
        text.lines().filter_map(|line| line.strip_prefix("REPORT ")).map(str::to_owned).collect()
    }

    /// The programs that the boots since the last call ran.
    pub(crate) fn programs(&self) -> Vec<String> {
        let log = self.directory.path().join("log");
        let text = fs::read_to_string(&log).unwrap();
        File::create(&log).unwrap();
        let run = text.lines().filter_map(|line| line.split_once(" run /usr/sbin/"));
        run.map(|(_, words)| words.split(" --config").next().unwrap().trim_end().to_owned()).collect()
    }

    pub(crate) fn found(&self) -> Found {
        let mut file = File::open(self.file()).unwrap();
        let bytes = file.metadata().unwrap().len();
        dyad_gpt::read(&mut file, 512, bytes).unwrap()
    }

    /// Both copies of the table and everything up to the end of slot A.
    pub(crate) fn table_bytes(&self) -> Vec<u8> {
        let file = File::open(self.file()).unwrap();
        let length = file.metadata().unwrap().len();
        let mut bytes = vec![0; 2 * MIB as usize];
        file.read_exact_at(&mut bytes[..MIB as usize], 0).unwrap();
        file.read_exact_at(&mut bytes[MIB as usize..], length - MIB).unwrap();
        bytes
    }

    pub(crate) fn bytes_of(&self, number: u32) -> Vec<u8> {
        let (offset, length) = self.found().table.byte_range(number).unwrap();
        let mut bytes = vec![0; length as usize];
        File::open(self.file()).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// File system UUID and machine id, read by other people's tools.
    pub(crate) fn identity(&self) -> [String; 2] {
        let state = format!("{}p6", self.device.display());
        let header = ok(command("/usr/sbin/dumpe2fs").args(["-h", &state]).output().unwrap());
        let uuid = header.lines().find(|line| line.starts_with("Filesystem UUID:")).unwrap().to_owned();
        let id = ok(command("/usr/sbin/debugfs").args(["-R", "cat machine-id", &state]).output().unwrap());
        assert_eq!(id.trim_end().len(), 32, "{id}");
        [uuid, id]
    }

    pub(crate) fn labels(&self) -> Vec<String> {
        self.found().table.partitions().values().map(|partition| partition.name.clone()).collect()
    }

    /// The whole of what a finished first boot promises, checked by other people's tools.
    pub(crate) fn check(&self, last: &str) {
        assert!(self.found().is_good(), "{:?}", self.found());
        let verdict = ok(command("/usr/sbin/sgdisk").arg("-v").arg(self.file()).output().unwrap());
        assert!(verdict.contains("No problems found"), "{verdict}");
        let state = format!("{}p6", self.device.display());
        ok(command("/usr/sbin/e2fsck").args(["-fn", &state]).output().unwrap());
        assert_eq!(self.labels()[5], "state");
        assert_eq!(self.labels()[6], last);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.detach();
        }
    }
}
