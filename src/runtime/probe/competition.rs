//! The share of the processor that others take while something is measured.

use std::fs;

/// Processor time since the machine started, in ticks of the kernel's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    /// Time of all processors, busy or not.
    all: u64,
    /// Time in which they were busy, or a host ran other guests on them.
    busy: u64,
    /// Time that this process took.
    own: u64,
}

/// A time from which the competition is counted.
#[derive(Debug, Clone, Copy)]
pub struct Competition {
    begun: Option<Ticks>,
}

impl Competition {
    /// Largest fraction beside which measured times are those of this process alone.
    pub const MOST: f64 = 0.15;

    /// Begins to count.
    pub fn begin() -> Self {
        Self { begun: Ticks::now() }
    }

    /// Returns the fraction of all processors that others took since the beginning, or 0 on a
    /// system that does not tell.
    pub fn share(&self) -> f64 {
        let ends = self.begun.zip(Ticks::now());
        ends.map_or(0.0, |(begun, now)| share(begun, now))
    }
}

impl Ticks {
    fn now() -> Option<Self> {
        let all = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&all, &own)
    }

    /// Parses the kernel's files `/proc/stat` and `/proc/self/stat`.
    fn parse(all: &str, own: &str) -> Option<Self> {
        let first = all.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in user.
        let times: Vec<u64> =
            first.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
        let idle = times.get(3)? + times.get(4)?;
        let all: u64 = times.iter().sum();
        // The name in parentheses may hold spaces; the state follows it, and then numbers, of which
        // the 11th and 12th are the times of the process outside and inside the kernel.
        let (_, fields) = own.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let own = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self { all, busy: all - idle, own })
    }
}

/// Returns the fraction of all processors that others took between two times.
#[expect(clippy::cast_precision_loss, reason = "differences of ticks are small")]
fn share(begun: Ticks, now: Ticks) -> f64 {
    let passed = |of: fn(Ticks) -> u64| of(now).saturating_sub(of(begun));
    let others = passed(|ticks| ticks.busy).saturating_sub(passed(|ticks| ticks.own));
    others as f64 / passed(|ticks| ticks.all).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_does_not_take_itself_is_the_others() {
        let stat =
            |user: u64, idle: u64| format!("cpu  {user} 10 20 {idle} 30 0 0 5 0 0\ncpu0 1\n");
        let own = |ticks: u64| format!("7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 {ticks} 3 0 0 20 0 1 0");
        let begun = Ticks::parse(&stat(100, 400), &own(50)).expect("times");
        assert_eq!(begun, Ticks { all: 565, busy: 135, own: 53 });
        let now = Ticks::parse(&stat(180, 420), &own(90)).expect("times");
        assert!((share(begun, now) - 0.4).abs() < 1e-12);
        assert!(share(begun, begun).abs() < f64::EPSILON);
    }

    #[test]
    fn a_system_that_does_not_tell_has_no_others() {
        assert_eq!(Ticks::parse("", ""), None);
        assert_eq!(Ticks::parse("cpu 1 2 3", "7 (x) S"), None);
        assert!(Competition { begun: None }.share().abs() < f64::EPSILON);
    }
}
