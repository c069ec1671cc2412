//! A lab from `up` to `down` as an ordinary user, with the firmware's own shell as the guest: it has a network stack that
//! answers pings, and boots in seconds where a kernel would take a minute under translation.

#![allow(clippy::disallowed_methods, reason = "a test drives programs and waits for them")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dyad_formats::fat;
use dyad_gpt::{Guid, Partition, Table, types};
use support::{User, wait};

/// Firmware and its shell under translation, on a host that does other things too.
const BOOT: Duration = Duration::from_secs(240);

/// What the guest does: its first NIC gets the address that the lab's host pings.
const STARTUP: &str = "@echo -off\r\n\
    connect -r\r\n\
    ifconfig -s eth0 static 10.77.0.11 255.255.255.0 10.77.0.1\r\n";

/// A lab with the firmware's shell as the guest.
trait Shell {
    fn up(&self, state: &str, image: &Path);
    fn pings(&self, state: &str) -> bool;
    fn wait_for_ping(&self, state: &str);
    fn power(&self, state: &str) -> String;
}

impl Shell for User {
    fn up(&self, state: &str, image: &Path) {
        let image = image.to_str().unwrap();
        let args = ["up", "--image", image, "--no-site", "--no-wait", "--accel", "tcg", "--nodes", "1"];
        self.ok(state, &args);
    }

    fn pings(&self, state: &str) -> bool {
        self.run(state, &["exec", "--", "ping", "-c", "1", "-W", "2", "10.77.0.11"]).status.success()
    }

    fn wait_for_ping(&self, state: &str) {
        wait(&format!("{state} answers pings"), BOOT, || self.pings(state));
    }

    fn power(&self, state: &str) -> String {
        let status: serde_json::Value = serde_json::from_str(&self.ok(state, &["status", "--json"])).unwrap();
        assert_eq!(status["protection"], "DOWN", "a guest without a supervisor serves nothing");
        status["nodes"][0]["power"].as_str().unwrap().to_owned()
    }
}

fn image(path: &Path) {
    const MIB: u64 = 1 << 20;
    let options = fat::Options {
        sector_size: 512,
        bytes: 40 * MIB,
        volume_id: 1,
        label: "ESP".into(),
        timestamp: fat::Timestamp::from_unix(0),
    };
    let esp = fat::write(&options, &[("startup.nsh".into(), STARTUP.into())]).unwrap();
    let mut table = Table::new(512, 64 * 2048, Guid::from_u128(1)).unwrap();
    let (type_guid, guid, name) = (types::ESP, Guid::from_u128(2), "esp".to_owned());
    let partition = Partition { type_guid, guid, first_lba: 0, last_lba: 0, attributes: 0, name };
    table.add(1, Some(40 * MIB), partition).unwrap();
    let (offset, _) = table.byte_range(1).unwrap();
    let encoded = table.encode();
    let file = fs::File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&encoded.head, 0).unwrap();
    file.write_all_at(&encoded.tail, encoded.tail_offset).unwrap();
    esp.extents.iter().for_each(|(at, bytes)| file.write_all_at(bytes, offset + at).unwrap());
}

#[test]
fn from_up_to_down() {
    let user = User::ordinary();
    let disk = user.home.path().join("image.raw");
    image(&disk);
    assert!(user.refused("one", &["status"]).contains("no lab is up"));
    user.up("one", &disk);
    user.wait_for_ping("one");
    reaches_only_its_own_network(&user);
    cuts_stop_frames(&user);
    pauses_stop_guests(&user);
    two_labs_at_once(&user, &disk);
    killed_nodes_start_again(&user);
    a_killed_lab_leaves_nothing_and_comes_up_again(&user, &disk);
    user.ok("one", &["down"]);
    assert_eq!(user.processes("one"), [], "down leaves no process");
    assert!(!user.state("one").exists(), "down removes the state directory");
}

fn reaches_only_its_own_network(user: &User) {
    let addresses = user.ok("one", &["exec", "--", "ip", "-brief", "address"]);
    assert!(addresses.contains("10.77.0.1/24") && addresses.contains("fd77::1/64"), "{addresses}");
    assert!(addresses.lines().all(|l| l.starts_with("lo") || l.starts_with("lab0")), "{addresses}");
    let here = Command::new("ip").args(["-brief", "address"]).output().unwrap();
    assert!(
        !String::from_utf8_lossy(&here.stdout).contains("10.77.0.1/24"),
        "the host's own network is untouched"
    );
    let directory = user.ok("one", &["exec", "pwd"]);
    assert_eq!(Path::new(directory.trim()), std::env::current_dir().unwrap(), "files are the caller's");
    let code = user.run("one", &["exec", "--", "sh", "-c", "exit 7"]).status.code();
    assert_eq!(code, Some(7), "the command's exit code is handed through");
}

