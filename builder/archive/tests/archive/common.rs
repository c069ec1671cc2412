//! A tiny signed archive behind a loopback HTTP server that can be told to misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dyad_archive::process::{self, Command};
use dyad_archive::{Cache, Environment, Overrides, Refresh, Sources};
use dyad_debian::{Digest, LockedPackage};
use sha2::{Digest as _, Sha256};

/// 2026-07-11 10:17:11 UTC, one hour after the default Date.
pub(crate) const NOW: u64 = 1_783_765_031;
const DATE: &str = "Sat, 11 Jul 2026 09:17:11 UTC";

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// What the server does with one path.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// Ends the connection after so many bytes of the body, so many times.
    pub(crate) cut_after: Option<(usize, usize)>,
    /// Answers with this status, so many times.
    pub(crate) status: Option<(u16, usize)>,
    /// Sends so many bytes of the body and then nothing, until the client goes away.
    pub(crate) stall_after: Option<usize>,
    /// Ignores Range.
    pub(crate) no_range: bool,
}

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) behaviour: BTreeMap<String, Behaviour>,
    /// `PATH` or `PATH from N`, in order.
    pub(crate) requests: Vec<String>,
}

/// The server; it ends with the test process.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) content: Arc<Mutex<Content>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/debian", listener.local_addr().unwrap());
        let content = Arc::new(Mutex::new(Content::default()));
        let shared = Arc::clone(&content);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { url, content }
    }

    pub(crate) fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.content.lock().unwrap().files.insert(format!("/debian/{path}"), bytes.into());
    }

    pub(crate) fn remove(&self, path: &str) {
        self.content.lock().unwrap().files.remove(&format!("/debian/{path}")).unwrap();
    }

    pub(crate) fn behave(&self, path: &str, behaviour: Behaviour) {
        self.content.lock().unwrap().behaviour.insert(format!("/debian/{path}"), behaviour);
    }

    /// Takes the requests seen so far that contain `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        let requests = std::mem::take(&mut self.content.lock().unwrap().requests);
        requests.into_iter().filter(|request| request.contains(part)).collect()
    }
}

/// One request a connection: closing is what cuts a body short.
fn serve(mut stream: TcpStream, content: &Mutex<Content>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let range = headers.iter().find_map(|header| {
        let (name, value) = header.split_once(": ")?;
        name.eq_ignore_ascii_case("range")
            .then(|| value.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())?
    });
    let (body, cut, status, no_range, stall) = {
        let mut content = content.lock().unwrap();
        let seen = range.map_or(path.clone(), |from| format!("{path} from {from}"));
        content.requests.push(seen);
        let body = content.files.get(&path).cloned();
        let behaviour = content.behaviour.entry(path).or_default();
        let take = |times: usize| times.checked_sub(1);
        let cut = behaviour.cut_after.and_then(|(bytes, times)| Some((bytes, take(times)?)));
        let status = behaviour.status.and_then(|(status, times)| Some((status, take(times)?)));
        behaviour.cut_after = cut.or(behaviour.cut_after.map(|(bytes, _)| (bytes, 0)));
        behaviour.status = status.or(behaviour.status.map(|(status, _)| (status, 0)));
        (body, cut, status, behaviour.no_range, behaviour.stall_after)
    };
    let answer = match (status, body) {
        (Some((status, _)), _) => {
            format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
        }
        (None, None) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        (None, Some(body)) => {
            let from = range.filter(|_| !no_range).unwrap_or(0).min(body.len());
            let status = match range.filter(|_| !no_range) {
                Some(from) => {
                    format!("206 Partial\r\nContent-Range: bytes {from}-{}/{}", body.len() - 1, body.len())
                }
                None => "200 OK".to_owned(),
            };
            let part = &body[from..];
            let length = part.len();
            let end = cut.map(|(bytes, _)| bytes).or(stall).unwrap_or(length);
            let sent = &part[..end.min(length)];
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            [head.as_bytes(), sent].concat()
        }
    };
    let _ = stream.write_all(&answer);
    if stall.is_some() {
        let _ = stream.read(&mut [0]);
    }
}

/// A throwaway key.
pub(crate) struct Key {
    home: PathBuf,
    /// Its public half as a binary keyring.
    pub(crate) keyring: PathBuf,
}

