//! Panels with axes, series, bands and a legend, drawn as SVG or PNG.

use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::style::{Marker, Style, tick};

/// A point with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Position.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Half width of the interval around the value; no band where it is not finite.
    pub half_width: f64,
}

/// A line with a band.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub label: String,
    /// Points from left to right.
    pub points: Vec<Point>,
}

/// One pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What is shown.
    pub title: String,
    /// What the band means, in small print under the title.
    pub note: String,
    /// Quantity and unit.
    pub x_label: String,
    /// Quantity and unit.
    pub y_label: String,
    /// The series.
    pub series: Vec<Series>,
}

/// Size of a panel in logical pixels.
const PANEL: (usize, usize) = (720, 480);
/// More logical pixels than this are refused: samples of a PNG would take a gigabyte.
pub const MAX_PIXELS: usize = 20_000_000;
/// PNG pixels per logical pixel.
const PNG_SCALE: u32 = 2;
/// Samples per PNG pixel and direction: the bitmap backend does not smooth edges itself.
const SAMPLES: u32 = 2;

pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const FAINT: RGBColor = RGBColor(222, 222, 222);
/// Up to this many bands are drawn in full strength.
const FULL_BANDS: f64 = 4.0;

fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let registered = plotters::style::register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
        assert!(registered.is_ok(), "the embedded font is a valid font file");
    });
}

fn size(panels: &[Panel]) -> (usize, usize) {
    let rows = panels.iter().map(|p| legend_rows(p.series.len())).max().unwrap_or(0);
    (PANEL.0 * panels.len().max(1), PANEL.1 + 8 + 24 * rows)
}

/// Series are listed two to a row.
fn legend_rows(series: usize) -> usize {
    series.div_ceil(2)
}

/// Something that can be drawn as SVG and as PNG.
pub trait Drawing {
    /// Width and height in logical pixels.
    fn size(&self) -> (usize, usize);

    /// Draws it; `scale` is the number of dots per logical pixel. The size is one that [`checked_size`] accepts.
    ///
    /// # Errors
    /// The backend's.
    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB>;
}

impl Drawing for [Panel] {
    fn size(&self) -> (usize, usize) {
        size(self)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        draw(root, self, scale)
    }
}

/// The size of a drawing.
///
/// # Errors
/// In words, if it has more than [`MAX_PIXELS`] pixels.
pub fn checked_size<D: Drawing + ?Sized>(drawing: &D) -> Result<(u32, u32), String> {
    let (width, height) = drawing.size();
    let is_small = width.checked_mul(height).is_some_and(|n| n <= MAX_PIXELS);
    match (u32::try_from(width), u32::try_from(height)) {
        (Ok(width), Ok(height)) if is_small => Ok((width, height)),
        _ => Err(format!("it would be {width} × {height} pixels large; at most {} million can be drawn", MAX_PIXELS / 1_000_000)),
    }
}

/// A drawing as SVG.
///
/// # Errors
/// The backend's reason as text.
pub fn svg<D: Drawing + ?Sized>(drawing: &D) -> Result<String, String> {
    register_fonts();
    let size = checked_size(drawing)?;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        drawing.draw(&root, 1).map_err(|e| e.to_string())?;
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

/// A drawing as PNG.
///
/// # Errors
/// The backend's reason as text.
pub fn png<D: Drawing + ?Sized>(drawing: &D) -> Result<Vec<u8>, String> {
    register_fonts();
    let (width, height) = checked_size(drawing)?;
    let scale = PNG_SCALE * SAMPLES;
    let (fine_width, fine_height) = (width * scale, height * scale);
    let mut fine = vec![255_u8; fine_width as usize * fine_height as usize * 3];
    {
        let root = BitMapBackend::with_buffer(&mut fine, (fine_width, fine_height)).into_drawing_area();
        drawing.draw(&root, scale).map_err(|e| e.to_string())?;
        root.present().map_err(|e| e.to_string())?;
    }
    let (width, height) = (width * PNG_SCALE, height * PNG_SCALE);
    let smooth = shrink(&fine, width as usize, height as usize);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(&smooth).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Averages squares of samples; `width` and `height` are those of the result.
fn shrink(fine: &[u8], width: usize, height: usize) -> Vec<u8> {
    let n = SAMPLES as usize;
    let row = width * n * 3;
    let mut out = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let sum: u32 = (0..n * n).map(|i| u32::from(fine[(y * n + i / n) * row + (x * n + i % n) * 3 + channel])).sum();
                out.push(((sum + (n * n / 2) as u32) / (n * n) as u32) as u8);
            }
        }
    }
    out
}

