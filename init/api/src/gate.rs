//! The gate of the virtual addresses: nftables sets that the supervisor fills with elements of limited life, and that PID 1
//! empties when the dead-man's deadline passes. An address whose element is gone is neither answered for nor used.

/// A set of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSet {
    /// Protocol family of its table: `NFPROTO_INET` (1) or `NFPROTO_ARP` (3).
    pub family: u8,
    /// Table.
    pub table: &'static str,
    /// Set.
    pub set: &'static str,
}

/// All sets of the gate.
pub const SETS: [GateSet; 3] = [
    GateSet { family: 1, table: "dyad_gate", set: "vip4" },
    GateSet { family: 1, table: "dyad_gate", set: "vip6" },
    GateSet { family: 3, table: "dyad_gate", set: "vip4" },
];
