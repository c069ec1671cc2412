//! The guard's numbers against the headers of PostgreSQL 15, by a C compiler.

#![allow(clippy::disallowed_methods, reason = "a test that starts a compiler")]
#![allow(dead_code, reason = "the file is the library's, and not every item of it is a number")]

#[path = "../src/abi.rs"]
mod abi;

use std::io::Write;
use std::process::{Command, Stdio};

use abi::*;

const HEADERS: &str = "/usr/include/postgresql/15/server";

#[test]
fn the_numbers_are_those_of_the_servers_headers() {
    let text = include_str!("../src/abi.rs");
    let Magic { len, version, func_max_args, index_max_keys, name_data_len, float8_by_val, abi_extra } =
        MAGIC;
    let equal = [
        ("sizeof(Pg_magic_struct)", len as usize),
        ("PG_VERSION_NUM / 100", version as usize),
        ("FUNC_MAX_ARGS", func_max_args as usize),
        ("INDEX_MAX_KEYS", index_max_keys as usize),
        ("NAMEDATALEN", name_data_len as usize),
        ("FLOAT8PASSBYVAL", float8_by_val as usize),
        ("offsetof(Pg_magic_struct, abi_extra)", std::mem::offset_of!(Magic, abi_extra)),
        ("sizeof(FMGR_ABI_EXTRA) - 1", abi_extra.iter().take_while(|byte| **byte != 0).count()),
        ("SYNCHRONOUS_COMMIT_ON", COMMIT_ON as usize),
        ("XACT_EVENT_COMMIT", EVENT_COMMIT as usize),
        ("XACT_EVENT_ABORT", EVENT_ABORT as usize),
        ("XACT_EVENT_PREPARE", EVENT_PREPARE as usize),
        ("XACT_EVENT_PRE_COMMIT", EVENT_PRE_COMMIT as usize),
        ("XACT_EVENT_PRE_PREPARE", EVENT_PRE_PREPARE as usize),
        ("T_TransactionStmt", TAG_TRANSACTION as usize),
        ("TRANS_STMT_COMMIT_PREPARED", KIND_COMMIT_PREPARED as usize),
        ("TRANS_STMT_ROLLBACK_PREPARED", KIND_ROLLBACK_PREPARED as usize),
        ("offsetof(PlannedStmt, utilityStmt)", PLANNED_UTILITY),
        ("offsetof(TransactionStmt, kind)", TRANSACTION_KIND),
        ("PGC_INTERNAL", GUC_INTERNAL as usize),
        ("PGC_SIGHUP", GUC_SIGHUP as usize),
        ("ERROR", ERROR as usize),
        ("sizeof(sig_atomic_t)", size_of::<std::ffi::c_int>()),
        ("sizeof(ProcessUtilityContext)", size_of::<std::ffi::c_int>()),
        ("sizeof(Oid)", 4),
    ];
    let constants = text.lines().filter(|line| line.starts_with("pub const")).count() - 1;
    assert!(equal.len() >= constants + 7, "every constant is compared: {constants}");
    let mut source = String::from(
        "#include \"postgres.h\"\n#include <signal.h>\n#include \"access/xact.h\"\n#include \"fmgr.h\"\n\
         #include \"miscadmin.h\"\n#include \"nodes/parsenodes.h\"\n#include \"nodes/plannodes.h\"\n\
         #include \"replication/syncrep.h\"\n#include \"tcop/utility.h\"\n#include \"utils/guc.h\"\n",
    );
    for (expression, value) in equal {
        source.push_str(&format!("_Static_assert(({expression}) == {value}, \"{expression}\");\n"));
    }
    // Declared again with the types that the library uses: the compiler refuses another type.
    source.push_str(
        "extern volatile sig_atomic_t InterruptPending, QueryCancelPending;\nextern int synchronous_commit;\n\
         extern bool process_shared_preload_libraries_in_progress;\nextern pid_t PostmasterPid;\n\
         extern void ProcessInterrupts(void);\nextern void assign_synchronous_commit(int, void *);\n\
         extern Oid GetSessionUserId(void);\nextern char *GetUserNameFromId(Oid, bool);\n\
         extern void RegisterXactCallback(void (*)(XactEvent, void *), void *);\n\
         extern void standard_ProcessUtility(PlannedStmt *, const char *, bool, ProcessUtilityContext, ParamListInfo,\n\
         QueryEnvironment *, DestReceiver *, QueryCompletion *);\nextern ProcessUtility_hook_type ProcessUtility_hook;\n\
         extern void DefineCustomStringVariable(const char *, const char *, const char *, char **, const char *,\n\
         GucContext, int, GucStringCheckHook, GucStringAssignHook, GucShowHook);\n\
         extern void MarkGUCPrefixReserved(const char *);\nextern bool errstart(int, const char *);\n\
         extern int errmsg(const char *, ...);\nextern void errfinish(const char *, int, const char *);\n",
    );
    let mut compiler = Command::new("/usr/bin/cc")
        .args(["-x", "c", "-fsyntax-only", "-w", "-I", HEADERS, "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a C compiler");
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = compiler.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
