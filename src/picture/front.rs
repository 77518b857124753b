//! A family's plans and their Pareto front as one standalone SVG.
//!
//! The module turns plain numbers into text; it neither writes nor loads a file. The picture needs
//! no font and no script. Start at [`front_svg`].

use std::fmt::{self, Write};

use super::kind::PointKind;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 804.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 540.0;
/// Most points with a label; the others have only tooltips.
const MAX_LABELS: usize = 14;
const MAX_LABEL_CHARS: usize = 30;
const LABEL_HEIGHT: f64 = 13.0;
/// Upper bound of the width of a character at 11 px, in pixels.
const CHAR_WIDTH: f64 = 6.3;

const STYLE: &str = "<style>\
    text{font:11px system-ui,sans-serif;fill:#57606a}.title{font-size:16px;font-weight:600}\
    .name{font-size:12px}.label{font-size:11px}.paper{fill:#fff}\
    .grid{stroke:#d0d7de;stroke-width:1}\
    .axis{stroke:#8c959f;stroke-width:1}.front{fill:none;stroke:#8c959f;stroke-width:1.5}\
    .point{stroke-width:1.8}.faint{opacity:.45}\
    @media(prefers-color-scheme:dark){text{fill:#adb5bd}.paper{fill:#15191e}.grid{stroke:#2b3138}}\
    </style>\n";

/// A plan to draw.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FrontPoint {
    /// Plan id.
    pub(crate) label: String,
    /// Latency in milliseconds; a point is left out if this is not finite and positive.
    pub(crate) latency_ms: f64,
    /// Quality in [0, 1]; a point is left out if this is not finite.
    pub(crate) quality: f64,
    /// Memory in megabytes of 10⁶ bytes.
    pub(crate) memory_mb: f64,
    /// Kind of the plan.
    pub(crate) kind: PointKind,
    /// Whether the quality was measured; a predicted point is hollow.
    pub(crate) measured: bool,
    /// Whether the plan is on the front: no other plan beats it.
    pub(crate) on_front: bool,
}

/// Returns an SVG of plans by latency and quality. The latency axis is logarithmic; the front is a
/// line of steps.
pub(crate) fn front_svg(title: &str, points: &[FrontPoint]) -> String {
    let mut visible: Vec<&FrontPoint> = points
        .iter()
        .filter(|point| point.latency_ms.is_finite() && point.latency_ms > 0.0)
        .filter(|point| point.quality.is_finite())
        .collect();
    // The front is drawn last, so that it lies above the other points.
    visible.sort_by_key(|point| point.on_front);
    let axes = Axes::around(&visible);
    Drawing { title, visible, axes }.to_string()
}

/// Content of the picture: title, points and axes.
struct Drawing<'a> {
    title: &'a str,
    visible: Vec<&'a FrontPoint>,
    axes: Axes,
}

