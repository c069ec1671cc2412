//! `init` as PID 1 of a machine, not of namespaces. tests/vm boots a guest whose first program runs `inside_layout`, which
//! writes an image's table with the scene that `DYAD_SCENE` names, and then becomes `init`; the scene runs as a service.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use dyad_api::control::{Answer, BootInfo, Call, Fault, ServiceState, Shutdown};
use dyad_spec::compiled::{Restart, Service};
use rustix::time::{ClockId, clock_gettime};

use crate::support::{Client, Container, image, pause, service, wait_for};
use crate::{faults, hostile};

/// What a machine that was reset says of itself.
const WATCHDOG: &str = "the hardware watchdog reset the machine";
/// Longer than any shutdown.
const FOR_EVER_MS: u64 = 1_000_000;
/// A volume that answers nothing any more under a mounted file system, a file system that somebody is in, and one on DRBD
/// with frozen I/O; a process hangs in each of the three.
const STUCK: &str = r#"
set -e
for n in 0 1 2; do truncate -s 64M /tmp/disk$n; losetup /dev/loop$n /tmp/disk$n; done
mkdir -p /mnt/dm /mnt/busy /mnt/drbd
dmsetup create stuck --table "0 131072 linear /dev/loop0 0"
dmsetup mknodes stuck
mkfs.ext4 -q /dev/mapper/stuck; mount /dev/mapper/stuck /mnt/dm
mkfs.ext4 -q /dev/loop1; mount /dev/loop1 /mnt/busy
export PATH=$PATH:/usr/lib/drbd
drbdmeta --force 0 v08 /dev/loop2 internal create-md >/dev/null 2>&1
drbdsetup-84 new-resource r0
drbdsetup-84 new-minor r0 0 0
drbdsetup-84 attach 0 /dev/loop2 /dev/loop2 internal
drbdsetup-84 primary 0 --force
[ -b /dev/drbd0 ] || mknod /dev/drbd0 b 147 0
mkfs.ext4 -q /dev/drbd0; mount /dev/drbd0 /mnt/drbd
echo before > /mnt/dm/file; echo before > /mnt/drbd/file; sync
dmsetup suspend --nolockfs stuck
drbdsetup-84 suspend-io 0
cd /mnt/busy
dd if=/dev/zero of=/mnt/dm/file bs=1M count=8 conv=fsync 2>/dev/null &
dd if=/dev/zero of=/mnt/drbd/file bs=1M count=8 conv=fsync 2>/dev/null &
sleep 1
"#;

fn now_ms(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn inside_layout() {
    let scene = std::env::var("DYAD_SCENE").expect("the guest's first program names a scene");
    let program = std::env::current_exe().expect("this program");
    let script = format!(
        "export PATH=/usr/sbin:/usr/bin TMPDIR=/tmp; exec >/dev/ttyS0 2>&1; \
         '{}' --ignored --exact machine::inside_{scene} --nocapture; status=$?; echo; echo GUEST END $status; poweroff -f",
        program.display()
    );
    let mut test = service("test", &script);
    test.restart = Restart::Never;
    test.env.extend(std::env::var("DYAD_SOAK").ok().map(|rounds| ("DYAD_SOAK".to_owned(), rounds)));
    let mut services = others();
    if scene == "faults" {
        services.extend(faults::services());
    }
    services.push(test);
    fs::create_dir_all("/usr/lib/dyad").expect("the guest's root can be written");
    fs::copy(env!("CARGO_BIN_EXE_init"), "/usr/lib/dyad/init").expect("init is in the guest");
    symlink(&program, "/usr/lib/dyad/alive").expect("the guest's root can be written");
    fs::write("/usr/lib/dyad/image.bin", image(services).encode()).expect("the guest's root can be written");
}

fn others() -> Vec<Service> {
    vec![
        service("plain", "exec /bin/busybox sleep 100000"),
        service("stubborn", "trap '' TERM INT HUP; while :; do /bin/busybox sleep 1000; done"),
    ]
}

fn boot_info(client: &mut Client) -> BootInfo {
    match client.ask(Call::BootInfo) {
        Answer::BootInfo(info) => info,
        other => panic!("{other:?}"),
    }
}

fn said(client: &mut Client, text: &str) -> Option<()> {
    match client.ask(Call::Log) {
        Answer::Log(lines) => String::from_utf8_lossy(&lines).contains(text).then_some(()),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn inside_faults() {
    assert!(!Path::new("/run/systemd/container").exists(), "this is a machine");
    faults::storm(&Container::machine());
    hostile::no_memory(&Container::machine(), &mut Client::connect(&Container::machine()));
}

/// The first boot freezes PID 1; the one after it is told who ended that.
#[test]
#[ignore = "run in a guest by tests/vm"]
fn inside_frozen() {
    let mut client = Client::connect(&Container::machine());
    wait_for("an armed watchdog", || said(&mut client, "watchdog: armed"));
    let (clock, up) = (now_ms(ClockId::Realtime), now_ms(ClockId::Boottime));
    if boot_info(&mut client).previous.contains(WATCHDOG) {
        println!("began again at {}", clock - up);
        return;
    }
    println!("frozen at {clock}");
    client.ask(Call::Inject { fault: Fault::Freeze, after: 0 });
    // The first thing that it would write down is where it freezes; the answer never comes.
    let answer = client.call(Call::Stop { name: "plain".into() });
    panic!("PID 1 still answers: {answer:?}");
}

/// A shutdown that nothing obeys ends with a reset all the same: the machine boots again and again until its host has seen
/// enough.
#[test]
#[ignore = "run in a guest by tests/vm"]
fn inside_stuck() {
    let mut client = Client::connect(&Container::machine());
    wait_for("stubborn", || (client.service("stubborn").state == ServiceState::Ready).then_some(()));
    #[allow(clippy::disallowed_methods, reason = "a test prepares its machine")]
    let made = Command::new("/bin/busybox").args(["sh", "-c", STUCK]).status().expect("a shell");
    assert!(made.success(), "{made}");
    println!("shutdown asked at {}", now_ms(ClockId::Boottime));
    client.ask(Call::Shutdown { how: Shutdown::Reboot, reason: "the test is over".into() });
    pause(FOR_EVER_MS);
}
