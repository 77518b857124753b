//! The best answers to a load by a scheduler that knows all arrivals: a bound for others.

use std::time::Duration;

/// Number of steps into which the budget is divided. Times are rounded down to steps, so
/// the bound may be too high by a step for each batch, and never too low.
const NUM_STEPS: usize = 200;

/// Value of an answer in time beside which its quality counts little: first all answers that are
/// possible, then the best ones.
const ANSWER: f64 = 1e6;

/// Plan at one batch size and length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Time of the batch.
    pub time: Duration,
    /// Quality of the plan.
    pub quality: f64,
}

/// Plans by length and batch size.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// Lengths in tokens, ascending.
    pub tokens: Vec<usize>,
    /// Plans of each length, and there of each batch size from 1.
    pub choices: Vec<Vec<Vec<Choice>>>,
}

/// Request of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    /// Arrival from the start of the load.
    pub offset: Duration,
    /// Length in tokens.
    pub tokens: usize,
}

/// Best answers that are possible.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Fraction of requests that can be answered in time.
    pub attainment: f64,
    /// Mean quality of those answers.
    pub mean_quality: f64,
}

/// Request on the grid of steps.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Arrival in steps from the start of the load. The deadline is [`NUM_STEPS`] later.
    arrival: f64,
    /// Index of the length.
    length: usize,
}

/// Plan at one batch size, on the grid.
#[derive(Debug, Clone, Copy)]
struct Step {
    steps: f64,
    quality: f64,
}

/// Returns the best answers within `budget` to `asked`, which ascend, on one thread. Requests run
/// in the order of their arrivals, in batches of those that follow one another. First as many as
/// possible are in time; then their quality is the highest. Found by dynamic programming over the
/// requests and the time at which the thread is free.
pub fn bound(asked: &[Asked], budget: Duration, costs: &Costs) -> Bound {
    let step = budget.div_f64(count(NUM_STEPS)).as_secs_f64();
    let last_length = costs.tokens.len().saturating_sub(1);
    let slot = |request: &Asked| Slot {
        arrival: request.offset.as_secs_f64() / step,
        length: costs.tokens.partition_point(|n| *n < request.tokens).min(last_length),
    };
    let slots: Vec<Slot> = asked.iter().map(slot).collect();
    let choices: Vec<Vec<Vec<Step>>> = costs.choices.iter().map(|rows| grid(rows, step)).collect();
    let mut values = vec![vec![0.0; NUM_STEPS + 1]; slots.len() + 1];
    for index in (0..slots.len()).rev() {
        let (before, after) = values.split_at_mut(index + 1);
        for (at, value) in before[index].iter_mut().enumerate() {
            *value = best(&slots[index..], &choices, after, count(at));
        }
    }
    let value = values[0][0];
    let answered = (value / ANSWER).floor();
    Bound {
        attainment: answered / count(slots.len().max(1)),
        mean_quality: (value - answered * ANSWER) / answered.max(1.0),
    }
}

/// Returns the choices of each batch size on the grid.
fn grid(rows: &[Vec<Choice>], step: f64) -> Vec<Vec<Step>> {
    let on_grid =
        |choice: &Choice| Step { steps: choice.time.as_secs_f64() / step, quality: choice.quality };
    rows.iter().map(|choices| choices.iter().map(on_grid).collect()).collect()
}

