//! How often a server that ends by itself is started again.

/// So many ends within [`WINDOW_MS`] are no accident.
const CRASHES_MAX: usize = 3;
const WINDOW_MS: u64 = 5 * 60 * 1000;
/// With nobody else to serve, it is tried again after this pause for as long as the machine runs.
const HOLD_MS: u64 = 5 * 60 * 1000;

/// Ends that nobody asked for.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    at_ms: Vec<u64>,
}

impl Crashes {
    /// Notes one; returns for how many milliseconds the server must not be started.
    pub(crate) fn note(&mut self, now_ms: u64) -> u64 {
        self.at_ms.retain(|at| at + WINDOW_MS > now_ms);
        self.at_ms.push(now_ms);
        if self.at_ms.len() < CRASHES_MAX {
            return 0;
        }
        self.at_ms.clear();
        HOLD_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_crash_in_five_minutes_holds() {
        let mut crashes = Crashes::default();
        assert_eq!(crashes.note(0), 0);
        assert_eq!(crashes.note(1_000), 0);
        assert_eq!(crashes.note(2_000), HOLD_MS);
        assert_eq!(crashes.note(3_000), 0, "after the hold the count starts anew");
    }

    #[test]
    fn crashes_far_apart_never_hold() {
        let mut crashes = Crashes::default();
        assert!((0..20).all(|number| crashes.note(number * 151_000) == 0));
    }
}
