//! Promises of a front to its users.
//!
//! A plan's quality is at least that of the line between the next anchors at the plan's latency.
//! The line starts at no time at all, with the quality of an answer that is the same for every
//! request. And for any time there is a plan that takes at least four fifths of it. A plan that
//! another one passes in time and quality is offered for its memory alone and promises neither.

use std::fmt;

use super::quality::QualityRecords;
use crate::{
    family::{FamilyGraph, PlanId, SpaceKind},
    plan::{PlanEntry, PlanTable, Shape},
};

/// Largest ratio of the latencies of a plan and the next faster one.
const MAX_RATIO: f64 = 1.25;

/// Plan by its cost and its quality.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Id of the plan.
    pub id: String,
    /// Latency in seconds.
    pub latency_seconds: f64,
    /// Quality, from 0 to 1.
    pub quality: f64,
    /// Half of the quality's 95 % interval.
    pub uncertainty: f64,
}

/// Promise that a front breaks.
#[derive(Debug, Clone, PartialEq)]
pub enum BrokenPromise {
    /// A plan gives less for its time than the line between the anchors beside it.
    BelowLine {
        /// The plan.
        plan: Offer,
        /// Quality of the line at the plan's latency.
        line: f64,
        /// Ids of the anchors beside it; `None` stands for no time and a constant answer, and
        /// behind the slowest anchor for that anchor's quality.
        between: [Option<String>; 2],
    },
    /// No plan lies between two whose latencies are far apart.
    Gap {
        /// The faster plan.
        faster: Offer,
        /// The slower plan.
        slower: Offer,
    },
}

impl fmt::Display for BrokenPromise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |offer: &Offer| offer.latency_seconds * 1e3;
        match self {
            Self::BelowLine { plan, line, between: [faster, slower] } => {
                let name = |anchor: &Option<String>, none: &str| {
                    anchor.as_ref().map_or(none.to_owned(), |id| format!("`{id}`"))
                };
                write!(
                    formatter,
                    "`{}` has {:.4} (±{:.4}) after {:.2} ms, but the line from {} to {} has \
                     {line:.4}",
                    plan.id,
                    plan.quality,
                    plan.uncertainty,
                    milliseconds(plan),
                    name(faster, "a constant answer"),
                    name(slower, "any later time"),
                )
            }
            Self::Gap { faster, slower } => write!(
                formatter,
                "nothing lies between {:.2} ms (`{}`) and {:.2} ms (`{}`), which is {:.2} times \
                 as long",
                milliseconds(faster),
                faster.id,
                milliseconds(slower),
                slower.id,
                slower.latency_seconds / faster.latency_seconds,
            ),
        }
    }
}

/// Returns the promises that the front of `table` breaks for requests of one shape.
pub fn broken_promises(
    graph: &FamilyGraph,
    table: &PlanTable,
    quality: &QualityRecords,
    shape: Shape,
) -> Vec<BrokenPromise> {
    let offer = |entry: &PlanEntry| Offer {
        id: entry.id.clone(),
        latency_seconds: entry.latency_seconds_at(shape),
        quality: entry.quality.value,
        uncertainty: quality.uncertainty(&entry.id),
    };
    let whole = whole_anchors(graph);
    let is_whole = |entry: &&PlanEntry| whole.iter().any(|id| id.as_str() == entry.id);
    let anchors: Vec<Offer> = table.entries().iter().filter(is_whole).map(offer).collect();
    let front: Vec<Offer> = table.front(shape).into_iter().map(offer).collect();
    broken_by(&front, &anchors, quality.constant())
}

/// Returns the promises that `front` breaks. `anchors` are whole networks, and `constant` is the
/// quality of an answer that does not depend on the request.
fn broken_by(front: &[Offer], anchors: &[Offer], constant: f64) -> Vec<BrokenPromise> {
    let by_latency = |a: &&Offer, b: &&Offer| a.latency_seconds.total_cmp(&b.latency_seconds);
    let mut anchors: Vec<&Offer> = anchors.iter().collect();
    anchors.sort_by(by_latency);
    let mut front: Vec<&Offer> = front.iter().collect();
    front.sort_by(by_latency);
    let mut best = f64::NEG_INFINITY;
    front.retain(|plan| {
        let is_better = plan.quality > best;
        best = best.max(plan.quality);
        is_better
    });
    let mut broken = Vec::new();
    for plan in &front {
        let (line, between) = line_at(plan.latency_seconds, &anchors, constant);
        if plan.quality + plan.uncertainty < line {
            broken.push(BrokenPromise::BelowLine { plan: (*plan).clone(), line, between });
        }
    }
    for pair in front.windows(2) {
        if pair[1].latency_seconds > MAX_RATIO * pair[0].latency_seconds {
            let [faster, slower] = [pair[0].clone(), pair[1].clone()];
            broken.push(BrokenPromise::Gap { faster, slower });
        }
    }
    broken
}

