//! Downloads: retries with back-off, bounded sizes, resumed where they were cut off.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use dyad_debian::Digest;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, http::Response};

use crate::cache::{Cache, Partial};
use crate::clock::pause;
use crate::error::ArchiveError;

/// Tries for one file.
const TRIES: u32 = 4;
/// Wait before the second try; doubled each time.
const BACKOFF: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(20);
/// A server that sends nothing for so long is given up.
const STALL: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: u32 = 5;
const CHUNK: usize = 64 << 10;
/// Certificates of the host, looked for only when a mirror is https.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Proxies, as URLs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http mirrors.
    pub http: Option<String>,
    /// For https mirrors.
    pub https: Option<String>,
    /// Hosts and domains that are reached directly.
    pub direct: Vec<String>,
}

impl Proxies {
    fn for_url(&self, url: &str) -> Option<&str> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split('/').next()?;
        let host = authority.rsplit('@').next()?.trim_start_matches('[').split([']', ':']).next()?;
        let direct = self.direct.iter().map(|d| d.trim_start_matches('.')).any(|domain| {
            domain == "*"
                || host == domain
                || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
        });
        let proxy = if scheme == "https" { &self.https } else { &self.http };
        proxy.as_deref().filter(|_| !direct)
    }
}

/// A client for one archive.
pub(crate) struct Client {
    agent: Agent,
}

/// Why one try failed, and whether another may help.
struct Failure {
    error: Box<ArchiveError>,
    again: bool,
}

impl Failure {
    fn last(error: ArchiveError) -> Self {
        Self { error: Box::new(error), again: false }
    }

    fn again(error: ArchiveError) -> Self {
        Self { error: Box::new(error), again: true }
    }

    fn transport(url: &str, problem: impl ToString) -> Self {
        Self::again(ArchiveError::Download { url: url.to_owned(), problem: problem.to_string() })
    }
}

impl Client {
    /// A client for the URLs below `base`.
    pub(crate) fn new(base: &str, proxies: &Proxies) -> Result<Self, ArchiveError> {
        let proxy = proxies.for_url(base).map(|url| {
            ureq::Proxy::new(url).map_err(|e| ArchiveError::Setting {
                setting: "proxy".to_owned(),
                value: url.to_owned(),
                problem: format!("cannot be used ({e}); expected http://HOST:PORT"),
            })
        });
        let config = Agent::config_builder()
            .proxy(proxy.transpose()?)
            .http_status_as_error(false)
            .max_redirects(REDIRECTS_MAX)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .user_agent("dyad")
            .tls_config(TlsConfig::builder().root_certs(root_certificates(base)).build());
        Ok(Self { agent: config.build().new_agent() })
    }

    /// Fetches a small file.
    pub(crate) fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        retry(|| {
            let mut response = self.request(url, 0)?;
            let mut bytes = Vec::new();
            let mut body = response.body_mut().as_reader().take(limit + 1);
            body.read_to_end(&mut bytes).map_err(|e| Failure::transport(url, e))?;
            match bytes.len() as u64 > limit {
                true => Err(Failure::last(ArchiveError::TooLarge { url: url.to_owned(), limit })),
                false => Ok(bytes),
            }
        })
    }

    /// Fetches a file into the cache, where it is told by its digest; `on_bytes` gets what each step added (or,
    /// negative, what was thrown away). Another build may do the same at the same time: one of them downloads.
    pub(crate) fn download(
        &self,
        url: &str,
        cache: &Cache,
        (expected, size): (&Digest, u64),
        on_bytes: &dyn Fn(i64),
    ) -> Result<PathBuf, ArchiveError> {
        let partial = cache.partial(expected)?;
        if let Some(path) = cache.lookup(expected, size)? {
            partial.discard()?;
            on_bytes(size as i64);
            return Ok(path);
        }
        on_bytes(partial.length() as i64);
        let mut download = Download { client: self, url, expected, size, on_bytes, partial };
        match retry(|| download.attempt()) {
            Ok(()) => download.partial.finish(cache, expected),
            Err(error) => {
                if download.partial.length() == 0 {
                    download.partial.discard()?;
                }
                Err(error)
            }
        }
    }

    fn request(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| match e {
            ureq::Error::BadUri(_) | ureq::Error::TooManyRedirects => {
                Failure::last(ArchiveError::Download { url: url.to_owned(), problem: e.to_string() })
            }
            e => Failure::transport(url, e),
        })?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            416 if from > 0 => Ok(response),
            status @ (404 | 410) => Err(Failure::last(ArchiveError::Gone { url: url.to_owned(), status })),
            status => {
                let failure = Failure::transport(url, format!("the server answered HTTP {status}"));
                Err(Failure { again: status >= 500 || status == 429 || status == 408, ..failure })
            }
        }
    }
}

