//! `dyad-witness`: the third vote.
//!
//! Exit status: 0 done; 1 refused or failed, the reason on standard error; 2 usage.

fn main() -> std::process::ExitCode {
    dyad_witness::cli::main()
}