/// Returns the quality of the line between the anchors beside `seconds`, and their ids.
fn line_at(seconds: f64, anchors: &[&Offer], constant: f64) -> (f64, [Option<String>; 2]) {
    let place = anchors.partition_point(|anchor| anchor.latency_seconds <= seconds);
    let faster = place.checked_sub(1).map(|place| anchors[place]);
    let slower = anchors.get(place);
    let start = faster.map_or((0.0, constant), |anchor| (anchor.latency_seconds, anchor.quality));
    let ids = [faster.map(|own| own.id.clone()), slower.map(|own| own.id.clone())];
    let Some(end) = slower else { return (start.1, ids) };
    let share = (seconds - start.0) / (end.latency_seconds - start.0);
    (start.1 + share * (end.quality - start.1), ids)
}

/// Returns the ids of the plans that are an anchor's whole network, with nothing changed.
fn whole_anchors(graph: &FamilyGraph) -> Vec<PlanId> {
    let depth = |index: usize| {
        let depths = graph.spaces().iter().filter_map(|space| match space.kind {
            SpaceKind::Hidden { anchor, depth, .. } if anchor == index => Some(depth),
            _ => None,
        });
        depths.max().unwrap_or(0)
    };
    let ids = graph.anchors().iter().enumerate();
    ids.filter_map(|(index, name)| {
        let id = format!("{name}[0..{}]", depth(index));
        PlanId::parse(graph, &id).ok().map(|plan| PlanId::of(graph, &plan))
    })
    .collect()
}

impl QualityRecords {
    /// Returns half of the interval of the plan `id` on the corpus where it is worst; 0 if it was
    /// not measured.
    pub fn uncertainty(&self, id: &str) -> f64 {
        let judged = self.corpora.values().filter_map(|corpus| corpus.plans.get(id));
        let worst = judged.min_by(|a, b| a.quality.total_cmp(&b.quality));
        worst.map_or(0.0, |own| (own.interval[1] - own.interval[0]) / 2.0)
    }

    /// Returns the quality of a constant answer on the corpus where it is worst; 0 if it was not
    /// measured.
    pub fn constant(&self) -> f64 {
        let worst = self.corpora.values().map(|corpus| corpus.constant).min_by(f64::total_cmp);
        worst.unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(id: &str, milliseconds: f64, quality: f64) -> Offer {
        let latency_seconds = milliseconds / 1e3;
        Offer { id: id.into(), latency_seconds, quality, uncertainty: 0.01 }
    }

    #[test]
    fn a_plan_below_the_line_between_its_anchors_is_named() {
        let anchors = [offer("large", 10.0, 1.0), offer("small", 4.0, 0.7)];
        let front = |extra: &[Offer]| -> Vec<Offer> {
            let steps = [4.0, 5.0, 6.2, 7.7, 9.5, 10.0];
            let on_line = steps.map(|ms| offer(&format!("{ms}"), ms, 0.5 + 0.05 * ms));
            on_line.iter().chain(extra).cloned().collect()
        };
        assert_eq!(broken_by(&front(&[]), &anchors, 0.1), []);
        // Its interval reaches the line.
        assert_eq!(broken_by(&front(&[offer("near", 7.0, 0.845)]), &anchors, 0.1), []);
        let broken = broken_by(&front(&[offer("low", 7.0, 0.82)]), &anchors, 0.1);
        let [told] = &broken[..] else { panic!("{broken:?}") };
        let text = told.to_string();
        assert!(text.contains("`low` has 0.8200 (±0.0100) after 7.00 ms"), "{text}");
        assert!(text.contains("from `small` to `large` has 0.8500"), "{text}");
    }

    #[test]
    fn a_plan_that_is_offered_for_its_memory_promises_no_place_on_the_line() {
        let anchors = [offer("small", 4.0, 0.7), offer("large", 4.8, 1.0)];
        let front = [anchors[0].clone(), offer("lean", 4.4, 0.69), anchors[1].clone()];
        assert_eq!(broken_by(&front, &anchors, 0.1), []);
        let front = [anchors[0].clone(), offer("lean", 4.6, 0.69), offer("far", 5.1, 1.01)];
        assert_eq!(broken_by(&front, &anchors, 0.1).len(), 1, "it closes no gap");
    }

    #[test]
    fn below_the_fastest_anchor_the_line_comes_from_a_constant_answer() {
        let anchors = [offer("only", 4.0, 0.9)];
        let front = [offer("good", 2.0, 0.52), offer("only", 4.0, 0.9)];
        let broken = broken_by(&front, &anchors, 0.1);
        let texts: Vec<String> = broken.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(
            texts[0].contains("nothing lies between 2.00 ms (`good`) and 4.00 ms"),
            "{texts:?}"
        );
        let low = broken_by(&[offer("low", 2.0, 0.48)], &anchors, 0.1);
        assert!(low[0].to_string().contains("from a constant answer to `only` has 0.5000"));
        assert_eq!(broken_by(&[], &[], 0.0), []);
    }
}
