//! Figures of many rounds as rows of a table.

use std::fs;

/// Prints the head that [`row`] belongs to.
pub(crate) fn head() {
    println!("| what | rounds | min ms | median ms | p99 ms | max ms |\n|---|---|---|---|---|---|");
}

/// Prints one row; the p99 is the value that 99 % of the rounds do not exceed (of fewer than 100 the largest).
pub(crate) fn row(what: &str, ms: &[f64]) {
    match spread(ms) {
        Some([min, median, p99, max]) => {
            println!("| {what} | {} | {min:.0} | {median:.0} | {p99:.0} | {max:.0} |", ms.len());
        }
        None => println!("| {what} | 0 | | | | |"),
    }
}

/// Minimum, median, p99 and maximum; `None` of nothing.
pub(crate) fn spread(values: &[f64]) -> Option<[f64; 4]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = |part: f64| sorted.get((part * sorted.len() as f64).ceil() as usize - 1).copied();
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    Some([min, rank(0.5)?, rank(0.99)?, max])
}

/// How busy the machine is.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_sorted_values() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(spread(&hundred), Some([1.0, 50.0, 99.0, 100.0]));
        assert_eq!(spread(&[7.0]), Some([7.0, 7.0, 7.0, 7.0]));
        assert_eq!(spread(&[]), None);
    }
}
