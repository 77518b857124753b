//! Comparison of chosen plans with the best fixed plan and with the oracle, load by load.

use serde::Serialize;

use super::row::{ORACLE, Row, TESSERA};

/// Largest shortfall in attainment or quality at which a fixed plan still counts as equal.
const EQUAL: f64 = 0.002;

/// Least attainment of a fixed plan that an operator would deploy.
const DEPLOYABLE: f64 = 0.99;

/// Least attainment in the first round of a plan that is measured in the others.
const PROMISING: f64 = 0.97;

/// Number of fixed plans that are measured in all rounds.
const NUM_PROMISING: usize = 3;

/// Least lead of the oracle over the best fixed plan of which a share tells something.
const LEAD: f64 = 0.002;

/// Comparison of Tessera with fixed plans under one load. All values are means over the rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Comparison {
    load: f64,
    traffic: String,
    attainment: f64,
    mean_quality: f64,
    /// Plan of highest quality among those that attain .99: what someone would deploy who knew
    /// this load.
    best_fixed: Option<Standing>,
    /// Cheapest plan (INFaaS without a demanded accuracy).
    cheapest: Option<Standing>,
    /// Plan of highest attainment among those of equal or better quality.
    equal_quality: Option<Standing>,
    /// Plan of highest quality among those of equal or better attainment.
    equal_attainment: Option<Standing>,
    /// Best answers of a scheduler that knows all arrivals.
    oracle: Option<Standing>,
    /// Tessera's lead over the best fixed plan as a share of the oracle's.
    share_of_oracle: Option<f64>,
}

/// A policy under one load and its measurements, as means over the rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Standing {
    pub(super) policy: String,
    #[serde(skip)]
    pub(super) load: f64,
    #[serde(skip)]
    pub(super) traffic: String,
    pub(super) attainment: f64,
    pub(super) mean_quality: f64,
}

impl Standing {
    /// Returns whether the policy is one plan for all requests.
    fn is_fixed(&self) -> bool {
        ![TESSERA, ORACLE].contains(&self.policy.as_str())
    }

    /// Returns whether `other` has the same load and traffic.
    fn is_beside(&self, other: &Self) -> bool {
        self.load.total_cmp(&other.load).is_eq() && self.traffic == other.traffic
    }
}

/// Returns the policies under each load and traffic, in the order of their first rows.
pub(super) fn standings(rows: &[Row]) -> Vec<Standing> {
    let is_alike = |row: &Row, other: &Row| {
        let is_same_load = row.load.total_cmp(&other.load).is_eq();
        is_same_load && row.traffic == other.traffic && row.policy == other.policy
    };
    let standing = |first: &Row| {
        let mean = |value: fn(&Row) -> f64| {
            let rounds = rows.iter().filter(|row| is_alike(row, first));
            let (sum, count) = rounds.fold((0.0, 0.0), |(sum, n), row| (sum + value(row), n + 1.0));
            sum / count
        };
        Standing {
            policy: first.policy.clone(),
            load: first.load,
            traffic: first.traffic.clone(),
            attainment: mean(|row| row.measured.attainment),
            mean_quality: mean(|row| row.measured.mean_quality),
        }
    };
    let is_first =
        |(index, row): &(usize, &Row)| !rows[..*index].iter().any(|other| is_alike(row, other));
    rows.iter().enumerate().filter(is_first).map(|(_, row)| standing(row)).collect()
}

/// Returns Tessera and the fixed plans that may be the best ones of a load by its first round.
pub(super) fn promising(rows: &[Row]) -> Vec<String> {
    let mut fixed = standings(rows);
    fixed.retain(|found| found.is_fixed() && found.attainment >= PROMISING);
    fixed.sort_by(|a, b| b.mean_quality.total_cmp(&a.mean_quality));
    let fixed = fixed.into_iter().take(NUM_PROMISING).map(|found| found.policy);
    [TESSERA.to_owned()].into_iter().chain(fixed).collect()
}

/// Compares Tessera with the fixed plans under each load. `front` has the plans of the front,
/// cheapest first.
pub(super) fn compare(standings: &[Standing], front: &[String]) -> Vec<Comparison> {
    let own = standings.iter().filter(|found| found.policy == TESSERA);
    own.map(|own| {
        let Standing { attainment, mean_quality, .. } = *own;
        let beside = || standings.iter().filter(|found| found.is_beside(own));
        let find = |policy: &str| beside().find(|found| found.policy == policy).cloned();
        let fixed = || beside().filter(|rival| rival.is_fixed() && rival.attainment > 0.0).cloned();
        let best = |least: f64| {
            let rivals = fixed().filter(move |rival| rival.attainment >= least);
            rivals.max_by(|a, b| a.mean_quality.total_cmp(&b.mean_quality))
        };
        let as_good = fixed().filter(|rival| rival.mean_quality >= mean_quality - EQUAL);
        let (best_fixed, oracle) = (best(DEPLOYABLE), find(ORACLE));
        let share = |best: &Standing, oracle: &Standing| {
            let lead = oracle.mean_quality - best.mean_quality;
            (lead > LEAD).then(|| (mean_quality - best.mean_quality) / lead)
        };
        Comparison {
            load: own.load,
            traffic: own.traffic.clone(),
            attainment,
            mean_quality,
            share_of_oracle: best_fixed
                .as_ref()
                .zip(oracle.as_ref())
                .and_then(|(best, oracle)| share(best, oracle)),
            best_fixed,
            cheapest: front.iter().find_map(|plan| find(plan)),
            equal_quality: as_good.max_by(|a, b| a.attainment.total_cmp(&b.attainment)),
            equal_attainment: best(attainment - EQUAL),
            oracle,
        }
    })
    .collect()
}

