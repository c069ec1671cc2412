//! The authority register: who may write a resource, and the only ways in which that can change.

use serde::{Deserialize, Serialize};

use crate::types::{Epoch, Node, Pact};

/// Who acknowledges writes, and on what condition (rule 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// The holder acknowledges only what the standby flushed; the standby may take over under this pact.
    Sync(Pact),
    /// The holder acknowledges alone; nobody may take over.
    Solo,
}

/// The durable record of authority over one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Register {
    /// Rises with every change.
    pub epoch: Epoch,
    /// How the holder acknowledges.
    pub mode: Mode,
    /// The one node that may write.
    pub holder: Node,
    /// What the last change was for.
    pub reason: Reason,
}

/// Why authority changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The resource was made.
    Founded,
    /// The standby was lost.
    Degraded,
    /// The holder was lost.
    TookOver,
    /// The standby caught up.
    Protected,
    /// The holder came back after a restart of itself.
    Resumed,
    /// An operator said that the other machine is off.
    Forced,
}

/// A change that a node asks for. Every one needs the epoch that the node believes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Change {
    /// First register of a resource, by its founder; expects epoch zero.
    Found,
    /// Rule 2: `Sync(P,S,e) -> Solo(P,e+1)`, by P.
    Degrade,
    /// Rule 3: `Sync(P,S,e) -> Solo(S,e+1)`, by S, whose marker holds this pact.
    TakeOver(Pact),
    /// Rule 4f: `Solo(P,e) -> Sync(P,S,e+1,pact)`, by P.
    Protect(Pact),
    /// Rule 5: same mode and holder, epoch raised, by the holder after any restart of itself.
    Resume,
    /// Operator's take-over of the other node's data, at a price that was shown: `*(P) -> Solo(S,e+1)`, by S.
    Force,
}

/// Why a change was refused by the register itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Conflict {
    /// The register has another epoch.
    Epoch,
    /// The mode does not allow it: take-over or degrade from Solo, protect from Sync.
    Mode,
    /// The asking node is not the one that may ask.
    Party,
    /// The pact is not the register's.
    Pact,
    /// The cluster has as many resources as it can have.
    Full,
}

/// What the register would become; refused changes leave everything as it was.
///
/// This is the whole table of legal edges. Whether the arbiter grants a take-over *now* (rule 7) is a further question.
pub fn apply(
    current: Option<&Register>,
    expect: Epoch,
    asker: Node,
    change: Change,
) -> Result<Register, Conflict> {
    let Some(now) = current else {
        return match change {
            Change::Found if expect == Epoch(0) => {
                Ok(Register { epoch: Epoch(1), mode: Mode::Solo, holder: asker, reason: Reason::Founded })
            }
            Change::Found
            | Change::Degrade
            | Change::TakeOver(_)
            | Change::Protect(_)
            | Change::Resume
            | Change::Force => Err(Conflict::Epoch),
        };
    };
    if expect != now.epoch {
        return Err(Conflict::Epoch);
    }
    let by_holder = asker == now.holder;
    let (mode, holder, reason) = match (change, now.mode) {
        (Change::Found, Mode::Sync(_) | Mode::Solo) => return Err(Conflict::Epoch),
        (Change::Degrade, Mode::Sync(_)) if by_holder => (Mode::Solo, now.holder, Reason::Degraded),
        (Change::Degrade, Mode::Sync(_)) => return Err(Conflict::Party),
        (Change::Degrade | Change::TakeOver(_), Mode::Solo) => return Err(Conflict::Mode),
        (Change::TakeOver(_), Mode::Sync(_)) if by_holder => return Err(Conflict::Party),
        (Change::TakeOver(pact), Mode::Sync(current)) if pact != current => return Err(Conflict::Pact),
        (Change::TakeOver(_), Mode::Sync(_)) => (Mode::Solo, asker, Reason::TookOver),
        (Change::Protect(_), Mode::Sync(_)) => return Err(Conflict::Mode),
        (Change::Protect(pact), Mode::Solo) if by_holder => (Mode::Sync(pact), now.holder, Reason::Protected),
        (Change::Protect(_), Mode::Solo) => return Err(Conflict::Party),
        (Change::Resume, mode @ (Mode::Sync(_) | Mode::Solo)) if by_holder => {
            (mode, now.holder, Reason::Resumed)
        }
        (Change::Resume, Mode::Sync(_) | Mode::Solo) => return Err(Conflict::Party),
        (Change::Force, Mode::Sync(_) | Mode::Solo) if by_holder => return Err(Conflict::Party),
        (Change::Force, Mode::Sync(_) | Mode::Solo) => (Mode::Solo, asker, Reason::Forced),
    };
    Ok(Register { epoch: now.epoch.next(), mode, holder, reason })
}
