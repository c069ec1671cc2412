//! What the two nodes of a pair have in common: the site key with which they find each other, and the code with which
//! they come to the witness. Made once for a lab, laid on the nodes' disks, removed with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::{self, Deadline};
use crate::error::{AtPath, Doing, LabError, Result, refuse};
use crate::state::{StateDir, through};
use crate::topology::{NODES_MAX, Node, WITNESS};

/// Letters of an enrolment code: no I, L, O or U, which are taken for others.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CODE_LETTERS: usize = 20;
const KEY_BYTES: usize = 32;
/// How long a witness that was just started may take to listen, and to answer.
const WITNESS_WAIT: Duration = Duration::from_secs(30);
const WITNESS_POLL: Duration = Duration::from_millis(50);
/// Where a node finds them, below its ESP.
const SITE_KEY: &str = "dyad/site.key";
const WITNESS_CODE: &str = "dyad/witness.code";

/// A file of one pair.
fn file(state: &StateDir, node: Node, kind: &str) -> PathBuf {
    state.secrets().join(format!("pair-{}.{kind}", node.0 / 2 + 1))
}

/// Its content, made at the first time; nobody else may read it.
fn ensure(path: &Path, make: impl FnOnce([u8; KEY_BYTES]) -> String) -> Result<String> {
    if path.exists() {
        return fs::read_to_string(path).at("read", path);
    }
    let source = Path::new("/dev/urandom");
    let mut chance = [0; KEY_BYTES];
    File::open(source).and_then(|mut f| f.read_exact(&mut chance)).at("read", source)?;
    let (text, fresh) = (make(chance), path.with_extension("new"));
    crate::state::remove_file(&fresh)?;
    let mut new =
        File::options().write(true).create_new(true).mode(0o600).open(&fresh).at("create", &fresh)?;
    new.write_all(text.as_bytes()).at("write", &fresh)?;
    fs::rename(&fresh, path).at("rename into place", path)?;
    Ok(text)
}

fn code(state: &StateDir, node: Node) -> Result<String> {
    let letter = |byte: &u8| char::from(ALPHABET[usize::from(byte % 32)]);
    ensure(&file(state, node, "code"), |chance| chance[..CODE_LETTERS].iter().map(letter).collect())
}

/// What a node of a pair gets beside its site file: paths below the ESP, and contents.
pub(crate) fn of(state: &StateDir, node: Node, witness: bool) -> Result<Vec<(String, String)>> {
    let digits = |chance: [u8; KEY_BYTES]| chance.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut files = vec![(SITE_KEY.to_owned(), ensure(&file(state, node, "key"), digits)?)];
    if witness {
        files.push((WITNESS_CODE.to_owned(), code(state, node)?));
    }
    Ok(files)
}

/// Lets the pairs of this lab in at its witness, each once.
pub(crate) fn open_codes(state: &StateDir) -> Result<()> {
    for node in Node::first(NODES_MAX).filter(|node| node.0 % 2 == 0 && file(state, *node, "code").exists()) {
        let opened = file(state, node, "opened");
        if !opened.exists() {
            enroll(state, &code(state, node)?)?;
            fs::write(&opened, "").at("write", &opened)?;
        }
    }
    Ok(())
}

/// Over the witness' own control socket: a command line would show the code to everybody on this machine.
fn enroll(state: &StateDir, code: &str) -> Result<()> {
    let path = state.member(WITNESS).join("state");
    let dir = File::open(&path).at("open", &path)?;
    let deadline = Deadline::after(WITNESS_WAIT);
    let mut socket = loop {
        match UnixStream::connect(through(&dir)) {
            Ok(socket) => break socket,
            Err(_) if deadline.left().is_some() => clock::pause(WITNESS_POLL),
            Err(e) => return Err(e).at("connect to the witness in", &path),
        }
    };
    socket.set_read_timeout(Some(WITNESS_WAIT)).doing("set a deadline on the witness")?;
    writeln!(socket, "{}", json!({"enroll": {"code": code}})).doing("ask the witness")?;
    let mut line = String::new();
    BufReader::new(&socket).read_line(&mut line).doing("hear the witness")?;
    let told: Value = serde_json::from_str(&line)
        .map_err(|e| LabError::Refused(format!("the witness answered something else: {e}")))?;
    match told["refused"].as_str() {
        None if told == "opened" => Ok(()),
        Some(why) => refuse(format!("the witness does not let the nodes in: {why}")),
        None => refuse(format!("the witness answered {told}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pair_shares_its_secrets_and_another_pair_has_others() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(temp.path())).unwrap();
        state.create(4).unwrap();
        let of = |number| of(&state, Node(number), true).unwrap();
        let first = of(0);
        assert_eq!(first, of(1));
        assert!(first.iter().zip(of(2)).all(|(a, b)| a.0 == b.0 && a.1 != b.1));
        assert!(first[0].1.len() == 64 && first[0].1.chars().all(|c| c.is_ascii_hexdigit()));
        assert_eq!((first[1].0.as_str(), first[1].1.len()), (WITNESS_CODE, 20));
        assert_eq!(super::of(&state, Node(0), false).unwrap().len(), 1);
        for entry in fs::read_dir(state.secrets()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