/// One file on its way into the cache.
struct Download<'a> {
    client: &'a Client,
    url: &'a str,
    expected: &'a Digest,
    size: u64,
    on_bytes: &'a dyn Fn(i64),
    partial: Partial,
}

impl Download<'_> {
    fn attempt(&mut self) -> Result<(), Failure> {
        if self.partial.length() > self.size || (self.partial.length() == self.size && !self.is_complete()) {
            self.forget()?;
        }
        if self.is_complete() {
            return Ok(());
        }
        let resumed = self.partial.length();
        let mut response = self.client.request(self.url, resumed)?;
        if resumed > 0 && !continues_at(&response, resumed) {
            self.forget()?;
            if response.status().as_u16() != 200 {
                return Err(Failure::transport(self.url, "the server cannot resume"));
            }
        }
        self.receive(&mut response, resumed)?;
        if self.is_complete() {
            return Ok(());
        }
        let length = self.partial.length();
        let error = ArchiveError::Digest {
            url: self.url.to_owned(),
            expected: *self.expected,
            got: self.partial.digest(),
            expected_size: self.size,
            size: length,
        };
        if length < self.size {
            return Err(Failure::again(error));
        }
        // A wrong whole is not worth another try, unless its first part came from an earlier one.
        self.forget()?;
        Err(Failure { error: Box::new(error), again: resumed > 0 })
    }

    fn receive(&mut self, response: &mut Response<Body>, resumed: u64) -> Result<(), Failure> {
        let mut body = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = body.read(&mut chunk).map_err(|e| Failure::transport(self.url, e))?;
            if n == 0 {
                return Ok(());
            }
            if self.partial.length() + n as u64 > self.size {
                self.forget()?;
                let error = ArchiveError::TooLarge { url: self.url.to_owned(), limit: self.size };
                return Err(Failure { error: Box::new(error), again: resumed > 0 });
            }
            self.partial.append(&chunk[..n]).map_err(Failure::last)?;
            (self.on_bytes)(n as i64);
        }
    }

    fn is_complete(&self) -> bool {
        self.partial.length() == self.size && self.partial.digest() == *self.expected
    }

    fn forget(&mut self) -> Result<(), Failure> {
        (self.on_bytes)(-(self.partial.length() as i64));
        self.partial.restart().map_err(Failure::last)
    }
}

/// Whether a response is the part that was asked for.
fn continues_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    response.status().as_u16() == 206
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn retry<T>(mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, ArchiveError> {
    let mut wait = BACKOFF;
    for _ in 1..TRIES {
        match attempt() {
            Err(Failure { error, again: true }) => {
                tracing::debug!(%error, ?wait, "retry");
                pause(wait);
                wait *= 2;
            }
            result => return result.map_err(|failure| *failure.error),
        }
    }
    attempt().map_err(|failure| *failure.error)
}

/// The host's certificates where they are found, so that private mirrors work; else the built-in ones.
fn root_certificates(base: &str) -> RootCerts {
    if !base.starts_with("https:") {
        return RootCerts::WebPki;
    }
    let path = std::env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(CERTIFICATES), PathBuf::from);
    let pem = std::fs::read(path).unwrap_or_default();
    let certificates: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => RootCerts::WebPki,
        false => RootCerts::new_with_certs(&certificates),
    }
}
