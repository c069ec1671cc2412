//! The life of one node, from the first boot over orderly and sudden ends to a damaged disk: one image, six boots.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_formats::squashfs::{EntryKind, Reader};
use dyad_vm_tests::boot::wait;
use dyad_vm_tests::{Lab, dyad, program, run, stdout, with_test_agent};
use serde_json::{Value, json};

const NODE: &str = "node-a";
/// Read by nothing that runs by itself.
const VICTIM: &str = "/usr/bin/dyad-witness";
/// Directories of the root that other file systems cover.
const COVERED: [&str; 9] = ["/proc", "/sys", "/dev", "/run", "/tmp", "/var", "/state", "/data", "/efi"];
/// Of images/lab.toml: what every path's time is.
const EPOCH: &str = "1767225600";
/// Bytes that one answer of the test agent surely holds.
const ANSWER: usize = 16 * 1024;

#[test]
fn one_node_from_first_boot_to_damage() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::up_with(&with_test_agent("lab", dir.path()), 1, &["--accel", "tcg", "--no-wait"]);
    let first = lab.booted(NODE, "first boot", 0);
    let made = Identity::of(&lab, &first);
    first_boot_tells_what_it_made(&first);
    shapes(&lab);
    assert_eq!(lab.sql("create table kept (n int); insert into kept values (1); select 1"), "1");
    mounted_as_unpacked(&lab, dir.path());
    pauses(&lab);
    journal_of_services(&lab);
    lab.no_errors(NODE, 0);
    stops_in_order(&lab);

    let seen = lab.console(NODE).len();
    lab.ok(&["start", NODE]);
    let second = lab.booted(NODE, "second boot", seen);
    nothing_made_anew(&lab, &made, &second);
    lab.no_errors(NODE, seen);
    assert_eq!(lab.sql("insert into kept values (2); select count(*) from kept"), "2");
    lab.ok(&["kill", NODE]);
    assert_eq!(power(&lab), "off");

    let seen = lab.console(NODE).len();
    lab.ok(&["start", NODE]);
    let third = lab.booted(NODE, "boot after a kill", seen);
    nothing_made_anew(&lab, &made, &third);
    lab.no_errors(NODE, seen);
    assert_eq!(lab.sql("insert into kept values (3); select count(*) from kept"), "3");
    journal_lasts(&lab);

    killed_lab(&lab);
    let root = Root::of(&lab);
    let at = root.middle_of(VICTIM);
    root.flip(at);
    lab.ok(&["up", "--image", root.raw.to_str().unwrap(), "--nodes", "1", "--accel", "tcg"]);
    assert_eq!(lab.sql("select string_agg(n::text, ' ' order by n) from kept"), "1 2 3");
    damage_is_an_error(&lab, &root, at);
    lab.ok(&["stop", NODE]);
    root.flip(at);

    // The squashfs superblock, and the root inode, which is the last one written.
    for (what, at) in [("superblock", 0), ("root inode", root.root_inode())] {
        root.flip(at);
        damage_ends_the_boot(&lab, &root, what);
        root.flip(at);
    }
}

/// What must survive every boot.
#[derive(Debug, PartialEq)]
struct Identity {
    system_identifier: String,
    machine_id: String,
    partitions: Vec<(String, String)>,
}

