//! A node on another machine: the operator protocol over TLS 1.3, with both keys pinned.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use dyad_channel::client::{Client, Limits};
use dyad_channel::operator::{Ask, FRAME_BYTES_MAX, PORT, Told};
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::{Identity, PublicKey};
use tokio::runtime::{Builder, Runtime};

/// For one question: `logs` reads the journal page by page.
const CALL_MS: u64 = 60_000;
const KEY: &str = "ed25519:";

fn identity(file: Option<&Path>) -> Result<Identity, String> {
    let file = file.ok_or("--key FILE is missing: the operator's key")?;
    Identity::load_or_make(file).map_err(|error| error.to_string())
}

/// As the site file takes it.
pub(crate) fn public_key(file: Option<&Path>) -> Result<String, String> {
    let digits: String = identity(file)?.public().0.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{KEY}{digits}"))
}

fn parse_key(text: &str) -> Option<PublicKey> {
    let digits = text.strip_prefix(KEY).filter(|digits| digits.len() == 64 && digits.is_ascii())?;
    let mut key = [0; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(PublicKey(key))
}

/// Connects when there is something to ask.
pub(crate) fn connect(node: &str, key: Option<&Path>, node_key: Option<&str>) -> Result<Remote, String> {
    let address: SocketAddr =
        node.parse().or_else(|_| node.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT))).map_err(
            |_| format!("--node {node:?}: an address is accepted, such as 192.0.2.1 or [2001:db8::1]:{PORT}"),
        )?;
    let text = node_key.unwrap_or_default();
    let pinned = parse_key(text)
        .ok_or_else(|| format!("--node-key {text:?}: {KEY} and 64 hexadecimal digits are accepted"))?;
    let tls = tls::client(&identity(key)?, Trust::Pinned(vec![pinned]), Speaks::Operator)
        .map_err(|error| error.to_string())?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let limits = Limits { call_ms: CALL_MS, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 0 };
    let client = Client::new(address, tls, limits);
    Ok(Remote { runtime, client, asked: Vec::new(), answers: Vec::new() })
}

/// Lines in, lines out: each that is written is asked, and its reply is there to be read.
pub(crate) struct Remote {
    runtime: Runtime,
    client: Client<Ask, Told>,
    asked: Vec<u8>,
    answers: Vec<u8>,
}

impl Write for Remote {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.asked.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        for line in
            std::mem::take(&mut self.asked).split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        {
            match self.runtime.block_on(self.client.call(&Ask::Line(line.to_vec()))) {
                Ok(Told::Line(reply)) => self.answers.extend_from_slice(&reply),
                Ok(Told::Refused | Told::Has(_)) => {
                    return Err(io::Error::other("the node refuses this key"));
                }
                Err(unknown) => return Err(io::Error::other(unknown.to_string())),
            }
        }
        Ok(())
    }
}

impl Read for Remote {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.answers.len());
        buffer[..count].copy_from_slice(&self.answers[..count]);
        self.answers.drain(..count);
        Ok(count)
    }
}
