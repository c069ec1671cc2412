//! The least HTTP that etcd's JSON gateway needs: one POST a connection. HTTP/1.0, so that an answer ends with the
//! connection and never comes in chunks.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A state of 64 resources takes 20 KiB in base64.
const ANSWER_BYTES_MAX: u64 = 256 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("{0}: {1}")]
    Io(SocketAddr, std::io::Error),
    #[error("{0} answers no HTTP: {1:?}")]
    NotHttp(SocketAddr, String),
    #[error("{0} answers {1}: {2}")]
    Status(SocketAddr, u16, String),
}

/// Posts a JSON text, returns the JSON text of the answer.
pub(crate) async fn post(to: SocketAddr, path: &str, body: &str) -> Result<String, HttpError> {
    let io = |error| HttpError::Io(to, error);
    let mut stream = TcpStream::connect(to).await.map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {to}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.map_err(io)?;
    parse(to, &answer)
}

fn parse(to: SocketAddr, answer: &[u8]) -> Result<String, HttpError> {
    let text = String::from_utf8_lossy(answer);
    let shown = || text.chars().take(80).collect::<String>();
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| HttpError::NotHttp(to, shown()))?;
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|word| word.parse::<u16>().ok());
    let status =
        status.filter(|_| version.starts_with("HTTP/1.")).ok_or_else(|| HttpError::NotHttp(to, shown()))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| length != body.len()) {
        return Err(HttpError::NotHttp(to, "an answer that was cut short".to_owned()));
    }
    if status != 200 {
        return Err(HttpError::Status(to, status, body.chars().take(200).collect()));
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Result<String, String> {
        parse(SocketAddr::from(([127, 0, 0, 1], 1)), answer.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn only_a_whole_answer_counts() {
        assert_eq!(read("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap(), "{}");
        assert_eq!(read("HTTP/1.0 200 OK\r\n\r\n{}").unwrap(), "{}");
        assert!(read("HTTP/1.0 200 OK\r\ncontent-length: 9\r\n\r\n{}").unwrap_err().contains("cut short"));
        assert!(read("HTTP/1.0 503 no\r\n\r\nleader lost").unwrap_err().ends_with("503: leader lost"));
        assert!(read("SSH-2.0-x\r\n\r\n").unwrap_err().contains("answers no HTTP"));
        assert!(read("").unwrap_err().contains("answers no HTTP"));
    }
}
