//! The server: NBD's fixed newstyle handshake and simple replies, one client after the other, on a unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::log::Record;
use crate::medium::Medium;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes after the export's flags.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// Has flags, flush, FUA, trim, write zeroes.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
const FUA: u16 = 1;
const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const ACKNOWLEDGED: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
const INVALID: u32 = 22;
/// How a client ends that is killed.
const KILLED: [io::ErrorKind; 3] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
/// Longest request that is read into memory.
const REQUEST_BYTES_MAX: u32 = 64 << 20;

/// Answers clients of this socket one after the other, in a thread of its own, until the process ends.
pub fn start(medium: impl Medium + 'static, socket: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let mut server = Server { medium, bytes: 0 };
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that went away, or that speaks something else, makes room for the next one.
            let ended = server.client(client);
            if let Err(error) = server.medium.ended(ended.is_ok()).and(ended)
                && !KILLED.contains(&error.kind())
            {
                eprintln!("nbd: a client was left: {error}");
            }
        }
    });
    Ok(())
}

struct Server<M> {
    medium: M,
    /// Size of the disk, as the present client was told.
    bytes: u64,
}

impl<M: Medium> Server<M> {
    fn client(&mut self, mut client: UnixStream) -> io::Result<()> {
        self.bytes = self.medium.begun()?;
        client.write_all(
            &[&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat(),
        )?;
        let _flags = u32(&mut client)?;
        if self.options(&mut client)? {
            while self.request(&mut client)? {}
        }
        Ok(())
    }

    /// True: transmission begins.
    fn options(&self, client: &mut UnixStream) -> io::Result<bool> {
        loop {
            if u64(client)? != OPTION_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let option = u32(client)?;
            let length = u32(client)?;
            let mut data = vec![0; length.min(4096) as usize];
            client.read_exact(&mut data)?;
            let mut export = self.bytes.to_be_bytes().to_vec();
            export.extend_from_slice(&EXPORT_FLAGS.to_be_bytes());
            match option {
                OPTION_EXPORT_NAME => {
                    client.write_all(&export)?;
                    return Ok(true);
                }
                OPTION_INFO | OPTION_GO => {
                    // Information of type 0: the export.
                    reply(client, option, INFO, &[&[0, 0], &export[..]].concat())?;
                    reply(client, option, ACKNOWLEDGED, &[])?;
                    if option == OPTION_GO {
                        return Ok(true);
                    }
                }
                OPTION_ABORT => {
                    reply(client, option, ACKNOWLEDGED, &[])?;
                    return Ok(false);
                }
                _ => reply(client, option, UNSUPPORTED, &[])?,
            }
        }
    }

    /// False: the client is done.
    fn request(&mut self, client: &mut UnixStream) -> io::Result<bool> {
        if u32(client)? != REQUEST_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let kind = u32(client)?;
        let (flags, kind) = ((kind >> 16) as u16, kind & 0xffff);
        let mut cookie = [0; 8];
        client.read_exact(&mut cookie)?;
        let at = u64(client)?;
        let length = u32(client)?;
        let fits = at.checked_add(u64::from(length)).is_some_and(|end| end <= self.bytes);
        let mut data = Vec::new();
        let mut error = if fits { 0 } else { INVALID };
        match kind {
            0 if fits && length <= REQUEST_BYTES_MAX => {
                data.resize(length as usize, 0);
                self.medium.read(at, &mut data)?;
            }
            1 => {
                let mut bytes = vec![0; length.min(REQUEST_BYTES_MAX) as usize];
                client.read_exact(&mut bytes)?;
                if fits {
                    self.record(Record::Write { at, bytes }, flags)?;
                }
            }
            2 => return Ok(false),
            3 => self.record(Record::Flush, 0)?,
            // What was discarded may read as anything; this disk is one of those that give zeroes.
            4 | 6 if fits => self.record(Record::Zeroes { at, length: u64::from(length) }, flags)?,
            _ => error = INVALID,
        }
        client.write_all(
            &[&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie, &data].concat(),
        )?;
        Ok(true)
    }

    fn record(&mut self, record: Record, flags: u16) -> io::Result<()> {
        self.medium.record(record)?;
        // Taken for a flush of everything, as all of it is stable when a write after it is.
        if flags & FUA != 0 { self.medium.record(Record::Flush) } else { Ok(()) }
    }
}

fn reply(client: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let head = [&REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
    client.write_all(&[&head[..], &(data.len() as u32).to_be_bytes(), data].concat())
}

fn u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).map(|()| u32::from_be_bytes(bytes))
}

fn u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).map(|()| u64::from_be_bytes(bytes))
}
