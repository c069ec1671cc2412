//! What a node and the witness say to each other.

use dyad_cluster::arbiter::TwoHistories;
use dyad_cluster::message::{FromArbiter, RESOURCES_MAX, Registers, ToArbiter};
use dyad_cluster::types::{BootId, ClusterId, Incarnation, Node};
use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameError, Numbered};
use crate::identity::PublicKey;
use crate::secret::{Exporter, Proof, Secret, Side};

/// Where a witness listens unless told otherwise.
pub const PORT: u16 = 7400;
/// Largest message either way. The largest real one, a hello with 64 registers, takes a fifth of it.
pub const FRAME_BYTES_MAX: usize = 16 << 10;
/// Bounds of a cluster's lease T, in milliseconds.
pub const LEASE_MS: std::ops::RangeInclusive<u64> = 1_000..=120_000;

/// Node to witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// A node brings its cluster, or its cluster again, with a one-time code.
    Enroll(Enroll),
    /// The arbiter's own messages: hello, renew, batch, release.
    Arbiter {
        /// Of which cluster.
        cluster: ClusterId,
        /// The message; who sent it is told by the channel's key.
        message: ToArbiter,
    },
    /// The registers, without a session and without renewing one.
    Read {
        /// Of which cluster.
        cluster: ClusterId,
    },
    /// The cluster gives this witness up: everything about it is forgotten.
    Leave {
        /// Which cluster.
        cluster: ClusterId,
    },
}

/// What both members say when they bring their cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enroll {
    /// What is stated.
    pub statement: Statement,
    /// That its sender knows the code.
    pub proof: Proof,
}

/// The part of an enrolment that is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Keys of its members, the lower one first; the sender's is one of them.
    pub members: [PublicKey; 2],
    /// The lease T, in milliseconds.
    pub lease_ms: u64,
    /// The sender's boot.
    pub boot: BootId,
    /// The sender's mirror. The registers begin as the newest that either member was told.
    pub mirror: Registers,
}

impl Statement {
    /// Proves that this side knows the code and means this.
    pub fn prove(&self, secret: &Secret, side: Side, exporter: &Exporter) -> Proof {
        secret.prove(side, exporter, &self.bytes())
    }

    /// Whether the other side does.
    pub fn accepts(&self, secret: &Secret, proof: &Proof, side: Side, exporter: &Exporter) -> bool {
        secret.accepts(proof, side, exporter, &self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a statement has only numbers and lists of known length")
    }

    /// Which member has this key.
    pub fn member(&self, key: &PublicKey) -> Option<Node> {
        member(&self.members, key)
    }

    /// Keys in order and different, T and mirror within their bounds.
    pub fn check(&self) -> Result<(), Refused> {
        if self.members[0] >= self.members[1] {
            return Err(Refused::Members);
        }
        if !LEASE_MS.contains(&self.lease_ms) {
            return Err(Refused::Lease);
        }
        let sorted = self.mirror.windows(2).all(|w| w[0].0 < w[1].0);
        if self.mirror.len() > RESOURCES_MAX || !sorted {
            return Err(Refused::Mirror);
        }
        Ok(())
    }
}

/// Which of two members has this key.
pub fn member(members: &[PublicKey; 2], key: &PublicKey) -> Option<Node> {
    Node::BOTH.into_iter().find(|node| members[node.index()] == *key)
}

/// Witness to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Enroll`: the witness knows the code too, so its key may be pinned.
    Enrolled {
        /// Of the same statement, by the answering side.
        proof: Proof,
        /// The other member has enrolled as well; before that nothing else is answered.
        complete: bool,
    },
    /// To `Arbiter`.
    Arbiter(FromArbiter),
    /// To `Read`.
    Registers {
        /// The arbiter's run.
        incarnation: Incarnation,
        /// As they are on its disk.
        registers: Registers,
        /// Whether anything can be granted.
        grants: bool,
    },
    /// To `Leave`.
    Left,
    /// Nothing was done and nothing changed.
    Refused(Refused),
}

/// Why the witness did nothing. None of these says anything about a change that was asked for before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// Another version of the protocol.
    #[error("the witness speaks protocol version {0}")]
    Version(u8),
    /// The bytes are no message.
    #[error("the message does not decode")]
    Malformed,
    /// The message is larger than any real one.
    #[error("the message is larger than {0} bytes")]
    TooLarge(u32),
    /// No such cluster here, or this key is no member of it.
    #[error("this key is no member of that cluster here; enrol it with a code of `dyad-witness enroll`")]
    NotEnrolled,
    /// Only one member has enrolled so far.
    #[error("the other member has not enrolled yet")]
    Waiting,
    /// No open code fits.
    #[error("no code that is open here fits: it was used, mistyped, or is another witness's")]
    Code,
    /// The two members are not two keys in order, or not those that the other member named.
    #[error(
        "the members are not two different keys in rising order, or not those that the other member named"
    )]
    Members,
    /// T out of bounds or not the other member's.
    #[error("the lease must be {} to {} ms and the same in both members' enrolment", LEASE_MS.start(), LEASE_MS.end())]
    Lease,
    /// More registers than a cluster has, or unsorted.
    #[error("the mirror has more than {RESOURCES_MAX} registers, or they are not in order")]
    Mirror,
    /// The members' mirrors contradict each other.
    #[error(
        "the mirrors of the two members are two histories (resource {resource}, epoch {epoch}): an operator must say which one counts"
    )]
    TwoHistories {
        /// Number of the resource.
        resource: u16,
        /// At which epoch.
        epoch: u64,
    },
    /// The witness cannot write.
    #[error("the witness cannot write its state: {0}")]
    Storage(String),
    /// The state of this cluster is on disk, but cannot be read.
    #[error("the witness cannot read its state of this cluster; enrol the cluster again")]
    Damaged,
    /// As many clusters as this witness keeps.
    #[error("the witness keeps its most of {0} clusters")]
    Full(u32),
}