impl fmt::Display for Drawing<'_> {
    fn fmt(&self, svg: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, visible, axes } = self;
        let title = Escaped(title);
        write!(svg, r#"<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{WIDTH}" "#)?;
        writeln!(svg, r#"height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">"#)?;
        writeln!(svg, "<title>{title}</title>")?;
        svg.write_str(STYLE)?;
        writeln!(svg, r#"<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>"#)?;
        writeln!(svg, r#"<text class="title" x="{LEFT}" y="32">{title}</text>"#)?;
        write_axes(svg, axes)?;
        write_front(svg, visible, axes)?;
        write_curves(svg, visible, axes)?;
        for point in visible {
            write_point(svg, point, axes)?;
        }
        write_labels(svg, visible, axes)?;
        write_legend(svg, visible)?;
        if visible.is_empty() {
            let (x, y) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
            writeln!(
                svg,
                r#"<text class="name" x="{x}" y="{y}" text-anchor="middle">no plans</text>"#
            )?;
        }
        writeln!(svg, "</svg>")
    }
}

/// Ranges of both axes; their ticks follow from them.
struct Axes {
    latency_ms: (f64, f64),
    quality: (f64, f64),
}

impl Axes {
    /// Returns axes that leave some room around the points.
    fn around(points: &[&FrontPoint]) -> Self {
        let range = |value: fn(&FrontPoint) -> f64, empty: (f64, f64)| {
            let values = || points.iter().map(|point| value(point));
            match (values().reduce(f64::min), values().reduce(f64::max)) {
                (Some(least), Some(most)) => (least, most),
                _ => empty,
            }
        };
        let (fastest, slowest) = range(|point| point.latency_ms, (1.0, 100.0));
        let (worst, best) = range(|point| point.quality, (0.0, 1.0));
        let factor = (slowest / fastest).powf(0.06).max(1.05);
        let room = (0.07 * (best - worst)).max(0.005);
        Self {
            latency_ms: (fastest / factor, slowest * factor),
            quality: (worst - room, best + room),
        }
    }

    fn x(&self, latency_ms: f64) -> f64 {
        let (least, most) = self.latency_ms;
        LEFT + (RIGHT - LEFT) * (latency_ms / least).ln() / (most / least).ln()
    }

    fn y(&self, quality: f64) -> f64 {
        let (least, most) = self.quality;
        BOTTOM - (BOTTOM - TOP) * (quality - least) / (most - least)
    }

    fn latency_ticks(&self) -> Vec<f64> {
        let (least, most) = self.latency_ms;
        let steps: &[f64] = if most / least > 500.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let mut ticks = Vec::new();
        let mut decade = 10.0_f64.powf(least.log10().floor());
        while decade <= most {
            ticks.extend(steps.iter().map(|step| step * decade));
            decade *= 10.0;
        }
        ticks.retain(|tick| (least..=most).contains(tick));
        // If the range is below a factor of about five, evenly spaced ticks fill the axis better.
        if ticks.len() < 3 { linear_ticks(least, most) } else { ticks }
    }
}

/// Returns about six round numbers within a range, evenly spaced.
pub(crate) fn linear_ticks(least: f64, most: f64) -> Vec<f64> {
    let rough = (most - least) / 6.0;
    let magnitude = 10.0_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (least / step).ceil();
    let ticks = (0..20).map(|index| (first + f64::from(index)) * step);
    ticks.take_while(|tick| *tick <= most).collect()
}

/// Writes a number with up to four significant digits and without needless zeros.
fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else if value.abs() >= 0.1 {
        3
    } else {
        5
    };
    let text = format!("{value:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

fn write_axes(svg: &mut fmt::Formatter<'_>, axes: &Axes) -> fmt::Result {
    for tick in axes.latency_ticks() {
        let x = axes.x(tick);
        let (label_y, text) = (BOTTOM + 18.0, short(tick));
        writeln!(svg, r#"<path class="grid" d="M{x:.1} {TOP}V{BOTTOM}"/>"#)?;
        writeln!(svg, r#"<text x="{x:.1}" y="{label_y}" text-anchor="middle">{text}</text>"#)?;
    }
    for tick in linear_ticks(axes.quality.0, axes.quality.1)
        .into_iter()
        .filter(|tick| (0.0..=1.0).contains(tick))
    {
        let y = axes.y(tick);
        let (label_x, label_y, text) = (LEFT - 8.0, y + 4.0, short(tick));
        writeln!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/>"#)?;
        writeln!(svg, r#"<text x="{label_x}" y="{label_y:.1}" text-anchor="end">{text}</text>"#)?;
    }
    writeln!(svg, r#"<path class="axis" fill="none" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>"#)?;
    let (x, y, below) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM), BOTTOM + 42.0);
    let centred = r#"class="name" text-anchor="middle""#;
    writeln!(svg, r#"<text {centred} x="{x}" y="{below}">latency, ms (logarithmic)</text>"#)?;
    writeln!(svg, r#"<text {centred} transform="translate(22 {y}) rotate(-90)">quality</text>"#)
}

/// Returns the points that are better than all points of lower latency, by latency.
fn steps<'a>(points: impl Iterator<Item = &'a FrontPoint>) -> Vec<&'a FrontPoint> {
    let mut front: Vec<_> = points.collect();
    front.sort_by(|left, right| {
        let by_latency = left.latency_ms.total_cmp(&right.latency_ms);
        by_latency.then(right.quality.total_cmp(&left.quality))
    });
    let mut best = f64::NEG_INFINITY;
    front.retain(|point| {
        let is_better = point.quality > best;
        best = best.max(point.quality);
        is_better
    });
    front
}

fn front_steps<'a>(visible: &[&'a FrontPoint]) -> Vec<&'a FrontPoint> {
    steps(visible.iter().copied().filter(|point| point.on_front))
}

fn write_front(svg: &mut fmt::Formatter<'_>, visible: &[&FrontPoint], axes: &Axes) -> fmt::Result {
    write_steps(svg, &front_steps(visible), axes, r#"class="front""#)
}

/// Draws trained and fitted stitches as separate curves, if there are points of both kinds.
fn write_curves(svg: &mut fmt::Formatter<'_>, visible: &[&FrontPoint], axes: &Axes) -> fmt::Result {
    let curves = [PointKind::Stitched, PointKind::Fitted]
        .map(|kind| (kind, steps(visible.iter().copied().filter(move |point| point.kind == kind))));
    if curves.iter().any(|(_, steps)| steps.is_empty()) {
        return Ok(());
    }
    for (kind, steps) in curves {
        let style = format!(r#"fill="none" stroke-dasharray="4 3" stroke="{}""#, kind.colour());
        write_steps(svg, &steps, axes, &style)?;
    }
    Ok(())
}

/// Draws points as a line of steps that ends at the right border.
fn write_steps(
    svg: &mut fmt::Formatter<'_>,
    steps: &[&FrontPoint],
    axes: &Axes,
    style: &str,
) -> fmt::Result {
    let Some((first, rest)) = steps.split_first() else {
        return Ok(());
    };
    let (x, y) = (axes.x(first.latency_ms), axes.y(first.quality));
    write!(svg, r#"<path {style} d="M{x:.1} {y:.1}"#)?;
    for point in rest {
        write!(svg, "H{:.1}V{:.1}", axes.x(point.latency_ms), axes.y(point.quality))?;
    }
    writeln!(svg, r#"H{RIGHT}"/>"#)
}

fn write_point(svg: &mut fmt::Formatter<'_>, point: &FrontPoint, axes: &Axes) -> fmt::Result {
    let (x, y) = (axes.x(point.latency_ms), axes.y(point.quality));
    let faint = if point.on_front { "" } else { " faint" };
    write!(svg, r#"<g class="point{faint}" transform="translate({x:.1} {y:.1})">"#)?;
    write!(
        svg,
        "<title>{}\n{} ms, quality {:.4} ({}), {} MB</title>",
        Escaped(&point.label),
        short(point.latency_ms),
        point.quality,
        if point.measured { "measured" } else { "predicted" },
        short(point.memory_mb),
    )?;
    write_marker(svg, point.kind, point.measured)?;
    writeln!(svg, "</g>")
}

fn write_marker(svg: &mut fmt::Formatter<'_>, kind: PointKind, is_filled: bool) -> fmt::Result {
    let (colour, outline) = (kind.colour(), kind.outline());
    let fill =
        if is_filled { format!(r#"fill="{colour}""#) } else { r#"class="paper""#.to_owned() };
    write!(svg, r#"<path {fill} stroke="{colour}" d="{outline}"/>"#)
}

/// Rectangle: left, top, right, bottom.
#[derive(Clone, Copy)]
struct Area(f64, f64, f64, f64);

impl Area {
    fn overlaps(self, other: Self) -> bool {
        self.0 < other.2 && other.0 < self.2 && self.1 < other.3 && other.1 < self.3
    }

    fn is_inside_axes(self) -> bool {
        self.0 >= LEFT && self.1 >= TOP - 12.0 && self.2 <= WIDTH - 8.0 && self.3 <= BOTTOM
    }
}

/// Labels anchors first, then the front from its ends inwards, if a place is free.
fn write_labels(svg: &mut fmt::Formatter<'_>, visible: &[&FrontPoint], axes: &Axes) -> fmt::Result {
    let marker = |point: &FrontPoint| {
        let (x, y) = (axes.x(point.latency_ms), axes.y(point.quality));
        Area(x - 6.0, y - 6.0, x + 6.0, y + 6.0)
    };
    let mut taken: Vec<Area> = visible.iter().map(|point| marker(point)).collect();
    taken.push(LEGEND_AREA);
    // The line bends at the later point of each pair; no label may lie on it.
    for pair in front_steps(visible).windows(2) {
        let (x, y) = (axes.x(pair[0].latency_ms), axes.y(pair[0].quality));
        let (bend, top) = (axes.x(pair[1].latency_ms), axes.y(pair[1].quality));
        taken.extend([Area(x + 6.0, y - 1.0, bend, y + 1.0), Area(bend, top + 6.0, bend, y)]);
    }
    let mut num_labels = 0;
    for point in label_order(visible) {
        if num_labels == MAX_LABELS {
            break;
        }
        let text = shortened(&point.label);
        let Some(area) = find_place(marker(point), text.chars().count(), &taken) else {
            continue;
        };
        let (x, y) = (area.0 + 2.0, area.3 - 3.0);
        writeln!(svg, r#"<text class="label" x="{x:.1}" y="{y:.1}">{}</text>"#, Escaped(&text))?;
        taken.push(area);
        num_labels += 1;
    }
    Ok(())
}

fn label_order<'a>(visible: &[&'a FrontPoint]) -> Vec<&'a FrontPoint> {
    let (mut anchors, mut front): (Vec<_>, Vec<_>) = visible
        .iter()
        .copied()
        .filter(|point| point.on_front || point.kind == PointKind::Anchor)
        .partition(|point| point.kind == PointKind::Anchor);
    front.sort_by(|left, right| left.latency_ms.total_cmp(&right.latency_ms));
    let mut rest = front.as_slice();
    while let [first, inner @ ..] = rest {
        anchors.push(first);
        rest = inner;
        if let [inner @ .., last] = rest {
            anchors.push(last);
            rest = inner;
        }
    }
    anchors
}

/// Returns a free place for a label next to `marker`, or None if all places are taken. Below right
/// comes first, then above left, and so on.
fn find_place(marker: Area, num_chars: usize, taken: &[Area]) -> Option<Area> {
    let chars = u32::try_from(num_chars).unwrap_or(u32::MAX);
    let width = 4.0 + CHAR_WIDTH * f64::from(chars);
    let Area(left, top, right, bottom) = marker;
    let middle = f64::midpoint(top, bottom) - LABEL_HEIGHT / 2.0;
    let centre = f64::midpoint(left, right) - width / 2.0;
    let corners = [
        (right - 3.0, bottom - 3.0),
        (left + 3.0 - width, top + 3.0 - LABEL_HEIGHT),
        (right, middle),
        (left - width, middle),
        (centre, top - LABEL_HEIGHT),
        (centre, bottom),
        (right - 3.0, top + 3.0 - LABEL_HEIGHT),
        (left + 3.0 - width, bottom - 3.0),
    ];
    corners.into_iter().map(|(x, y)| Area(x, y, x + width, y + LABEL_HEIGHT)).find(|area| {
        let others = taken.iter().filter(|other| other.overlaps(*area)).count();
        let own = usize::from(marker.overlaps(*area));
        area.is_inside_axes() && others == own
    })
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= MAX_LABEL_CHARS {
        return label.to_owned();
    }
    label.chars().take(MAX_LABEL_CHARS - 1).chain(['…']).collect()
}

/// Area that is reserved for the legend.
const LEGEND_AREA: Area = Area(RIGHT + 12.0, TOP, WIDTH, TOP + 250.0);

fn write_legend(svg: &mut fmt::Formatter<'_>, visible: &[&FrontPoint]) -> fmt::Result {
    let x = RIGHT + 32.0;
    let mut y = TOP + 10.0;
    let mut entry = |svg: &mut fmt::Formatter<'_>, kind, is_filled, text: &str| {
        write!(svg, r#"<g class="point" transform="translate({x} {y})">"#)?;
        write_marker(svg, kind, is_filled)?;
        let result = writeln!(svg, r#"<text class="name" x="14" y="4">{text}</text></g>"#);
        y += 22.0;
        result
    };
    for kind in PointKind::ALL {
        if visible.iter().any(|point| point.kind == kind) {
            entry(svg, kind, true, kind.name())?;
        }
    }
    if visible.iter().any(|point| !point.measured) {
        entry(svg, PointKind::Mixed, false, "hollow: predicted")?;
    }
    if visible.iter().any(|point| !point.on_front) {
        writeln!(
            svg,
            r#"<text x="{}" y="{:.1}">faint: not on the front</text>"#,
            x - 8.0,
            y + 4.0
        )?;
    }
    Ok(())
}

/// Text for XML: special characters are escaped, and forbidden ones are replaced.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&apos;")?,
                '\u{FFFE}' | '\u{FFFF}' => formatter.write_char('\u{FFFD}')?,
                control if control.is_control() => formatter.write_char(' ')?,
                other => formatter.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "svg_tests.rs"]
mod tests;
