//! Two networks with machines: a bridge for clients and one for replication in the test's namespace, and a namespace with a
//! card in each for every machine.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dyad_net::frames;
use dyad_spec::Mac;
use dyad_sys::packet::PacketSocket;

/// What is set on every machine of an image (overlay `net`).
const SYSCTLS: [&str; 3] =
    ["net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2", "net.ipv6.conf.all.accept_ra=0"];

/// The bridge's own address.
const BRIDGE: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// The bridge; the test itself has an address on it.
pub(crate) struct Lan {
    machines: Vec<Machine>,
}

/// A machine's network; it begins anew with every power on.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Inner>);

struct Inner {
    at: usize,
    /// Keeps the namespace.
    holder: Mutex<Option<Child>>,
}

fn run(mut command: Command, words: &str) {
    let output = command.args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip(words: &str) {
    run(Command::new("/usr/sbin/ip"), words);
}

impl Lan {
    pub(crate) fn new() -> Self {
        Self::of(2)
    }

    /// With so many machines.
    pub(crate) fn of(machines: usize) -> Self {
        ip("link add lan address 02:00:00:00:00:fe type bridge forward_delay 0");
        ip("address add 10.77.0.254/24 dev lan");
        ip("address add fd77::fe/64 dev lan nodad");
        ip("link set lan up");
        ip("link add repl type bridge forward_delay 0");
        ip("link set repl up");
        let machine = |at| Machine(Arc::new(Inner { at, holder: Mutex::new(None) }));
        let machines: Vec<Machine> = (0..machines).map(machine).collect();
        machines.iter().for_each(Machine::power_on);
        Self { machines }
    }

    pub(crate) fn machine(&self, at: usize) -> Machine {
        self.machines[at].clone()
    }

    /// The first address of a machine.
    pub(crate) fn address(at: usize) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, 1 + u8::try_from(at).unwrap()).into()
    }

    /// A stranger on the clients' network has an address, or has it no more.
    pub(crate) fn squat(&self, address: IpAddr, there: bool) {
        ip(&format!("address {} {address}/32 dev lan", if there { "add" } else { "del" }));
    }

    /// Where machines speak to each other.
    pub(crate) fn replication(at: usize) -> IpAddr {
        Ipv4Addr::new(10, 78, 0, 1 + u8::try_from(at).unwrap()).into()
    }

    /// The address of a machine's card for clients.
    pub(crate) fn mac(at: usize) -> [u8; 6] {
        [2, 0, 0, 0, 0, 1 + u8::try_from(at).unwrap()]
    }
}

impl Machine {
    /// A program in this machine's network.
    pub(crate) fn command(&self, program: &str) -> Command {
        let holder = self.0.holder.lock().unwrap();
        let holder = holder.as_ref().expect("the machine is on").id();
        let mut command = Command::new("/usr/bin/nsenter");
        command.args(["--target", &holder.to_string(), "--net", "--", program]);
        command
    }

    /// Cards without addresses, in networks without rules.
    pub(crate) fn power_on(&self) {
        let mut holder = self.0.holder.lock().unwrap();
        assert!(holder.is_none());
        // It ends with this process, however that ends.
        let mut child = Command::new("/usr/bin/unshare")
            .args(["--net", "--", "/bin/sh", "-c", "echo && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first word comes from inside.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let (at, pid) = (self.0.at, child.id());
        let mac = Lan::mac(at).map(|byte| format!("{byte:02x}")).join(":");
        ip(&format!("link add port{at} type veth peer name lan0 address {mac} netns {pid}"));
        ip(&format!("link set port{at} master lan up"));
        let other = mac.replacen("02", "06", 1);
        ip(&format!("link add repl{at} type veth peer name repl0 address {other} netns {pid}"));
        ip(&format!("link set repl{at} master repl up"));
        *holder = Some(child);
        drop(holder);
        for setting in SYSCTLS {
            run(self.command("/usr/sbin/sysctl"), &format!("-q -w {setting}"));
        }
    }

    /// Its cards fall silent and are gone; whatever still runs there is for others to end.
    pub(crate) fn power_off(&self) {
        ip(&format!("link delete port{}", self.0.at));
        ip(&format!("link delete repl{}", self.0.at));
        let mut child = self.0.holder.lock().unwrap().take().expect("the machine is on");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The cable to its clients is pulled, or put back.
    pub(crate) fn cable(&self, plugged: bool) {
        ip(&format!("link set port{} {}", self.0.at, if plugged { "up" } else { "down" }));
    }

    /// The cable between the two nodes.
    pub(crate) fn replication_cable(&self, plugged: bool) {
        ip(&format!("link set repl{} {}", self.0.at, if plugged { "up" } else { "down" }));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(mut child) = self.holder.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks the bridge, all the time, who has the virtual addresses; notes who claims them, in order.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    claims: Arc<Mutex<Vec<(IpAddr, Mac)>>>,
}

impl Watch {
    pub(crate) fn start(addresses: [IpAddr; 2]) -> Self {
        let any = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let index = rustix::net::netdevice::name_to_index(&any, "lan").unwrap();
        let own = Mac(BRIDGE);
        let from: [IpAddr; 2] = ["10.77.0.254".parse().unwrap(), "fd77::fe".parse().unwrap()];
        let sockets = addresses.map(|it| PacketSocket::open(index, frames::ethertype(it)).unwrap());
        let (stop, claims) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&claims));
        let thread = std::thread::spawn(move || {
            let sockets = sockets.map(|socket| UnixDatagram::from(OwnedFd::from(socket)));
            while !stopped.load(Ordering::Relaxed) {
                for ((socket, address), from) in sockets.iter().zip(addresses).zip(from) {
                    socket.send(&frames::ask(own, from, address).unwrap()).unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
                for socket in &sockets {
                    let mut frame = [0; 256];
                    while let Ok(length) = socket.recv(&mut frame) {
                        let claim = frames::claim(&frame[..length]);
                        noted.lock().unwrap().extend(claim.filter(|(ip, _)| addresses.contains(ip)));
                    }
                }
            }
        });
        Self { stop, thread: Some(thread), claims }
    }

    /// Who claimed an address, one after another, without repetitions.
    pub(crate) fn holders(&self, address: IpAddr) -> Vec<[u8; 6]> {
        let claims = self.claims.lock().unwrap();
        let mut of: Vec<_> = claims.iter().filter(|(ip, _)| *ip == address).map(|(_, mac)| mac.0).collect();
        of.dedup();
        of
    }

    /// How often it was claimed.
    pub(crate) fn count(&self, address: IpAddr) -> usize {
        self.claims.lock().unwrap().iter().filter(|(ip, _)| *ip == address).count()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}