impl From<TwoHistories> for Refused {
    fn from(found: TwoHistories) -> Self {
        Refused::TwoHistories { resource: found.resource.0, epoch: found.epoch.0 }
    }
}

/// Reads what a node sent. For fuzzers too: any bytes are a call or a refusal.
pub fn decode_call(frame: &[u8]) -> Result<Numbered<Call>, Refused> {
    frame::decode(frame).map_err(|error| match error {
        FrameError::Version(_) => Refused::Version(frame::VERSION),
        FrameError::TooLarge { .. } => Refused::TooLarge(FRAME_BYTES_MAX as u32),
        FrameError::Empty | FrameError::Malformed(_) | FrameError::Io(_) => Refused::Malformed,
    })
}

/// Reads what a witness sent. For fuzzers too.
pub fn decode_reply(frame: &[u8]) -> Result<Numbered<Reply>, FrameError> {
    frame::decode(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_cluster::message::Cas;
    use dyad_cluster::register::{Change, Mode, Reason, Register};
    use dyad_cluster::types::{Epoch, Pact, RequestId, ResourceId};
    use proptest::prelude::*;

    fn pact() -> Pact {
        Pact { epoch: Epoch(u64::MAX), attempt: u32::MAX, nonce: u64::MAX }
    }

    fn registers() -> Registers {
        let mode = Mode::Sync(pact());
        let register = Register { epoch: Epoch(u64::MAX), mode, holder: Node::B, reason: Reason::Forced };
        (0..RESOURCES_MAX as u16).map(|n| (ResourceId(u16::MAX - 64 + n), register)).collect()
    }

    fn statement() -> Statement {
        Statement {
            cluster: ClusterId(u128::MAX),
            members: [PublicKey([1; 32]), PublicKey([2; 32])],
            lease_ms: 3_000,
            boot: BootId { count: u64::MAX, nonce: u64::MAX },
            mirror: registers(),
        }
    }

    #[test]
    fn the_largest_messages_fit() {
        let boot = BootId { count: u64::MAX, nonce: u64::MAX };
        let cas = |(resource, _): &(ResourceId, Register)| Cas {
            resource: *resource,
            expect: Epoch(u64::MAX),
            change: Change::TakeOver(pact()),
        };
        let batch = ToArbiter::Batch {
            boot,
            incarnation: Incarnation(u64::MAX),
            request: RequestId(u64::MAX),
            items: registers().iter().map(cas).collect(),
        };
        let hello = ToArbiter::Hello { boot, incarnation: Some(Incarnation(1)), mirror: Some(registers()) };
        for message in [batch, hello] {
            let call = Call::Arbiter { cluster: ClusterId(u128::MAX), message };
            let frame =
                frame::encode(&Numbered { number: u64::MAX, message: call }, FRAME_BYTES_MAX).unwrap();
            assert!(frame.len() < FRAME_BYTES_MAX / 4, "{}", frame.len());
        }
        let enroll = Call::Enroll(Enroll { statement: statement(), proof: Proof([0; 32]) });
        assert!(frame::encode(&Numbered { number: 1, message: enroll }, FRAME_BYTES_MAX).is_ok());
    }

    #[test]
    fn a_statement_has_bounds() {
        assert_eq!(statement().check(), Ok(()));
        let swapped = Statement { members: [PublicKey([2; 32]), PublicKey([1; 32])], ..statement() };
        assert_eq!(swapped.check(), Err(Refused::Members));
        let twins = Statement { members: [PublicKey([2; 32]); 2], ..statement() };
        assert_eq!(twins.check(), Err(Refused::Members));
        assert_eq!(Statement { lease_ms: 999, ..statement() }.check(), Err(Refused::Lease));
        let mut long = statement();
        long.mirror.extend(registers());
        assert_eq!(long.check(), Err(Refused::Mirror));
        let mut twice = statement();
        twice.mirror[1] = twice.mirror[0];
        assert_eq!(twice.check(), Err(Refused::Mirror));
    }

    #[test]
    fn a_proof_covers_the_whole_statement() {
        let secret = crate::secret::Code::draw().secret();
        let exporter = Exporter::simulated([3; 32]);
        let proof = statement().prove(&secret, Side::Asking, &exporter);
        assert!(statement().accepts(&secret, &proof, Side::Asking, &exporter));
        let mut other = statement();
        other.mirror.pop();
        assert!(!other.accepts(&secret, &proof, Side::Asking, &exporter));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let mut framed = vec![frame::VERSION];
            framed.extend(&bytes);
            let _ = decode_call(&framed);
            let _ = decode_reply(&framed);
            let _ = decode_call(&bytes);
        }

        /// Whatever decodes encodes to a message that means the same.
        #[test]
        fn a_flipped_bit_is_another_message_or_an_error(at in 0usize..4000, bit in 0..8u32) {
            let call = Call::Enroll(Enroll { statement: statement(), proof: Proof([0; 32]) });
            let sent = Numbered { number: 1, message: call };
            let mut frame = frame::encode(&sent, FRAME_BYTES_MAX).unwrap().split_off(4);
            let at = at % frame.len();
            frame[at] ^= 1 << bit;
            if let Ok(read) = decode_call(&frame) {
                let again = frame::encode(&read, FRAME_BYTES_MAX).unwrap().split_off(4);
                prop_assert_eq!(decode_call(&again).unwrap(), read);
            }
        }
    }
}
