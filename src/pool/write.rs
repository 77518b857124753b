//! Writing single files atomically, and formatting the date.

use std::{path::Path, time::SystemTime};

use super::{
    disk::{FileSystem, TEMPORARY, folder_of, place, sweep},
    error::PoolError,
};

/// Writes `content` to a temporary file beside `path`, then renames it. Also removes temporary
/// files that a killed process has left beside `path`.
///
/// # Errors
///
/// Fails when the folder cannot be made or the file cannot be written.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), PoolError> {
    sweep(&FileSystem, folder_of(path), TEMPORARY);
    place(&FileSystem, path, content)
        .map_err(|reason| PoolError::File { path: path.to_owned(), reason })
}

/// Returns the day of `now` in UTC as `YYYY-MM-DD` (Howard Hinnant's civil-from-days).
pub fn today(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_named_as_in_the_calendar() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_798_675_199, "2026-12-30"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(today(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), day);
        }
    }

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/file");
        for content in ["one", "two"] {
            write_atomically(&path, content.as_bytes()).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), content);
        }
        let left = std::fs::read_dir(folder.path().join("deep")).expect("listed").count();
        assert_eq!(left, 1);
    }
}
