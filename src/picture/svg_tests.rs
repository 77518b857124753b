//! Tests of the picture.

use super::{FrontPoint, front_svg, linear_ticks};
use crate::picture::PointKind;

fn point(label: &str, latency_ms: f64, quality: f64) -> FrontPoint {
    FrontPoint {
        label: label.to_owned(),
        latency_ms,
        quality,
        memory_mb: 12.5,
        kind: PointKind::Stitched,
        measured: false,
        on_front: true,
    }
}

/// Panics if a tag is closed that is not open, or stays open.
fn assert_balanced(svg: &str) {
    let mut open = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/']).next().expect("a tag has a name");
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "in {svg}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in {tag}");
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

#[test]
fn the_drawing_is_balanced_for_any_number_of_points() {
    for num_points in [0_u32, 1, 2, 40] {
        let points: Vec<_> = (0..num_points)
            .map(|index| {
                let step = f64::from(index);
                let kind = PointKind::ALL[index as usize % PointKind::ALL.len()];
                let (measured, on_front) = (index % 2 == 0, index % 3 == 0);
                let point = point("small[0..4]>base[6..12]", 1.0 + step, 0.5 + step / 100.0);
                FrontPoint { kind, measured, on_front, ..point }
            })
            .collect();
        let svg = front_svg("deit", &points);
        assert_balanced(&svg);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn labels_and_title_are_escaped() {
    let svg = front_svg("a & b", &[point("small>base{\"k\" < 'l'}\u{1}", 1.0, 0.5)]);
    assert_balanced(&svg);
    assert!(svg.contains("a &amp; b"));
    assert!(svg.contains("small&gt;base{&quot;k&quot; &lt; &apos;l&apos;} "));
    assert!(!svg.contains('\u{1}'));
}

#[test]
fn points_that_no_axis_can_show_are_left_out() {
    let hidden = [point("a", 0.0, 0.5), point("b", f64::NAN, 0.5), point("c", 1.0, f64::NAN)];
    let svg = front_svg("family", &hidden);
    assert!(svg.contains("no plans"));
}

#[test]
fn ticks_are_round_numbers_within_the_range() {
    let ticks = linear_ticks(0.503, 0.797);
    let expected = [0.55, 0.6, 0.65, 0.7, 0.75];
    assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
    for (tick, value) in ticks.iter().zip(expected) {
        assert!((tick - value).abs() < 1e-12);
    }
}