/// Writes a comparison as a line of text.
pub(super) fn describe(comparison: &Comparison) -> String {
    let Comparison { load, traffic, attainment, mean_quality, .. } = comparison;
    let by_quality =
        comparison.equal_quality.as_ref().map_or("no plan is as good".to_owned(), |rival| {
            let Standing { policy, attainment: other, .. } = rival;
            format!("{:.2} times as often as {policy} ({other:.4})", attainment / other)
        });
    let beside = |rival: &Standing| {
        let points = (mean_quality - rival.mean_quality) * 100.0;
        let Standing { policy, attainment, mean_quality, .. } = rival;
        format!("{points:+.2} points beside {policy} ({mean_quality:.4}, in time {attainment:.4})")
    };
    let by_attainment = comparison
        .equal_attainment
        .as_ref()
        .map_or("no plan is in time as often".to_owned(), beside);
    let mut text = format!(
        "{traffic}, load {load}: in time {attainment:.4} at {mean_quality:.4}; at equal quality \
         {by_quality}; at equal attainment {by_attainment}"
    );
    let best = comparison.best_fixed.as_ref();
    text += &best.map_or("; no fixed plan attains .99".to_owned(), |rival| {
        format!("; best fixed: {}", beside(rival))
    });
    if let Some(oracle) = &comparison.oracle {
        text += &format!("; {}", beside(oracle));
    }
    if let Some(share) = comparison.share_of_oracle {
        text += &format!("; {share:.2} of the oracle's lead");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Measured;

    fn row(policy: &str, load: f64, attainment: f64, mean_quality: f64) -> Row {
        Row {
            policy: policy.to_owned(),
            load,
            rate: 1.0,
            traffic: "steady".to_owned(),
            round: 1,
            measured: Measured { answered: 1, attainment, mean_quality, ..Measured::default() },
        }
    }

    #[test]
    fn rivals_are_as_good_or_as_often_in_time() {
        let rows = [
            row(TESSERA, 2.0, 0.9, 0.8),
            row("small", 2.0, 0.995, 0.6),
            row("middle", 2.0, 0.899, 0.7),
            row("large", 2.0, 0.3, 0.81),
            row("larger", 2.0, 0.2, 0.9),
            row(ORACLE, 2.0, 1.0, 0.85),
            row("large", 1.0, 1.0, 0.81),
        ];
        let front = ["tiny", "small", "middle"].map(str::to_owned);
        let found = compare(&standings(&rows), &front);
        let plan = |rival: &Option<Standing>| rival.as_ref().map(|rival| rival.policy.clone());
        assert_eq!(found.len(), 1);
        assert_eq!(plan(&found[0].equal_quality).as_deref(), Some("large"));
        assert_eq!(plan(&found[0].equal_attainment).as_deref(), Some("middle"));
        assert_eq!(plan(&found[0].best_fixed).as_deref(), Some("small"));
        assert_eq!(plan(&found[0].cheapest).as_deref(), Some("small"));
        let share = found[0].share_of_oracle.expect("a share");
        assert!((share - 0.8).abs() < 1e-9, "{share}");
        let line = describe(&found[0]);
        assert!(line.contains("3.00 times as often as large (0.3000)"), "{line}");
        assert!(line.contains("+10.00 points beside middle"), "{line}");
        assert!(line.contains("best fixed: +20.00 points beside small (0.6000"), "{line}");
        assert!(line.ends_with("0.80 of the oracle's lead"), "{line}");
        let none = describe(&compare(&standings(&rows[..1]), &front)[0]);
        assert!(none.contains("no plan is as good") && none.contains("no plan is in time"));
        assert!(none.ends_with("no fixed plan attains .99"), "{none}");
    }

    #[test]
    fn rounds_are_averaged() {
        let second = |row: Row| Row { round: 2, ..row };
        let rows = [
            row(TESSERA, 1.0, 1.0, 0.8),
            row("small", 1.0, 1.0, 0.6),
            second(row(TESSERA, 1.0, 0.8, 0.9)),
            second(row("small", 1.0, 0.96, 0.6)),
        ];
        let found = compare(&standings(&rows), &[]);
        assert_eq!(found.len(), 1);
        assert!((found[0].attainment - 0.9).abs() < 1e-9);
        assert!((found[0].mean_quality - 0.85).abs() < 1e-9);
        assert_eq!(found[0].best_fixed, None, "the mean of small is .98");
    }
}
