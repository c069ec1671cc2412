//! PID 1: initrd stage, early boot phases, service core.

mod clock;
mod initrd;
mod log;
mod modalias;
mod modules;
mod mounts;
mod uevent;

fn main() {
    initrd::run()
}
