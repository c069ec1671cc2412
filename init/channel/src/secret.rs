//! A common secret, and how two ends of a channel prove it to each other without sending it.
//!
//! A proof is an HMAC over the channel's own exporter, so it cannot be carried to another channel: somebody in the middle
//! has two channels with two exporters. Secrets are drawn with 100 bits or more, so none can be guessed from a proof.

use std::fmt;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// Letters and digits of a code: no I, L, O or U, which are taken for others (Crockford's base32).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Letters of a code: 100 bits.
const CODE_LETTERS: usize = 20;
const GROUP: usize = 5;

/// A one-time code, typed by people: `XXXXX-XXXXX-XXXXX-XXXXX`.
#[derive(Clone, PartialEq, Eq)]
pub struct Code([u8; CODE_LETTERS]);

/// A text that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Too few or too many letters.
    #[error("a code has {CODE_LETTERS} letters and digits, like 7K3MQ-0RT5W-9XBDA-HJ2CP; this one has {0}")]
    Length(usize),
    /// A letter that codes do not use.
    #[error("`{0}` stands in no code; codes use digits and letters without I, L, O and U")]
    Letter(char),
}

impl Code {
    /// A fresh one.
    pub fn draw() -> Self {
        let mut random = [0; CODE_LETTERS];
        fill(&mut random);
        Code(random.map(|byte| ALPHABET[usize::from(byte % 32)]))
    }

    /// From what was typed: case, spaces and dashes do not matter, and O, I and L are taken for 0 and 1.
    pub fn parse(text: &str) -> Result<Self, CodeError> {
        let mut letters = Vec::with_capacity(CODE_LETTERS);
        for letter in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
            let upper = match letter.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let known = u8::try_from(upper).ok().filter(|u| ALPHABET.contains(u));
            letters.push(known.ok_or(CodeError::Letter(letter))?);
        }
        let count = letters.len();
        letters.try_into().map(Code).map_err(|_| CodeError::Length(count))
    }

    /// What proofs are made with.
    pub fn secret(&self) -> Secret {
        let mut key = [0; 32];
        key.copy_from_slice(
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"dyad one-time code"), &self.0).as_ref(),
        );
        Secret(key)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, group) in self.0.chunks(GROUP).enumerate() {
            if number > 0 {
                f.write_str("-")?;
            }
            f.write_str(std::str::from_utf8(group).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Not shown: logs must not hold it.
impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

/// A key that both ends have: of a code, or the site key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

/// Not shown: logs must not hold it.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who proves. Each side has its own word, so that a proof cannot be handed back to its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that opened the channel.
    Asking,
    /// The end that answers.
    Answering,
}

/// An HMAC-SHA256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(pub [u8; 32]);

impl Secret {
    /// From 32 or more bytes with 100 or more bits of chance in them, such as a site key.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut key = [0; 32];
        key.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"dyad secret"), bytes).as_ref());
        Secret(key)
    }

    /// Proves the secret on this channel, for exactly this statement.
    pub fn prove(&self, side: Side, exporter: &Exporter, statement: &[u8]) -> Proof {
        let mut proof = [0; 32];
        proof.copy_from_slice(hmac::sign(&self.key(), &message(side, exporter, statement)).as_ref());
        Proof(proof)
    }

    /// Whether the other end knows the secret and meant this statement.
    pub fn accepts(&self, proof: &Proof, side: Side, exporter: &Exporter, statement: &[u8]) -> bool {
        hmac::verify(&self.key(), &message(side, exporter, statement), &proof.0).is_ok()
    }

    /// That somebody with the secret made this message; bound to no channel, for what is said to everybody.
    pub fn seal(&self, message: &[u8]) -> Proof {
        let mut proof = [0; 32];
        proof.copy_from_slice(hmac::sign(&self.key(), &open_message(message)).as_ref());
        Proof(proof)
    }

    /// Whether [`Secret::seal`] with this secret made it.
    pub fn sealed(&self, proof: &Proof, message: &[u8]) -> bool {
        hmac::verify(&self.key(), &open_message(message), &proof.0).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

/// Parts of fixed length before the one that varies: no two statements make the same bytes.
fn message(side: Side, exporter: &Exporter, statement: &[u8]) -> Vec<u8> {
    let side = match side {
        Side::Asking => b"dyad proof v1 asking\0",
        Side::Answering => b"dyad proof v1 answer\0",
    };
    [side, &exporter.0[..], statement].concat()
}

/// As long as the word of a side, and neither of them.
fn open_message(message: &[u8]) -> Vec<u8> {
    [b"dyad proof v1 public\0", message].concat()
}

/// What only the two ends of one TLS connection know (RFC 8446, 7.5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exporter(pub(crate) [u8; 32]);

impl Exporter {
    /// Of a connection whose handshake is over.
    pub(crate) fn of<Data>(connection: &rustls::ConnectionCommon<Data>) -> Result<Self, rustls::Error> {
        connection.export_keying_material([0; 32], b"EXPORTER-dyad-proof", None).map(Exporter)
    }

    /// The bytes, for proofs that are made elsewhere. They must not leave this process.
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Of a channel that does not exist, for tests of state machines without sockets.
    pub fn simulated(bytes: [u8; 32]) -> Self {
        Exporter(bytes)
    }
}

/// Not shown: it is as good as the channel's keys for making proofs.
impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter(..)")
    }
}

/// Random bytes of the system.
pub fn fill(bytes: &mut [u8]) {
    SystemRandom::new().fill(bytes).expect("getrandom works once the kernel has booted");
}

/// A random number of the system: incarnations and nonces.
pub fn draw() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_being_typed() {
        let code = Code::draw();
        let typed = code.to_string().to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        assert_eq!(Code::parse(&typed), Ok(code.clone()));
        assert_eq!(code.to_string().len(), 23);
        assert_ne!(Code::draw(), code);
        assert_eq!(format!("{code:?}"), "Code(..)");
        assert_eq!(Code::parse("7K3MQ"), Err(CodeError::Length(5)));
        assert_eq!(Code::parse(&"U".repeat(20)), Err(CodeError::Letter('U')));
        assert_eq!(Code::parse(&"é".repeat(20)), Err(CodeError::Letter('é')));
    }

    #[test]
    fn a_proof_holds_for_one_secret_side_channel_and_statement() {
        let (secret, other) = (Code::draw().secret(), Code::draw().secret());
        let (here, there) = (Exporter([1; 32]), Exporter([2; 32]));
        let proof = secret.prove(Side::Asking, &here, b"s");
        assert!(secret.accepts(&proof, Side::Asking, &here, b"s"));
        assert!(!other.accepts(&proof, Side::Asking, &here, b"s"));
        assert!(!secret.accepts(&proof, Side::Answering, &here, b"s"));
        assert!(!secret.accepts(&proof, Side::Asking, &there, b"s"));
        assert!(!secret.accepts(&proof, Side::Asking, &here, b"t"));
        let seal = secret.seal(b"s");
        assert!(secret.sealed(&seal, b"s") && !secret.sealed(&seal, b"t") && !other.sealed(&seal, b"s"));
        assert!(!secret.sealed(&proof, b"s"), "each kind of proof has its own word");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
