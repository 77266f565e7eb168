//! Bars: how full something is before and after, as a picture of plain characters that every terminal, log and mail
//! shows. `#` stays, `+` comes, `-` goes, `.` is free.

/// The characters of a bar.
const WIDTH: u64 = 20;

/// What the characters mean, for below a table.
pub const LEGEND: &str = "# stays, + comes, - goes, . is free";

/// A bar with both shares behind it: `[######++++..........] 30 > 50 %`, or one share where nothing changes.
pub fn bar(before: u64, after: u64, capacity: u64) -> String {
    let (old, new) = (cells(before, capacity), cells(after, capacity));
    let stays = old.min(new);
    let (comes, goes) = (new - stays, old - stays);
    let mut text = String::from("[");
    for (character, count) in [('#', stays), ('+', comes), ('-', goes), ('.', WIDTH - old.max(new))] {
        text.extend(std::iter::repeat_n(character, count as usize));
    }
    let (before, after) = (percent(before, capacity), percent(after, capacity));
    match before == after {
        true => text + &format!("] {after:>3} %"),
        false => text + &format!("] {before:>3} > {after} %"),
    }
}

/// Anything at all is a cell at least, and only what is full has them all.
fn cells(amount: u64, capacity: u64) -> u64 {
    match amount {
        0 => 0,
        _ if amount >= capacity => WIDTH,
        _ => (amount * WIDTH / capacity).clamp(1, WIDTH - 1),
    }
}

/// Rounded down, so that 100 is said of nothing that has room.
fn percent(amount: u64, capacity: u64) -> u64 {
    match (amount, capacity) {
        (0, _) => 0,
        (_, 0) => 100,
        _ => amount.saturating_mul(100) / capacity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_seen() {
        assert_eq!(bar(30, 50, 100), "[######++++..........]  30 > 50 %");
        assert_eq!(bar(50, 30, 100), "[######----..........]  50 > 30 %");
        assert_eq!(bar(50, 50, 100), "[##########..........]  50 %");
    }

    #[test]
    fn a_little_is_seen_and_almost_full_is_not_full() {
        assert_eq!(bar(1, 1, 1_000), "[#...................]   0 %");
        assert_eq!(bar(999, 999, 1_000), "[###################.]  99 %");
        assert_eq!(bar(0, 1_000, 1_000), "[++++++++++++++++++++]   0 > 100 %");
        assert_eq!(bar(0, 0, 0), "[....................]   0 %");
        assert_eq!(bar(3, 3, 2), "[####################] 150 %");
    }
}