fn cuts_stop_frames(user: &User) {
    for direction in [["host", "node-a"], ["node-a", "host"]] {
        user.ok("one", &["cut", direction[0], direction[1], "--one-way"]);
        assert!(!user.pings("one"), "{direction:?} is cut");
        user.ok("one", &["heal", direction[0], direction[1]]);
        user.wait_for_ping("one");
    }
    user.ok("one", &["cut", "node-a", "host"]);
    assert!(!user.pings("one"));
    user.ok("one", &["heal"]);
    user.wait_for_ping("one");
    assert!(user.refused("one", &["cut", "node-a", "node-z"]).contains("node-a, host"));
    assert!(user.refused("one", &["cut", "node-a", "node-a"]).contains("itself"));
}

fn pauses_stop_guests(user: &User) {
    for (args, power) in
        [(vec!["pause", "node-a"], "paused"), (vec!["pause", "node-a", "--stop-clock"], "clock-stopped")]
    {
        user.ok("one", &args);
        assert_eq!(user.power("one"), power);
        assert!(!user.pings("one"));
        assert!(user.refused("one", &["stop", "node-a"]).contains("resume"));
        user.ok("one", &["resume", "node-a"]);
        user.wait_for_ping("one");
    }
    assert!(user.refused("one", &["resume", "node-a"]).contains("not paused"));
}

fn two_labs_at_once(user: &User, disk: &Path) {
    let deep = format!("{}/{}", "d".repeat(90), "e".repeat(90));
    user.up(&deep, disk);
    assert_eq!((user.power(&deep).as_str(), user.power("one").as_str()), ("on", "on"));
    assert!(user.pings("one") && !user.pings(&deep), "the second lab has a network of its own");
    user.ok(&deep, &["down"]);
    assert_eq!(user.processes(&deep), []);
    assert_eq!(user.power("one"), "on");
}

fn killed_nodes_start_again(user: &User) {
    user.ok("one", &["kill", "node-a"]);
    assert_eq!(user.power("one"), "off");
    assert!(user.refused("one", &["kill", "node-a"]).contains("off"));
    assert!(user.refused("one", &["kill", "node-z"]).contains("there is node-a"));
    user.ok("one", &["start", "node-a"]);
    assert!(user.refused("one", &["start", "node-a"]).contains("running already"));
    user.wait_for_ping("one");
    assert!(user.ok("one", &["logs", "node-a"]).contains("UEFI Interactive Shell"));
}

fn a_killed_lab_leaves_nothing_and_comes_up_again(user: &User, disk: &Path) {
    let before = user.processes("one");
    let daemon = before.iter().find(|(_, command)| command.contains("\0daemon\0")).unwrap().0;
    assert!(before.len() > 1, "the daemon and its machine");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait("nothing is left of a killed lab", Duration::from_secs(10), || user.processes("one").is_empty());
    assert!(user.refused("one", &["status"]).contains("no lab is up"));
    user.up("one", disk);
    user.wait_for_ping("one");
}

#[test]
fn a_lab_whose_up_dies_is_ended() {
    let user = User::ordinary();
    let disk = user.home.path().join("image.raw");
    image(&disk);
    let state = user.state("leash");
    let mut up = Command::new(&user.program)
        .args(["lab", "--state"])
        .arg(&state)
        .args(["up", "--no-site", "--accel", "tcg", "--nodes", "1", "--image"])
        .arg(&disk)
        .spawn()
        .unwrap();
    // It waits for SQL, which this guest never answers.
    wait("the machine runs", Duration::from_secs(30), || {
        user.processes("leash").iter().any(|(_, command)| command.contains("qemu-system"))
    });
    up.kill().unwrap();
    up.wait().unwrap();
    wait("the lab ends with its up", Duration::from_secs(10), || user.processes("leash").is_empty());
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    let user = User::ordinary();
    let site = user.home.path().join("site.toml");
    fs::write(&site, "cluster = \"x\"\nprofil = \"wan\"\n").unwrap();
    let text = user.refused("bad", &["up", "--image", "/nonexistent", "--site", site.to_str().unwrap()]);
    assert!(text.contains("profil") && text.contains("site.toml"), "{text}");
    assert!(!user.state("bad").exists());
    let text = user.refused("bad", &["up", "--image", "/nonexistent.raw", "--accel", "tcg", "--no-wait"]);
    assert!(text.contains("/nonexistent.raw"), "{text}");
    assert_eq!(user.run("bad", &["up", "--nodes", "0"]).status.code(), Some(2), "usage");
}