impl Identity {
    fn of(lab: &Lab, status: &Value) -> Self {
        let inspect = program(dyad().to_str().unwrap(), &["inspect", "--json", disk(lab).to_str().unwrap()]);
        let facts: Value = serde_json::from_str(&stdout("dyad inspect", &inspect)).unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let partitions: Vec<_> = facts["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| (text(&p["name"]), text(&p["partuuid"])))
            .collect();
        assert_eq!(partitions.len(), 7, "{partitions:?}");
        Identity {
            system_identifier: text(&status["node"]["postgresql"]["system_identifier"]),
            machine_id: lab.guest_ok(NODE, &["/bin/cat", "/etc/machine-id"]),
            partitions,
        }
    }
}

fn disk(lab: &Lab) -> PathBuf {
    lab.state().join("nodes").join(NODE).join("disk.raw")
}

fn phases(status: &Value) -> BTreeMap<String, (String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let row = |p: &Value| (text(&p["name"]), (text(&p["state"]), text(&p["note"])));
    status["node"]["phases"].as_array().unwrap().iter().map(row).collect()
}

fn first_boot_tells_what_it_made(status: &Value) {
    let phases = phases(status);
    for (name, note) in [
        ("grow", "new partitions [4, 5, 6, 7]"),
        ("state", "made state on /dev/vda6"),
        ("data", "made data on /dev/vda7; owner of /data/pg"),
    ] {
        let (state, said) = &phases[name];
        assert_eq!(state, "changed", "{name}");
        assert!(said.contains(note), "{name}: {said}");
    }
}

fn nothing_made_anew(lab: &Lab, made: &Identity, status: &Value) {
    let phases = phases(status);
    for name in ["grow", "state", "data", "esp"] {
        assert_eq!(phases[name], ("unchanged".into(), "nothing to do".into()), "{name}");
    }
    assert_eq!(&Identity::of(lab, status), made);
}

fn power(lab: &Lab) -> String {
    let status: Value = serde_json::from_str(&lab.ok(&["status", "--json"])).unwrap();
    status["nodes"][0]["power"].as_str().unwrap().to_owned()
}

fn refused(lab: &Lab, args: &[&str], reason: &str) {
    let output = lab.run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.contains(reason), "{args:?}: {said}");
}

