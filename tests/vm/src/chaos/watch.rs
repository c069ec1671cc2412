//! Who answers for the virtual address, asked from within the lab's network all the time.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dyad_net::frames;
use dyad_spec::Mac;
use dyad_sys::packet::PacketSocket;

use super::clock;
use crate::Lab;

/// The lab's virtual address, its own interface among the clients, and what is on that.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const LINK: &str = "lab0";
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const OWN_MAC: Mac = Mac([0x02, 0x64, 0x79, 0xff, 0x00, 0x01]);
const ASK: Duration = Duration::from_millis(50);

/// What the program does when it is started within the lab's network: asks, and prints who answers.
pub(crate) fn ask() -> std::io::Result<()> {
    let any = std::net::UdpSocket::bind((OWN, 0))?;
    let index = rustix::net::netdevice::name_to_index(&any, LINK)?;
    let vip = IpAddr::V4(VIP);
    let socket = UnixDatagram::from(OwnedFd::from(PacketSocket::open(index, frames::ethertype(vip))?));
    let question = frames::ask(OWN_MAC, IpAddr::V4(OWN), vip).expect("both are of one family");
    loop {
        socket.send(&question)?;
        clock::pause(ASK);
        let mut frame = [0; 256];
        while let Ok(length) = socket.recv(&mut frame) {
            if let Some((address, mac)) = frames::claim(&frame[..length])
                && address == vip
            {
                println!("{}", mac.0.map(|byte| format!("{byte:02x}")).join(":"));
            }
        }
        std::io::stdout().flush()?;
    }
}

/// Somebody said to have the address, for the first and for the last time in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tenure {
    pub(crate) mac: String,
    pub(crate) first: Instant,
    pub(crate) last: Instant,
}

/// The asker under way.
pub(crate) struct Watch {
    child: Child,
    tenures: Arc<Mutex<Vec<Tenure>>>,
}

impl Watch {
    /// Starts this very program within the lab's network.
    #[allow(clippy::disallowed_methods, reason = "it is read while it runs")]
    pub(crate) fn start(lab: &Lab) -> Self {
        let own = std::env::current_exe().expect("a program knows its file");
        let mut child = Command::new(crate::dyad())
            .args(["lab", "--state"])
            .arg(lab.state())
            .args(["exec", "--"])
            .arg(own)
            .arg("watch")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("dyad can be started");
        let lines = BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
        let tenures = Arc::new(Mutex::new(Vec::<Tenure>::new()));
        let noted = Arc::clone(&tenures);
        std::thread::spawn(move || {
            for mac in lines.map_while(Result::ok) {
                let (now, mut all) = (clock::now(), noted.lock().unwrap_or_else(PoisonError::into_inner));
                match all.last_mut().filter(|last| last.mac == mac) {
                    Some(last) => last.last = now,
                    None => all.push(Tenure { mac, first: now, last: now }),
                }
            }
        });
        Self { child, tenures }
    }

    /// Tenures since the last call; the one under way is told again.
    pub(crate) fn take(&self) -> Vec<Tenure> {
        let mut all = self.tenures.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.clone();
        let done = all.len().saturating_sub(1);
        all.drain(..done);
        told
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two who answer by turns: one has it again before `least` has passed since it had it last.
pub(crate) fn overlap(tenures: &[Tenure], least: Duration) -> Option<String> {
    let again = |all: &[Tenure]| {
        let [one, other, back] = all else { return None };
        let gap = back.first - one.last;
        let two = one.mac == back.mac && gap < least;
        two.then(|| format!("{} and {} both answer for {VIP}, within {gap:?}", one.mac, other.mac))
    };
    tenures.windows(3).find_map(again)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_goes_and_comes_back_at_once_has_two_owners() {
        let (start, least) = (clock::now(), Duration::from_secs(1));
        let at = |mac: &str, first, last| Tenure {
            mac: mac.to_owned(),
            first: start + Duration::from_millis(first),
            last: start + Duration::from_millis(last),
        };
        let moved = [at("a", 0, 900), at("b", 1_000, 5_000), at("a", 5_100, 9_000)];
        assert_eq!(overlap(&moved, least), None);
        let by_turns = [at("a", 0, 900), at("b", 1_000, 1_000), at("a", 1_050, 1_050)];
        assert!(overlap(&by_turns, least).is_some());
    }
}
