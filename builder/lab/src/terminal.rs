//! `lab console`: this terminal becomes a node's serial console.

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{Doing, Result};

/// Ctrl-], as in telnet.
const LEAVE: u8 = 0x1d;

/// The terminal in raw mode until this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Raw(None));
        }
        let before = tcgetattr(stdin()).doing("read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).doing("set the terminal to raw mode")?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone.
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Shows and types until Ctrl-] or the end of the machine. Without a terminal the end of input ends only the typing.
pub(crate) fn attach(stream: UnixStream) -> Result<()> {
    if stdin().is_terminal() {
        eprintln!("connected; Ctrl-] leaves");
    }
    let raw = Raw::enter()?;
    let mut typed = stream.try_clone().doing("duplicate the console connection")?;
    // Blocked in read when the machine ends; the process ends with it.
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = stdin().read(&mut buffer) {
            let bytes = &buffer[..length];
            let leave = bytes.iter().position(|b| *b == LEAVE);
            let sent = typed.write_all(&bytes[..leave.unwrap_or(length)]);
            if sent.is_err() || leave.is_some() {
                // Ends the other direction too. Fails when the machine is gone already.
                let _ = typed.shutdown(Shutdown::Both);
                break;
            }
        }
    });
    let mut shown = stream;
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = shown.read(&mut buffer) {
        stdout().write_all(&buffer[..length]).doing("write to the terminal")?;
        stdout().flush().doing("write to the terminal")?;
    }
    drop(raw);
    Ok(())
}