fn shapes(lab: &Lab) {
    let status: Value = serde_json::from_str(&lab.ok(&["status", "--json"])).unwrap();
    assert_eq!(status["protection"], "SINGLE");
    assert!(status["reason"].as_str().unwrap().contains("one node by design"), "{status}");
    let node = &status["nodes"][0];
    assert_eq!(
        *node,
        json!({"name": NODE, "role": "primary", "up": true, "timeline": 1, "lag_bytes": 0, "power": "on", "phase": "init", "cables": []})
    );
    assert_eq!(status["resources"], json!([{"name": "pg/main", "epoch": 0, "mode": "Solo", "holder": NODE}]));
    assert_eq!(status["vips"], json!([]));
    assert!(lab.ok(&["status"]).starts_with("SINGLE: "));

    assert!(lab.ok(&["exec", "--", "ip", "-brief", "address"]).contains("10.77.0.1/24"));
    assert_eq!(lab.run(&["exec", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert!(lab.ok(&["logs", NODE]).contains("dyad: phase data"));
    // A viewer is first shown what was said last; Ctrl-] ends the view.
    lab.talk(&["console", NODE], "dyad: service postgresql: ready", &[0x1d]);
    assert_eq!(
        lab.guest(NODE, &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]),
        (3, "out\n".into(), "err\n".into())
    );
    refused(lab, &["ctl", NODE, "--", "exec", "--", "/bin/false"], "the program ended: exit status 1");
    refused(lab, &["kill", "node-z"], "there is no node \"node-z\" in this lab; there is node-a");
    refused(lab, &["start", NODE], "node-a is running already");
}

fn pauses(lab: &Lab) {
    for (args, word) in
        [(vec!["pause", NODE], "paused"), (vec!["pause", NODE, "--stop-clock"], "clock-stopped")]
    {
        lab.ok(&args);
        assert_eq!(power(lab), word);
        refused(lab, &["stop", NODE], "node-a is paused; `dyad lab resume node-a` first");
        lab.ok(&["resume", NODE]);
        assert_eq!(power(lab), "on");
        assert_eq!(lab.sql("select count(*) from kept"), "1");
    }
}

fn stops_in_order(lab: &Lab) {
    lab.ok(&["stop", NODE]);
    assert_eq!(power(lab), "off");
    let console = lab.console(NODE);
    let at = |text: &str| console.find(text).unwrap_or_else(|| panic!("no {text:?} in {console}"));
    let steps =
        ["shutdown: power off: power button", "service postgresql: stopped", "service journald: stopped"];
    assert!(steps.map(at).is_sorted(), "PostgreSQL goes before the journal");
    assert!(!console.contains("PID 1 runs from its disk"), "it runs from memory: {console}");
    assert!(at("shutdown: complete") < at("reboot: Power down"));
    refused(lab, &["stop", NODE], "node-a is off; `dyad lab start node-a` powers it on");
}

/// What a service writes to its standard output or sends to journald is found under its name, and journald runs with the
/// library that loses no message.
fn journal_of_services(lab: &Lab) {
    for (service, line) in [("postgresql", "database system is ready"), ("supervisor", "PostgreSQL")] {
        let all =
            lab.guest_ok(NODE, &["/usr/bin/journalctl", "-u", service, "-b", "-o", "cat", "--no-pager"]);
        assert!(all.contains(line), "{service} did not log {line:?}:\n{all}");
    }
    let maps = "cat /proc/$(cat /sys/fs/cgroup/system.slice/journald.service/cgroup.procs)/maps";
    let maps = lab.guest_ok(NODE, &["/bin/sh", "-c", maps]);
    assert!(maps.contains("/usr/lib/dyad/dyad_journal.so"), "{maps}");
}

/// The journal of the boots before. Of the one that was killed the disk may have some entries or none; not asked by
/// `--list-boots`, which in systemd 252 fails ("No data available") where the last pages of such a boot are missing.
fn journal_lasts(lab: &Lab) {
    let journalctl = |words: &[&str]| {
        lab.guest_ok(NODE, &[&["/usr/bin/journalctl", "--no-pager", "--quiet"], words].concat())
    };
    let boots = journalctl(&["--field", "_BOOT_ID"]);
    let with_entries = |boot: &&str| !journalctl(&[&format!("_BOOT_ID={boot}"), "--lines", "1"]).is_empty();
    let boots: Vec<&str> = boots.lines().filter(with_entries).collect();
    assert!((2..=3).contains(&boots.len()), "the first one, this one, perhaps the killed one: {boots:?}");
}

/// Processes whose command line names the lab's directory.
fn processes(lab: &Lab) -> Vec<(i32, String)> {
    let state = lab.state().to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let command = |pid: i32| Some((pid, fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?));
    pids.filter_map(command).filter(|(_, c)| c.contains(state)).collect()
}

fn killed_lab(lab: &Lab) {
    let before = processes(lab);
    let daemon =
        before.iter().find(|(_, command)| command.contains("\0daemon\0")).expect("there is a daemon").0;
    assert!(before.len() > 1, "the daemon and its machine: {before:?}");
    stdout("kill", &program("kill", &["-KILL", &daemon.to_string()]));
    // A process that ends loses its command line before its sockets.
    let gone = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    };
    wait("nothing is left of a killed lab", Duration::from_secs(20), || {
        processes(lab).is_empty() && before.iter().all(|(pid, _)| gone(*pid))
    });
    refused(lab, &["status"], "no lab is up");
}

/// The root partition of the node's disk, and the same root of the image.
struct Root {
    raw: PathBuf,
    disk: PathBuf,
    hash: String,
    offset: u64,
    image: Vec<u8>,
}

impl Root {
    fn of(lab: &Lab) -> Self {
        let raw = lab.state().join("image/lab_0.1.0.raw");
        let facts: Value = serde_json::from_str(&stdout(
            "dyad inspect",
            &run(&["inspect", "--json", raw.to_str().unwrap()], &[]),
        ))
        .unwrap();
        let line = facts["boot"][0]["command_line"].as_str().unwrap();
        let hash = line.split(' ').find_map(|word| word.strip_prefix("dyad.root=")).unwrap().to_owned();
        let part = facts["partitions"].as_array().unwrap().iter().find(|p| p["number"] == 2).unwrap();
        let offset = part["offset"].as_u64().unwrap();
        let mut image = vec![0; facts["root"]["bytes"].as_u64().unwrap() as usize];
        File::open(&raw).unwrap().read_exact_at(&mut image, offset).unwrap();
        Root { raw, disk: disk(lab), hash, offset, image }
    }

    /// An offset in the middle of a file's first block, as it is stored.
    fn middle_of(&self, path: &str) -> u64 {
        let mut reader = Reader::open(Cursor::new(&self.image)).unwrap();
        let entry = reader
            .entries()
            .unwrap()
            .into_iter()
            .find(|e| e.path == path.as_bytes())
            .expect("it is in the image");
        let EntryKind::File(blocks) = entry.kind else { panic!("{path} is no file") };
        assert!(blocks.stored_bytes() > 3 * 4096, "{path} has blocks of its own");
        blocks.start() + blocks.stored_bytes() / 2
    }

    /// The metadata block with the root inode.
    fn root_inode(&self) -> u64 {
        let word = |at: usize| u64::from_le_bytes(self.image[at..at + 8].try_into().unwrap());
        let (inode, table) = (word(32), word(64));
        table + (inode >> 16) + 2
    }

    fn flip(&self, at: u64) {
        let file = File::options().read(true).write(true).open(&self.disk).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.offset + at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], self.offset + at).unwrap();
    }

    fn content(&self, path: &str) -> Vec<u8> {
        let mut reader = Reader::open(Cursor::new(&self.image)).unwrap();
        let entry = reader.entries().unwrap().into_iter().find(|e| e.path == path.as_bytes()).unwrap();
        let EntryKind::File(blocks) = entry.kind else { panic!("{path} is no file") };
        let mut out = Vec::new();
        reader.read_file(&blocks, &mut out).unwrap();
        out
    }
}

