//! What a forced take-over was said to cost is what it costs.

pub(crate) fn price_was_true(free: bool, given_up: usize) -> Option<String> {
    (free && given_up > 0).then(|| {
        format!("price: a take-over that was said to cost nothing gave up {given_up} acknowledged writes")
    })
}
