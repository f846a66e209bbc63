//! Numbers as people read them: counts, bytes, rates, times.
//!
//! Three significant digits are enough for a table; who needs them all asks with `--json`.

use std::time::Duration;

/// Returns `value` with a decimal prefix: `17`, `1.50 k`, `12.3 M`.
pub(crate) fn count(value: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    scaled(value as f64, 1000.0, &["", " k", " M", " G", " T", " P"])
}

/// Returns a number of bytes with a binary prefix: `512 B`, `1.50 KiB`, `61.2 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    scaled(value as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}

/// Returns a rate in packets a second: `0`, `812`, `1.20 M`.
pub(crate) fn rate(value: f64) -> String {
    scaled(value.max(0.0).round(), 1000.0, &["", " k", " M", " G", " T"])
}

/// Returns a rate in bits a second: `0 bit/s`, `9.41 Gbit/s`.
pub(crate) fn bits(value: f64) -> String {
    scaled(value.max(0.0).round(), 1000.0, &[" bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s"])
}

/// Returns a share of 1 as a percentage: `0.3 %`, `100 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = share.clamp(0.0, 1.0) * 100.0;
    if percent == 0.0 || percent >= 99.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// Returns a time with its two largest units: `350 ms`, `42 s`, `3 min 12 s`, `2 h 5 min`, `9 d 4 h`.
pub(crate) fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    match seconds {
        0 if value.subsec_millis() > 0 => format!("{} ms", value.subsec_millis()),
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Returns a time given in whole seconds, as the API gives ages.
pub(crate) fn seconds(value: u64) -> String {
    duration(Duration::from_secs(value))
}

/// Reads a time such as `30s`, `500ms`, `5m`, `2h`, `1d`, or a plain number of seconds.
///
/// # Errors
/// The text is none of these; the message says what is allowed.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("'{text}' is no time: a number with ms, s, m, h or d is allowed, as in 30s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| allowed())?;
    let unit = match text[digits..].trim() {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(allowed()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(allowed)
}

/// Returns `value` below `base` with the unit that brings it there, and three significant digits.
fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 and more would be printed as 1000 or "1.00e3": the next unit already.
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits_and_a_prefix() {
        let shown: Vec<_> = [0, 7, 999, 1000, 1499, 12_345, 999_499, 999_999, 1_500_000, u64::MAX]
            .map(count)
            .into_iter()
            .collect();
        assert_eq!(
            shown,
            ["0", "7", "999", "1.00 k", "1.50 k", "12.3 k", "999 k", "1.00 M", "1.50 M", "18447 P"]
        );
    }

    #[test]
    fn bytes_have_binary_prefixes() {
        assert_eq!([0, 1023, 1024, 61 << 20].map(bytes), ["0 B", "1023 B", "1.00 KiB", "61.0 MiB"]);
    }

    #[test]
    fn rates_and_shares_are_rounded() {
        assert_eq!(rate(1_234_567.8), "1.23 M");
        assert_eq!(bits(9.41e9), "9.41 Gbit/s");
        assert_eq!(bits(-1.0), "0 bit/s");
        assert_eq!([0.0, 0.003, 0.5, 0.9999, 1.0].map(percent), ["0 %", "0.3 %", "50.0 %", "100 %", "100 %"]);
    }

    #[test]
    fn durations_show_two_units() {
        assert_eq!(duration(Duration::from_millis(350)), "350 ms");
        let shown = [0, 42, 192, 7500, 792_000].map(seconds);
        assert_eq!(shown, ["0 s", "42 s", "3 min 12 s", "2 h 5 min", "9 d 4 h"]);
    }

    #[test]
    fn durations_are_read_with_and_without_unit() {
        for (text, want) in [("30s", 30), ("30", 30), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(want)), "{text}");
        }
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "s", "-1s", "1.5s", "30 parsecs", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
