//! The witness: a program with an address of its own on the LAN.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use dyad_api::operator::Call;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::console::Console;
use crate::container::{hidden, meet};
use crate::control::{Cable, Power};
use crate::error::{AtPath, Doing, Result, refuse};
use crate::inside::Station;
use crate::member::{Attach, Body, Ended, Kind, signal};
use crate::netlink::Far;
use crate::network::{Network, Plugged};
use crate::process::Launch;
use crate::switch::fabric::Link;
use crate::topology::{LAN_PREFIX_V4, LAN_PREFIX_V6, Role, WITNESS, WITNESS_MAC, WITNESS_V4, WITNESS_V6};

/// Its port, TCP.
pub(crate) const PORT: u16 = 7400;
/// Its interface.
const NIC: &str = "lan0";

/// The lab's witness.
pub(crate) struct Witness {
    /// The program `dyad-witness`.
    pub(crate) program: PathBuf,
    /// Its directory: log and state.
    pub(crate) dir: PathBuf,
    pub(crate) network: Arc<Network>,
}

impl Kind for Witness {
    fn name(&self) -> String {
        WITNESS.into()
    }

    fn prepare(&self) -> Result<(Launch, Attach)> {
        let state = self.dir.join("state");
        std::fs::create_dir_all(&state).at("create directory", &state)?;
        let listen = format!("{WITNESS_V4}:{PORT}");
        let words = [&self.program.to_string_lossy(), "run", "--listen", &listen, "--state"];
        let mut argv: Vec<String> = words.map(str::to_owned).to_vec();
        argv.push(state.to_string_lossy().into_owned());
        let addresses =
            vec![(IpAddr::V4(WITNESS_V4), LAN_PREFIX_V4), (IpAddr::V6(WITNESS_V6), LAN_PREFIX_V6)];
        let station = Station { interface: NIC.into(), addresses, argv };
        let text = serde_json::to_string(&station).expect("a station holds only text");
        let (sync, theirs) = UnixStream::pair().doing("make the witness' sockets")?;
        let log = self.dir.join("serial.log");
        let launch = hidden(crate::cli::STATION, text, theirs, log.clone());
        let network = self.network.clone();
        let attach = move |pid: Pid| {
            let mut port = None;
            meet(&sync, &log, || {
                let far = Far { name: NIC, mac: WITNESS_MAC, pid: Some(pid), one_segment: true };
                port = Some(network.plug(WITNESS, Link::Lan, &far)?);
                Ok(())
            })?;
            Ok(Arc::new(Running { pid, port, network, log }) as Arc<dyn Body>)
        };
        Ok((launch, Box::new(attach)))
    }
}

struct Running {
    pid: Pid,
    port: Option<Plugged>,
    network: Arc<Network>,
    log: PathBuf,
}

impl Body for Running {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn kill(&self) -> Result<()> {
        signal(self.pid, Signal::SIGKILL)
    }

    fn press_power(&self) -> Result<()> {
        signal(self.pid, Signal::SIGTERM)
    }

    fn pause(&self, stop_clock: bool) -> Result<()> {
        if stop_clock {
            return refuse("the witness' clock is the host's: it cannot be stopped");
        }
        self.network.silence(WITNESS, true)?;
        signal(self.pid, Signal::SIGSTOP)
    }

    fn resume(&self, _: Power) -> Result<()> {
        signal(self.pid, Signal::SIGCONT)?;
        self.network.silence(WITNESS, false)
    }

    fn cable(&self, _: Role, _: Cable) -> Result<()> {
        refuse("the witness has one port and no cables to choose from; `dyad lab cut` cuts it off")
    }

    fn confirm(&self) -> Result<()> {
        Ok(())
    }

    fn agent(&self) -> bool {
        false
    }

    fn call(&self, _: Call) -> Result<Value> {
        refuse("the witness has no supervisor; nodes do")
    }

    fn console(&self) -> Option<&Arc<Console>> {
        None
    }

    fn detach(&self) {
        if let Some(port) = &self.port {
            self.network.unplug(port);
        }
        if let Err(e) = self.network.silence(WITNESS, false) {
            eprintln!("daemon: {WITNESS}: {e}");
        }
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        if status.success() {
            return Ended::PoweredOff;
        }
        Ended::Failed(format!("the witness ended with {status}; see {}", self.log.display()))
    }
}
