//! Comparison of chosen plans with the best fixed plan, load by load.

use serde::Serialize;

use super::row::{Row, TESSERA};

/// Largest shortfall in attainment or quality at which a fixed plan still counts as equal.
const EQUAL: f64 = 0.002;

/// Comparison of Tessera with fixed plans under one load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Comparison {
    load: f64,
    cv2: Option<f64>,
    attainment: f64,
    mean_quality: f64,
    /// Plan of highest attainment among those of equal or better quality.
    equal_quality: Option<Rival>,
    /// Plan of highest quality among those of equal or better attainment.
    equal_attainment: Option<Rival>,
}

/// A fixed plan and its measurements.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Rival {
    plan: String,
    attainment: f64,
    mean_quality: f64,
}

impl Rival {
    fn of(row: &Row) -> Self {
        let (attainment, mean_quality) = (row.measured.attainment, row.measured.mean_quality);
        Self { plan: row.policy.clone(), attainment, mean_quality }
    }
}

/// Compares Tessera with the fixed plans under each load.
pub(super) fn compare(rows: &[Row]) -> Vec<Comparison> {
    let own = rows.iter().filter(|row| row.policy == TESSERA);
    own.map(|own| {
        let is_rival = |row: &&Row| {
            let is_same_load = row.load.total_cmp(&own.load).is_eq() && row.cv2 == own.cv2;
            is_same_load && row.policy != TESSERA && row.measured.answered > 0
        };
        let rivals = || rows.iter().filter(is_rival).map(Rival::of);
        let Rival { attainment, mean_quality, .. } = Rival::of(own);
        let as_good = rivals().filter(|rival| rival.mean_quality >= mean_quality - EQUAL);
        let as_often = rivals().filter(|rival| rival.attainment >= attainment - EQUAL);
        Comparison {
            load: own.load,
            cv2: own.cv2,
            attainment,
            mean_quality,
            equal_quality: as_good.max_by(|a, b| a.attainment.total_cmp(&b.attainment)),
            equal_attainment: as_often.max_by(|a, b| a.mean_quality.total_cmp(&b.mean_quality)),
        }
    })
    .collect()
}

/// Writes a comparison as a line of text.
pub(super) fn describe(comparison: &Comparison) -> String {
    let Comparison { load, cv2, attainment, mean_quality, equal_quality, equal_attainment } =
        comparison;
    let kind = cv2.map_or("trace".to_owned(), |cv2| format!("cv2 {cv2}"));
    let by_quality = equal_quality.as_ref().map_or("no plan is as good".to_owned(), |rival| {
        let Rival { plan, attainment: other, .. } = rival;
        format!("{:.2} times as often as {plan} ({other:.4})", attainment / other)
    });
    let by_attainment =
        equal_attainment.as_ref().map_or("no plan is in time as often".to_owned(), |rival| {
            let points = (mean_quality - rival.mean_quality) * 100.0;
            format!("{points:+.2} points beside {} ({:.4})", rival.plan, rival.mean_quality)
        });
    format!(
        "{kind}, load {load}: in time {attainment:.4} at {mean_quality:.4}; at equal quality \
         {by_quality}; at equal attainment {by_attainment}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Measured;

    #[test]
    fn rivals_are_as_good_or_as_often_in_time() {
        let row = |policy: &str, load, attainment, mean_quality| Row {
            policy: policy.to_owned(),
            load,
            rate: 1.0,
            cv2: Some(1.0),
            measured: Measured { answered: 1, attainment, mean_quality, ..Measured::default() },
        };
        let rows = [
            row(TESSERA, 2.0, 0.9, 0.8),
            row("small", 2.0, 0.95, 0.6),
            row("middle", 2.0, 0.899, 0.7),
            row("large", 2.0, 0.3, 0.81),
            row("larger", 2.0, 0.2, 0.9),
            row("large", 1.0, 1.0, 0.81),
        ];
        let found = compare(&rows);
        let plan = |rival: &Option<Rival>| rival.as_ref().map(|rival| rival.plan.clone());
        assert_eq!(found.len(), 1);
        assert_eq!(plan(&found[0].equal_quality).as_deref(), Some("large"));
        assert_eq!(plan(&found[0].equal_attainment).as_deref(), Some("middle"));
        let line = describe(&found[0]);
        assert!(line.contains("3.00 times as often as large (0.3000)"), "{line}");
        assert!(line.contains("+10.00 points beside middle"), "{line}");
        let none = describe(&compare(&rows[..1])[0]);
        assert!(none.contains("no plan is as good") && none.contains("no plan is in time"));
    }
}
