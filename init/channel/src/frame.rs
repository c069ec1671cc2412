//! One message on the wire: its length (4 bytes, little endian, of what follows), a version byte, the postcard body.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of everything inside a frame. Another version is refused by name.
pub const VERSION: u8 = 1;
const LENGTH_BYTES: usize = 4;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than this side accepts.
    #[error("message of {bytes} bytes, at most {max} are accepted")]
    TooLarge {
        /// As announced.
        bytes: usize,
        /// Accepted.
        max: usize,
    },
    /// Nothing in it, not even a version.
    #[error("message without a version byte")]
    Empty,
    /// Written by another version.
    #[error("message of version {0}, this side speaks {VERSION}")]
    Version(u8),
    /// The body is not what it should be.
    #[error("message does not decode: {0}")]
    Malformed(&'static str),
    /// The connection ended or failed.
    #[error("connection: {0}")]
    Io(String),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        FrameError::Io(error.to_string())
    }
}

/// A question or an answer with the number that ties them together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// Rises within a connection; an answer repeats it.
    pub number: u64,
    /// The message.
    pub message: T,
}

/// The frame of a message, ready to send.
pub fn encode<T: Serialize>(value: &T, bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; LENGTH_BYTES];
    frame.push(VERSION);
    let mut frame =
        postcard::to_extend(value, frame).map_err(|_| FrameError::Malformed("cannot be encoded"))?;
    let bytes = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= bytes_max);
    let length = length.ok_or(FrameError::TooLarge { bytes, max: bytes_max })?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The message in what [`read`] returned: all of it, and nothing behind it.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    let (version, body) = frame.split_first().ok_or(FrameError::Empty)?;
    if *version != VERSION {
        return Err(FrameError::Version(*version));
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(FrameError::Malformed("bytes are left over")),
        Err(postcard::Error::DeserializeUnexpectedEnd) => Err(FrameError::Malformed("it is cut short")),
        Err(_) => Err(FrameError::Malformed("a value is out of range")),
    }
}

/// Waits for the first byte of a frame; `false` if the connection ended instead.
pub(crate) async fn first_byte(
    stream: &mut (impl AsyncRead + Unpin),
    length: &mut [u8; LENGTH_BYTES],
) -> Result<bool, FrameError> {
    match stream.read(&mut length[..1]).await {
        Ok(read) => Ok(read == 1),
        // A peer that was switched off does not say good-bye in TLS.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The rest of a frame of which [`first_byte`] was read: version byte and body.
pub(crate) async fn rest(
    stream: &mut (impl AsyncRead + Unpin),
    mut length: [u8; LENGTH_BYTES],
    bytes_max: usize,
) -> Result<Vec<u8>, FrameError> {
    stream.read_exact(&mut length[1..]).await?;
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > bytes_max {
        return Err(FrameError::TooLarge { bytes, max: bytes_max });
    }
    let mut frame = vec![0; bytes];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

/// The next frame: version byte and body; `None` if the connection ended between two frames.
pub async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0; LENGTH_BYTES];
    if !first_byte(stream, &mut length).await? {
        return Ok(None);
    }
    rest(stream, length, bytes_max).await.map(Some)
}

/// Sends what [`encode`] made.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), FrameError> {
    stream.write_all(frame).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Sample = Numbered<Vec<(u16, Option<u64>)>>;

    fn now<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn an_oversized_length_is_refused_before_anything_is_read() {
        let mut wire: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1];
        let error = now(read(&mut wire, 100)).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { bytes: u32::MAX as usize, max: 100 });
        assert_eq!(encode(&vec![0u8; 200], 100).unwrap_err(), FrameError::TooLarge { bytes: 203, max: 100 });
    }

    #[test]
    fn each_defect_has_its_name() {
        assert_eq!(decode::<u64>(&[]).unwrap_err(), FrameError::Empty);
        assert_eq!(decode::<u64>(&[2, 0]).unwrap_err(), FrameError::Version(2));
        assert_eq!(decode::<u64>(&[1]).unwrap_err(), FrameError::Malformed("it is cut short"));
        assert_eq!(decode::<u64>(&[1, 0, 0]).unwrap_err(), FrameError::Malformed("bytes are left over"));
        assert_eq!(decode::<bool>(&[1, 7]).unwrap_err(), FrameError::Malformed("a value is out of range"));
        assert!(matches!(now(read(&mut &[5u8, 0, 0, 0, 1][..], 100)), Err(FrameError::Io(_))));
        assert_eq!(now(read(&mut &[][..], 100)), Ok(None));
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives(number: u64, message: Vec<(u16, Option<u64>)>) {
            let sent: Sample = Numbered { number, message };
            let wire = encode(&sent, 1 << 20).unwrap();
            let frame = now(read(&mut wire.as_slice(), 1 << 20)).unwrap().unwrap();
            prop_assert_eq!(decode::<Sample>(&frame).unwrap(), sent);
        }

        #[test]
        fn no_bytes_are_anything_but_a_message_or_an_error(wire: Vec<u8>) {
            if let Ok(Some(frame)) = now(read(&mut wire.as_slice(), 64)) {
                prop_assert!(frame.len() <= 64);
                let _ = decode::<Sample>(&frame);
            }
        }

        /// A cut frame is never a shorter message.
        #[test]
        fn a_cut_frame_is_an_error(message: Vec<(u16, Option<u64>)>, cut in 1usize..200) {
            let wire = encode(&Numbered { number: 1, message }, 1 << 20).unwrap();
            let cut = wire.len().saturating_sub(cut).max(1);
            prop_assert!(now(read(&mut &wire[..cut], 1 << 20)).is_err());
        }
    }
}
