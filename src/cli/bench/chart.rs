//! The picture of `bench`: attainment and quality over load, a column for each kind of traffic.

use anyhow::anyhow;
use plotters::{
    backend::SVGBackend,
    chart::{ChartBuilder, SeriesLabelPosition},
    coord::Shift,
    coord::combinators::IntoLogRange,
    drawing::{DrawingArea, IntoDrawingArea},
    element::{Circle, PathElement},
    series::LineSeries,
    style::{BLACK, Color, Palette, Palette99, ShapeStyle, WHITE},
};

use super::{
    compare::Standing,
    row::{ORACLE, TESSERA},
};

const COLUMN_WIDTH: u32 = 420;
const HEIGHT: u32 = 640;

/// Returns an SVG of attainment and mean quality over load, with the title `title`.
pub(super) fn draw(title: &str, standings: &[Standing]) -> anyhow::Result<String> {
    let kinds = distinct(standings.iter().map(|found| found.traffic.as_str()));
    let mut svg = String::new();
    let width = COLUMN_WIDTH * u32::try_from(kinds.len().max(1))?;
    {
        let area = SVGBackend::with_string(&mut svg, (width, HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(title, ("sans-serif", 16))?;
        for (column, name) in area.split_evenly((1, kinds.len().max(1))).iter().zip(&kinds) {
            let own: Vec<&Standing> =
                standings.iter().filter(|found| found.traffic == *name).collect();
            let panels = column.split_evenly((2, 1));
            panel(&panels[0], &format!("in time, {name}"), &own, |found| found.attainment)?;
            panel(&panels[1], "mean quality", &own, |found| found.mean_quality)?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Returns each of `names` once, in their order.
fn distinct<'n>(names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    standings: &[&Standing],
    value: fn(&Standing) -> f64,
) -> anyhow::Result<()> {
    let loads = standings.iter().map(|found| found.load);
    let (first, last) = (loads.clone().fold(f64::MAX, f64::min), loads.fold(0.0, f64::max));
    let least = standings.iter().map(|found| value(found)).fold(1.0, f64::min);
    let bottom = if least < 0.8 { 0.0 } else { least - 0.02 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 13))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(42)
        .build_cartesian_2d((first * 0.9..last * 1.1).log_scale(), bottom..1.005)?;
    chart.configure_mesh().x_desc("load").light_line_style(WHITE).draw()?;
    let policies = distinct(standings.iter().map(|found| found.policy.as_str()));
    for (index, policy) in policies.iter().enumerate() {
        let style: ShapeStyle = match *policy {
            TESSERA => BLACK.stroke_width(3),
            ORACLE => BLACK.mix(0.5).stroke_width(2),
            _ => Palette99::pick(index).stroke_width(1),
        };
        let own = standings.iter().filter(|found| found.policy == *policy);
        let points: Vec<(f64, f64)> = own.map(|found| (found.load, value(found))).collect();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*policy)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 2, style)))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 10))
        .draw()
        .map_err(|error| anyhow!("{error}"))?;
    Ok(())
}