impl Key {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let home = directory.join(name);
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
        let keyring = directory.join(format!("{name}.gpg"));
        let key = Self { home, keyring };
        key.gpg()
            .args(["--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", "never"])
            .run_checked()
            .unwrap();
        let exported = key.gpg().arg("--export").run_checked().unwrap().stdout;
        std::fs::write(&key.keyring, exported).unwrap();
        key
    }

    fn gpg(&self) -> Command {
        let gpg = process::find("gpg").expect("package gnupg is installed");
        Command::new(gpg).arg("--homedir").arg(&self.home).args([
            "--batch",
            "--quiet",
            "--pinentry-mode",
            "loopback",
        ])
    }

    pub(crate) fn clearsign(&self, text: &str) -> Vec<u8> {
        self.gpg().args(["--clearsign", "--output", "-"]).stdin(text).run_checked().unwrap().stdout
    }

    pub(crate) fn armoured(&self) -> String {
        String::from_utf8(self.gpg().args(["--armor", "--export"]).run_checked().unwrap().stdout).unwrap()
    }
}

impl Drop for Key {
    /// Ends the agent that gpg started for this home.
    fn drop(&mut self) {
        if let Ok(gpgconf) = process::find("gpgconf") {
            let _ = Command::new(gpgconf).arg("--homedir").arg(&self.home).args(["--kill", "all"]).run();
        }
    }
}

/// An archive with the packages `a` (which depends on `b`) and `b`.
pub(crate) struct Archive {
    pub(crate) server: Server,
    pub(crate) key: Key,
    pub(crate) cache: Cache,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) const POOL_A: &str = "pool/main/a/a_1_amd64.deb";
pub(crate) const POOL_B: &str = "pool/main/b/b_2_all.deb";

pub(crate) fn deb(name: &str) -> Vec<u8> {
    let mut bytes = format!("!<arch> {name} ").into_bytes();
    bytes.extend((0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()));
    bytes
}

pub(crate) fn packages_index() -> String {
    let stanza = |name: &str, version: &str, arch: &str, path: &str, extra: &str| {
        let bytes = deb(name);
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: {arch}\n{extra}Filename: {path}\nSize: {}\nSHA256: {}\n\n",
            bytes.len(),
            sha256(&bytes)
        )
    };
    stanza("a", "1", "amd64", POOL_A, "Depends: b (>= 2)\n") + &stanza("b", "2", "all", POOL_B, "")
}

impl Archive {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = Key::new(directory.path(), "archive");
        let cache = Cache::open(&directory.path().join("cache")).unwrap();
        let archive = Self { server: Server::start(), key, cache, directory };
        archive.server.put(POOL_A, deb("a"));
        archive.server.put(POOL_B, deb("b"));
        archive.publish(|_| {});
        archive
    }

    /// The Release fields as they should be.
    pub(crate) fn release(&self) -> BTreeMap<&'static str, String> {
        let index = packages_index();
        let packed = xz(index.as_bytes());
        let table = format!(
            "\n {} {} main/binary-amd64/Packages\n {} {} main/binary-amd64/Packages.xz",
            sha256(index.as_bytes()),
            index.len(),
            sha256(&packed),
            packed.len()
        );
        [
            ("Origin", "Test"),
            ("Suite", "oldstable"),
            ("Codename", "bookworm"),
            ("Date", DATE),
            ("Acquire-By-Hash", "yes"),
            ("Architectures", "amd64"),
            ("Components", "main"),
            ("SHA256", &table),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into()
    }

    pub(crate) fn release_text(&self, change: impl FnOnce(&mut BTreeMap<&'static str, String>)) -> String {
        let mut release = self.release();
        change(&mut release);
        release.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
    }

    /// Publishes index and a signed InRelease with changed fields.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut BTreeMap<&'static str, String>)) {
        let packed = xz(packages_index().as_bytes());
        self.server.put(
            &format!("dists/bookworm/main/binary-amd64/by-hash/SHA256/{}", sha256(&packed)),
            packed.clone(),
        );
        self.server.put("dists/bookworm/main/binary-amd64/Packages.xz", packed);
        self.server.put("dists/bookworm/InRelease", self.key.clearsign(&self.release_text(change)));
    }

    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            suite: "bookworm".to_owned(),
            arch: "amd64".to_owned(),
            mirror: Some(self.server.url.clone()),
            keyring: Some(self.key.keyring.clone()),
            suites: Some(vec!["bookworm".to_owned()]),
            ..Overrides::default()
        }
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources::from_layers(&self.overrides(), &Environment::default(), None).unwrap()
    }

    pub(crate) fn refresh(&self, offline: bool) -> Result<dyad_debian::Universe, String> {
        let options = Refresh { offline, now: NOW };
        self.sources().refresh(&self.cache, options, &dyad_archive::Silent).map_err(|e| e.to_string())
    }

    pub(crate) fn locked(&self) -> Vec<LockedPackage> {
        let universe = self.refresh(false).unwrap();
        let request = dyad_debian::Request { packages: vec!["a".parse().unwrap()], ..Default::default() };
        let resolution = dyad_debian::resolve(&universe, &request).unwrap();
        resolution.packages.iter().map(|package| package.to_locked()).collect()
    }
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut packed).unwrap();
    packed
}
