//! The real witness, where tests of the lab find it.

fn main() -> std::process::ExitCode {
    dyad_witness::cli::main()
}
