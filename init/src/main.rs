//! The program `init`.

#[global_allocator]
static HEAP: dyad_sys::heap::Counting = dyad_sys::heap::Counting;

fn main() -> std::process::ExitCode {
    dyad_init::run()
}
