//! The few numbers of PostgreSQL 15's binary interface that the guard rests on. A test compiles them against the
//! server's own headers; the server itself compares the magic block when it loads the library.

#![allow(unreachable_pub, reason = "the library and its tests both include this file")]

use std::ffi::{c_char, c_int};

/// `Pg_magic_struct`.
#[repr(C)]
pub struct Magic {
    /// Bytes of this struct.
    pub len: c_int,
    /// Major version times 100.
    pub version: c_int,
    /// `FUNC_MAX_ARGS`.
    pub func_max_args: c_int,
    /// `INDEX_MAX_KEYS`.
    pub index_max_keys: c_int,
    /// `NAMEDATALEN`.
    pub name_data_len: c_int,
    /// `FLOAT8PASSBYVAL`.
    pub float8_by_val: c_int,
    /// `FMGR_ABI_EXTRA`.
    pub abi_extra: [u8; 32],
}

/// What the server compares with its own: PostgreSQL 15, and nothing else.
pub const MAGIC: Magic = Magic {
    len: size_of::<Magic>() as c_int,
    version: 1500,
    func_max_args: 100,
    index_max_keys: 32,
    name_data_len: 64,
    float8_by_val: 1,
    abi_extra: *b"PostgreSQL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
};

/// `SYNCHRONOUS_COMMIT_ON`.
pub const COMMIT_ON: c_int = 3;
/// `XACT_EVENT_COMMIT`.
pub const EVENT_COMMIT: c_int = 0;
/// `XACT_EVENT_ABORT`.
pub const EVENT_ABORT: c_int = 2;
/// `XACT_EVENT_PREPARE`.
pub const EVENT_PREPARE: c_int = 4;
/// `XACT_EVENT_PRE_COMMIT`.
pub const EVENT_PRE_COMMIT: c_int = 5;
/// `XACT_EVENT_PRE_PREPARE`.
pub const EVENT_PRE_PREPARE: c_int = 7;
/// `T_TransactionStmt`.
pub const TAG_TRANSACTION: c_int = 270;
/// `TRANS_STMT_COMMIT_PREPARED`.
pub const KIND_COMMIT_PREPARED: c_int = 8;
/// `TRANS_STMT_ROLLBACK_PREPARED`.
pub const KIND_ROLLBACK_PREPARED: c_int = 9;
/// Offset of `PlannedStmt.utilityStmt`.
pub const PLANNED_UTILITY: usize = 112;
/// Offset of `TransactionStmt.kind`.
pub const TRANSACTION_KIND: usize = 4;
/// `PGC_INTERNAL`.
pub const GUC_INTERNAL: c_int = 0;
/// `PGC_SIGHUP`.
pub const GUC_SIGHUP: c_int = 2;
/// `ERROR`.
pub const ERROR: c_int = 21;

/// `GucShowHook`.
pub type ShowHook = extern "C-unwind" fn() -> *const c_char;
