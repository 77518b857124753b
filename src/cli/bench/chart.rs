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

use super::row::{ORACLE, Row, TESSERA};

const COLUMN_WIDTH: u32 = 420;
const HEIGHT: u32 = 640;

/// Returns an SVG of attainment and mean quality over load, with the title `title`.
pub(super) fn draw(title: &str, rows: &[Row]) -> anyhow::Result<String> {
    let mut kinds: Vec<&str> = Vec::new();
    for row in rows {
        if !kinds.contains(&row.traffic.as_str()) {
            kinds.push(&row.traffic);
        }
    }
    let mut svg = String::new();
    let width = COLUMN_WIDTH * u32::try_from(kinds.len().max(1))?;
    {
        let area = SVGBackend::with_string(&mut svg, (width, HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(title, ("sans-serif", 16))?;
        for (column, name) in area.split_evenly((1, kinds.len().max(1))).iter().zip(&kinds) {
            let own: Vec<&Row> = rows.iter().filter(|row| row.traffic == *name).collect();
            let panels = column.split_evenly((2, 1));
            panel(&panels[0], &format!("in time, {name}"), &own, |row| row.measured.attainment)?;
            panel(&panels[1], "mean quality", &own, |row| row.measured.mean_quality)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    rows: &[&Row],
    value: fn(&Row) -> f64,
) -> anyhow::Result<()> {
    let loads = rows.iter().map(|row| row.load);
    let (first, last) = (loads.clone().fold(f64::MAX, f64::min), loads.fold(0.0, f64::max));
    let least = rows.iter().map(|row| value(row)).fold(1.0, f64::min);
    let bottom = if least < 0.8 { 0.0 } else { least - 0.02 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 13))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(42)
        .build_cartesian_2d((first * 0.9..last * 1.1).log_scale(), bottom..1.005)?;
    chart.configure_mesh().x_desc("load").light_line_style(WHITE).draw()?;
    let mut policies: Vec<&str> = Vec::new();
    for row in rows {
        if !policies.contains(&row.policy.as_str()) {
            policies.push(&row.policy);
        }
    }
    for (index, policy) in policies.iter().enumerate() {
        let style: ShapeStyle = match *policy {
            TESSERA => BLACK.stroke_width(3),
            ORACLE => BLACK.mix(0.5).stroke_width(2),
            _ => Palette99::pick(index).stroke_width(1),
        };
        let own = rows.iter().filter(|row| row.policy == *policy);
        let points: Vec<(f64, f64)> = own.map(|row| (row.load, value(row))).collect();
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