fn damage_is_an_error(lab: &Lab, root: &Root, at: u64) {
    let (status, _, said) = lab.guest(NODE, &["/bin/sh", "-c", &format!("cat {VICTIM} > /tmp/got")]);
    assert_eq!(status, 1, "{said}");
    assert_eq!(said, format!("cat: {VICTIM}: Input/output error\n"));
    // What came before the error is what the image has there.
    let got: usize = lab.guest_ok(NODE, &["/bin/sh", "-c", "wc -c < /tmp/got"]).trim().parse().unwrap();
    let right = root.content(VICTIM);
    assert!(got < right.len(), "{got} bytes of {}", right.len());
    let prefix = lab.state().join("prefix");
    fs::write(&prefix, &right[..got]).unwrap();
    let sum = |text: String| text.split_whitespace().next().unwrap().to_owned();
    let expected = sum(stdout("sha256sum", &program("sha256sum", &[prefix.to_str().unwrap()])));
    assert_eq!(sum(lab.guest_ok(NODE, &["/usr/bin/sha256sum", "/tmp/got"])), expected);
    let block = format!("data block {} is corrupted", at / 4096);
    let errors = lab.errors(NODE);
    assert!(
        errors.iter().any(|l| l.contains("device-mapper: verity") && l.contains(&block)),
        "{block}: {errors:#?}"
    );
}

fn damage_ends_the_boot(lab: &Lab, root: &Root, what: &str) {
    let seen = lab.console(NODE).len();
    lab.ok(&["start", NODE]);
    let new = || lab.console(NODE)[seen..].to_owned();
    wait(&format!("{what}: the boot stops"), Duration::from_secs(300), || {
        new().contains("the machine resets in")
    });
    lab.ok(&["kill", NODE]);
    let console = new();
    println!("{what}: {}", console.lines().find(|l| l.contains("no root:")).unwrap());
    let told = console.lines().any(|l| l.contains("no root:") && l.contains(&root.hash));
    assert!(told, "the message names the root hash {}:\n{console}", root.hash);
    assert!(console.contains("verity") && console.contains("is corrupted"), "{console}");
    assert!(!console.contains("dyad: service"), "no service starts:\n{console}");
    assert!(!console.contains("dyad: early"), "PID 1 of the root does not start:\n{console}");
}