/// What drawing onto a backend returns.
pub type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, panels: &[Panel], scale: u32) -> Drawn<DB> {
    root.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((1, panels.len().max(1)))) {
        draw_panel(&area, panel, scale)?;
    }
    Ok(())
}

fn draw_panel<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, panel: &Panel, scale: u32) -> Drawn<DB> {
    let px = |n: u32| n * scale;
    let ipx = |n: i32| n * scale as i32;
    let text = |points: u32, color: RGBColor| ("sans-serif", px(points)).into_font().color(&color);
    let (width, height) = area.dim_in_pixel();
    let legend_height = px(16 + 24 * legend_rows(panel.series.len()) as u32);
    let (upper, legend) = area.split_vertically(height.saturating_sub(legend_height));
    let center = |points, color| text(points, color).pos(Pos::new(HPos::Center, VPos::Center));
    upper.draw(&Text::new(panel.title.clone(), (width as i32 / 2, ipx(22)), center(20, INK)))?;
    upper.draw(&Text::new(panel.note.clone(), (width as i32 / 2, ipx(44)), center(13, RGBColor(95, 95, 95))))?;

    let (x_range, y_range) = ranges(panel);
    let mut chart = ChartBuilder::on(&upper)
        .margin_top(px(60))
        .margin_left(px(12))
        .margin_right(px(28))
        .x_label_area_size(px(48))
        .y_label_area_size(px(66))
        .build_cartesian_2d(x_range, y_range)?;
    chart
        .configure_mesh()
        .disable_axes()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.stroke_width(scale))
        .x_labels(7)
        .y_labels(7)
        .draw()?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(INK.stroke_width(scale))
        .set_all_tick_mark_size(px(4))
        .x_labels(7)
        .y_labels(7)
        .x_label_formatter(&|v| tick(*v))
        .y_label_formatter(&|v| tick(*v))
        .label_style(text(14, INK))
        .axis_desc_style(text(16, INK))
        .x_desc(panel.x_label.as_str())
        .y_desc(panel.y_label.as_str())
        .draw()?;

    // Many bands over one another must not bury the lines.
    let strength = (FULL_BANDS / panel.series.len().max(1) as f64).min(1.0);
    for (index, series) in panel.series.iter().enumerate() {
        let style = Style::of(index);
        for run in series.points.split(|p| !(p.half_width.is_finite() && p.y.is_finite())).filter(|r| r.len() > 1) {
            let top: Vec<(f64, f64)> = run.iter().map(|p| (p.x, p.y + p.half_width)).collect();
            let bottom: Vec<(f64, f64)> = run.iter().rev().map(|p| (p.x, p.y - p.half_width)).collect();
            let outline: Vec<(f64, f64)> = top.iter().chain(&bottom).copied().collect();
            chart.draw_series(std::iter::once(Polygon::new(outline, style.color.mix(0.15 * strength).filled())))?;
            // Edges tell bands apart where they overlap.
            let edge = style.color.mix(0.55 * strength).stroke_width(scale);
            chart.draw_series([top, bottom].map(|side| PathElement::new(side, edge)))?;
        }
    }
    for (index, series) in panel.series.iter().enumerate() {
        let style = Style::of(index);
        let points: Vec<(f64, f64)> = series.points.iter().filter(|p| p.y.is_finite()).map(|p| (p.x, p.y)).collect();
        let line = style.color.stroke_width(px(2));
        match style.dash {
            None => chart.draw_series(LineSeries::new(points.clone(), line))?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points.clone(), px(dash), px(gap), line))?,
        };
        // Markers on dense curves would hide the line.
        if points.len() <= 40 {
            let (r, filled) = (ipx(4), style.color.filled());
            match style.marker {
                Marker::Circle => chart.draw_series(points.iter().map(|&at| Circle::new(at, r, filled)))?,
                Marker::Square => {
                    chart.draw_series(points.iter().map(|&at| EmptyElement::at(at) + Rectangle::new([(-r, -r), (r, r)], filled)))?
                }
                Marker::Triangle => chart.draw_series(points.iter().map(|&at| TriangleMarker::new(at, r + r / 4, filled)))?,
                Marker::Cross => chart.draw_series(points.iter().map(|&at| Cross::new(at, r, style.color.stroke_width(px(2)))))?,
            };
        }
    }
    draw_legend(&legend, panel, scale)
}

