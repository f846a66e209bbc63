//! `vsctl log` and `watch`: what happened, and what happens.

use clap::Args;
use config::api::{Event, route};
use serde_json::Value;

use crate::client::{ApiError, read, with_query};
use crate::{Context, output};

/// Shows the last events: changes of the configuration, ports that came and went, stations that moved.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl log -n 20")]
pub(crate) struct Log {
    /// At most COUNT events
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

/// Shows events as they happen, until Ctrl-C.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl watch")]
pub(crate) struct Watch {}

impl Log {
    /// Shows the last events, oldest first.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = with_query(route::LOG, &[("limit", Some(self.limit.to_string()))]);
        context.show(&context.client.get(&path).await?, |events: &Vec<Event>| {
            if events.is_empty() { "No events.\n".to_owned() } else { events.iter().map(line).collect() }
        })
    }
}

impl Watch {
    /// Shows events until Ctrl-C or the end of the daemon.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        follow(context, route::EVENTS, |value| Ok(line(&read(value)?))).await
    }
}

/// Prints the objects of an endless answer, one a line, until Ctrl-C or its end.
///
/// # Errors
/// The stream cannot be opened or breaks, or nobody reads our output.
pub(crate) async fn follow(
    context: &Context,
    path: &str,
    render: impl Fn(&Value) -> Result<String, ApiError>,
) -> anyhow::Result<()> {
    let mut stream = context.client.stream(path).await?;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let object = tokio::select! {
            object = stream.object() => object?,
            _ = &mut interrupt => return Ok(()),
        };
        let Some(object) = object else {
            eprintln!("vsctl: the switch ended the stream");
            return Ok(());
        };
        output::print(&if context.json { format!("{object}\n") } else { render(&object)? })?;
    }
}

fn line(event: &Event) -> String {
    let Event { time_ms, kind, object, text } = event;
    let object = if object.is_empty() { String::new() } else { format!(" {object}") };
    let text = if text.is_empty() { String::new() } else { format!(": {text}") };
    format!("{} {kind}{object}{text}\n", date(*time_ms))
}

/// Returns the time of day, UTC, of `microseconds` since 1970.
pub(crate) fn clock(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000 % 86_400;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{rest:02}.{:06}", microseconds % 1_000_000)
}

/// Returns date and time, UTC, of `milliseconds` since 1970, as RFC 3339 writes them.
fn date(milliseconds: u64) -> String {
    let days = milliseconds / 86_400_000;
    // Days are counted from 1 March 0000, so that the leap day is the last of a year (H. Hinnant,
    // "chrono-compatible low-level date algorithms", civil_from_days).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let time = clock(milliseconds * 1000);
    format!("{year:04}-{month:02}-{day:02}T{}Z", &time[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_795_247_105, "2026-11-21T07:45:05.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(date(seconds * 1000), want);
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let mut event = Event {
            time_ms: 1500,
            kind: "port_gone".to_owned(),
            object: "port web".to_owned(),
            text: "its namespace was deleted".to_owned(),
        };
        assert_eq!(line(&event), "1970-01-01T00:00:01.500Z port_gone port web: its namespace was deleted\n");
        event.object.clear();
        event.text.clear();
        assert_eq!(line(&event), "1970-01-01T00:00:01.500Z port_gone\n");
    }
}