/// The guest's root against what unsquashfs reads from the same image.
fn mounted_as_unpacked(lab: &Lab, dir: &Path) {
    let root = Root::of(lab);
    let image = dir.join("root.squashfs");
    fs::write(&image, &root.image).unwrap();
    let image = image.to_str().unwrap();
    let tree = dir.join("tree");
    // As an ordinary user it can set no owners, and says so with status 2; the listing has them.
    let unpacked =
        program("unsquashfs", &["-no-progress", "-no-xattrs", "-d", tree.to_str().unwrap(), image]);
    assert!(matches!(unpacked.status.code(), Some(0 | 2)), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let listing =
        stdout("unsquashfs -lln", &program("unsquashfs", &["-no-progress", "-lln", "-d", "", image]));
    // What Dyad replaces is not in it, and nobody can log in from elsewhere.
    for name in [
        "pacemakerd",
        "corosync",
        "pcs",
        "keepalived",
        "patroni",
        "haproxy",
        "etcd",
        "sshd",
        "authorized_keys",
    ] {
        let there = listing.lines().find(|line| line.rsplit('/').next() == Some(name));
        assert_eq!(there, None, "{name} is in the image");
    }
    let mut host: Vec<String> = listing.lines().filter_map(host_line).collect();
    host.sort();

    let script = format!(
        "IFS='\n'; set -f; export QUOTING_STYLE=literal LC_ALL=C
        set -- $(du -axl / | cut -f2-)
        stat -c '%A %u/%g %s %Y %N' \"$@\" > /tmp/stat
        for path; do shift; if [ -f \"$path\" ] && [ ! -L \"$path\" ]; then set -- \"$@\" \"$path\"; fi; done
        sha256sum \"$@\" > /tmp/sums; wc -l < /tmp/stat; wc -l < /tmp/sums; du -axl {} | wc -l",
        "/usr"
    );
    let args = ["ctl", NODE, "--", "exec", "--deadline-ms", "300000", "--", "/bin/sh", "-c", &script];
    println!(
        "paths, files, paths below /usr: {}",
        lab.ok(&args).split_whitespace().collect::<Vec<_>>().join(", ")
    );
    let stats = fetch(lab, "/tmp/stat");
    let mut guest: Vec<String> = stats.lines().filter_map(guest_line).collect();
    guest.sort();
    assert!(guest.len() > 1000, "{} paths", guest.len());
    let only = |a: &[String], b: &[String]| {
        a.iter().filter(|l| b.binary_search(l).is_err()).cloned().collect::<Vec<_>>()
    };
    let (left, right) = (only(&host, &guest), only(&guest, &host));
    assert!(left.is_empty() && right.is_empty(), "unsquashfs: {left:#?}\nguest: {right:#?}");

    let sums = dir.join("sums");
    let text: String = fetch(lab, "/tmp/sums").replace("  /", "  ./");
    assert!(text.lines().count() > 700, "{} files", text.lines().count());
    fs::write(&sums, &text).unwrap();
    let check = format!("cd '{}' && sha256sum --quiet --strict -c '{}'", tree.display(), sums.display());
    stdout("sha256sum -c", &program("sh", &["-c", &check]));
}

fn covered(path: &str) -> bool {
    path.is_empty() || path == "/" || COVERED.iter().any(|c| path == *c || path.starts_with(&format!("{c}/")))
}

/// `-rwxr-xr-x 0/0   123 2026-01-01 00:00 /usr/bin/x` without the time, whose zone is the host's.
fn host_line(line: &str) -> Option<String> {
    let mut words = line.splitn(2, ' ');
    let mode = words.next().filter(|m| m.len() == 10)?;
    let rest = words.next()?.trim_start();
    let (owner, rest) = rest.split_once(' ')?;
    let (size, rest) = rest.trim_start().split_once(' ')?;
    let (_, name) = rest.trim_start().split_at_checked("2026-01-01 00:00 ".len())?;
    let path = name.split(" -> ").next()?;
    (!covered(path)).then(|| format!("{mode} {owner} {size} {name}"))
}

fn guest_line(line: &str) -> Option<String> {
    let words: Vec<&str> = line.splitn(5, ' ').collect();
    let [mode, owner, size, time, name] = words[..] else { panic!("stat wrote {line:?}") };
    let path = name.split(" -> ").next()?;
    if covered(path) {
        return None;
    }
    assert_eq!(time, EPOCH, "{line}");
    Some(format!("{mode} {owner} {size} {name}"))
}

/// A text file of the guest, in parts that fit an answer.
fn fetch(lab: &Lab, path: &str) -> String {
    let mut all = String::new();
    loop {
        let from = format!("+{}", all.len() + 1);
        let read = format!("tail -c {from} {path} | head -c {ANSWER}");
        let part = lab.guest_ok(NODE, &["/bin/sh", "-c", &read]);
        if part.is_empty() {
            return all;
        }
        all += &part;
    }
}