fn draw_legend<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, panel: &Panel, scale: u32) -> Drawn<DB> {
    let ipx = |n: i32| n * scale as i32;
    let width = area.dim_in_pixel().0 as i32;
    let columns = panel.series.len().clamp(1, 2) as i32;
    let column_width = (width - ipx(90)) / columns;
    for (index, series) in panel.series.iter().enumerate() {
        let style = Style::of(index);
        let x = ipx(80) + column_width * (index as i32 % columns);
        let y = ipx(18 + 24 * (index as i32 / columns));
        let line = style.color.stroke_width(2 * scale);
        let ends = [(x, y), (x + ipx(34), y)];
        match style.dash {
            None => area.draw(&PathElement::new(ends, line))?,
            Some((dash, gap)) => area.draw(&plotters::element::DashedPathElement::new(ends, dash * scale, gap * scale, line))?,
        }
        draw_marker(area, (x + ipx(17), y), style, ipx(4))?;
        let font = ("sans-serif", 15 * scale).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        // The backends centre the line box, whose middle lies above that of the letters.
        area.draw(&Text::new(series.label.clone(), (x + ipx(42), y + ipx(3)), font))?;
    }
    Ok(())
}

pub(super) fn draw_marker<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, at: (i32, i32), style: Style, r: i32) -> Drawn<DB> {
    let filled = style.color.filled();
    match style.marker {
        Marker::Circle => area.draw(&Circle::new(at, r, filled)),
        Marker::Square => area.draw(&Rectangle::new([(at.0 - r, at.1 - r), (at.0 + r, at.1 + r)], filled)),
        Marker::Triangle => area.draw(&TriangleMarker::new(at, r + r / 4, filled)),
        Marker::Cross => area.draw(&Cross::new(at, r, style.color.stroke_width((r / 2).max(1) as u32))),
    }
}

/// Ranges that hold all points and bands, with a little room above and below.
fn ranges(panel: &Panel) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
    let points = || panel.series.iter().flat_map(|s| &s.points).filter(|p| p.y.is_finite());
    let band = |p: &Point| if p.half_width.is_finite() { p.half_width } else { 0.0 };
    let extent = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (0.0, 1.0)
        } else if high - low > 1e-12 * high.abs().max(low.abs()) {
            (low, high)
        } else {
            let room = 0.5_f64.max(low.abs() * 0.1);
            (low - room, high + room)
        }
    };
    let (x_low, x_high) = extent(&mut points().map(|p| p.x));
    let (y_low, y_high) = extent(&mut points().flat_map(|p| [p.y - band(p), p.y + band(p)]));
    let room = 0.05 * (y_high - y_low);
    (x_low..x_high, y_low - room..y_high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(n_series: usize) -> Panel {
        let series = (0..n_series)
            .map(|s| Series {
                label: format!("series {s}"),
                points: (0..8).map(|i| Point { x: f64::from(i), y: (f64::from(i) + s as f64).sqrt(), half_width: 0.2 }).collect(),
            })
            .collect();
        Panel { title: "title".into(), note: "note".into(), x_label: "x".into(), y_label: "y".into(), series }
    }

    #[test]
    fn svg_holds_the_words_and_png_is_a_png() {
        let text = svg([example(3)].as_slice()).unwrap();
        for word in ["title", "note", "series 2"] {
            assert!(text.contains(word), "{word} is missing");
        }
        let bytes = png([example(1), example(2)].as_slice()).unwrap();
        assert_eq!(&bytes[..4], b"\x89PNG");
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let panels = |n: usize| vec![Panel { series: Vec::new(), ..example(0) }; n];
        let n = MAX_PIXELS / (PANEL.0 * (PANEL.1 + 8));
        assert!(checked_size(panels(n).as_slice()).is_ok());
        for n in [n + 1, 10 * n] {
            for refused in [svg(panels(n).as_slice()).map(drop), png(panels(n).as_slice()).map(drop)] {
                assert_eq!(refused.unwrap_err(), format!("it would be {} × 488 pixels large; at most 20 million can be drawn", 720 * n));
            }
        }
        struct Endless;
        impl Drawing for Endless {
            fn size(&self) -> (usize, usize) {
                (usize::MAX, 3)
            }
            fn draw<DB: DrawingBackend>(&self, _: &DrawingArea<DB, Shift>, _: u32) -> Drawn<DB> {
                unreachable!("it is too large")
            }
        }
        assert!(png(&Endless).unwrap_err().contains("at most"));
    }

    #[test]
    fn odd_data_is_drawn() {
        let mut empty = example(1);
        empty.series[0].points.clear();
        svg([empty].as_slice()).unwrap();
        let mut single = example(1);
        single.series[0].points.truncate(1);
        single.series[0].points[0].half_width = f64::INFINITY;
        svg([single].as_slice()).unwrap();
        let mut broken = example(1);
        broken.series[0].points[3].y = f64::NAN;
        svg([broken].as_slice()).unwrap();
        svg::<[Panel]>(&[]).unwrap();
    }
}