/// Returns the value of the requests `slots`, when the thread is free at step `free` of the first
/// one. `after` has the values of all requests behind the first.
fn best(slots: &[Slot], choices: &[Vec<Vec<Step>>], after: &[Vec<f64>], free: f64) -> f64 {
    let first = slots[0];
    // The value of what follows, when the thread is free at `time` of the first request's steps.
    let rest = |taken: usize, time: f64| {
        let arrival = slots.get(taken).map_or(first.arrival, |slot| slot.arrival);
        after[taken - 1][rounded(time - (arrival - first.arrival))]
    };
    let mut found = rest(1, free);
    let (mut start, mut length) = (free, 0);
    let most = choices.first().map_or(0, Vec::len).min(slots.len());
    for (slot, rows) in slots[..most].iter().zip(1..) {
        start = start.max(slot.arrival - first.arrival);
        length = length.max(slot.length);
        // The first request has the first deadline.
        if start >= count(NUM_STEPS) {
            break;
        }
        for choice in choices.get(length).and_then(|of| of.get(rows - 1)).into_iter().flatten() {
            let end = start + choice.steps;
            if end <= count(NUM_STEPS) {
                let value = count(rows) * (ANSWER + choice.quality);
                found = found.max(value + rest(rows, end));
            }
        }
    }
    found
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn count(value: usize) -> f64 {
    value as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 200")]
fn rounded(steps: f64) -> usize {
    steps.clamp(0.0, count(NUM_STEPS)).floor() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// A quick plan of quality .5 and a slow one of quality 1; a second row costs half as much.
    fn costs() -> Costs {
        let row = |quick, slow| {
            let choice = |time, quality| Choice { time: ms(time), quality };
            vec![choice(quick, 0.5), choice(slow, 1.0)]
        };
        let short = vec![row(10, 40), row(15, 60)];
        let long = vec![row(20, 80), row(30, 120)];
        Costs { tokens: vec![16, 64], choices: vec![short, long] }
    }

    fn asked(offset: u64, tokens: usize) -> Asked {
        Asked { offset: ms(offset), tokens }
    }

    fn bound(asked: &[Asked]) -> Bound {
        super::bound(asked, ms(100), &costs())
    }

    #[test]
    fn a_calm_load_gets_the_best_plan() {
        let found = bound(&[asked(0, 16), asked(500, 16), asked(900, 64)]);
        assert_eq!(found, Bound { attainment: 1.0, mean_quality: 1.0 });
        assert_eq!(bound(&[]), Bound { attainment: 0.0, mean_quality: 0.0 });
    }

    #[test]
    fn requests_that_come_together_share_a_batch_and_the_time() {
        // Two of four are good: 60 ms for one pair, then 15 ms for the other.
        let found = bound(&[asked(0, 16); 4]);
        assert_eq!(found, Bound { attainment: 1.0, mean_quality: 0.75 });
        // Thirteen are answered at most: six pairs in 90 ms, and one request more.
        let found = bound(&[asked(0, 16); 20]);
        assert_eq!(found, Bound { attainment: 13.0 / 20.0, mean_quality: 0.5 });
    }

    #[test]
    fn answers_come_before_quality() {
        // The slow plan for the first request would end at 80 ms, too late for the others.
        let load = [0, 20, 20, 20, 20, 20, 20].map(|offset| asked(offset, 64));
        assert_eq!(bound(&load), Bound { attainment: 1.0, mean_quality: 0.5 });
        // What has no plan in time does not hold up what follows.
        let mut costs = costs();
        costs.choices[1] = vec![vec![Choice { time: ms(101), quality: 1.0 }]; 2];
        let found = super::bound(&[asked(0, 64), asked(0, 16)], ms(100), &costs);
        assert_eq!(found, Bound { attainment: 0.5, mean_quality: 1.0 });
    }

    #[test]
    fn what_is_known_of_the_future_counts() {
        // The pair takes 60 ms and ends before the burst that needs its whole budget.
        let burst = [asked(62, 64); 6];
        let load: Vec<Asked> = [asked(0, 16), asked(1, 16)].into_iter().chain(burst).collect();
        assert_eq!(bound(&load), Bound { attainment: 1.0, mean_quality: 5.0 / 8.0 });
        // A burst that comes a little earlier leaves no time for it.
        let burst = [asked(45, 64); 6];
        let load: Vec<Asked> = [asked(0, 16), asked(1, 16)].into_iter().chain(burst).collect();
        assert_eq!(bound(&load), Bound { attainment: 1.0, mean_quality: 4.5 / 8.0 });
    }
}
