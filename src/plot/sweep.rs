//! Outcomes of a sweep: categories along the horizontal axis, one marker per series, the mean over seeds with its 95 %
//! interval, and the seeds themselves as faint dots.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figure::{Drawing, Drawn, FAINT, INK, draw_marker};
use super::stats::Summary;
use super::style::{Style, tick};

/// Panels that share their categories and series.
#[derive(Debug, Clone, PartialEq)]
pub struct CategoryFigure {
    /// Text above all panels; none if empty.
    pub title: String,
    /// What the bars mean, in small print.
    pub note: String,
    /// What the categories are.
    pub x_label: String,
    /// Names of the categories from left to right.
    pub categories: Vec<String>,
    /// Names of the series.
    pub series: Vec<String>,
    /// The panels, in the order of reading.
    pub panels: Vec<CategoryPanel>,
}

/// One pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub struct CategoryPanel {
    /// Text above the panel; none if empty.
    pub title: String,
    /// Quantity.
    pub y_label: String,
    /// Values over seeds: `[series, category, seed]`.
    pub values: Vec<Vec<Vec<f64>>>,
}

const LEFT: u32 = 82;
const RIGHT: u32 = 22;
const PLOT_HEIGHT: u32 = 420;
/// Panels are put into further rows when they would get wider than this.
const MAX_WIDTH: usize = 1900;
/// Between neighbouring series.
const SERIES_STEP: usize = 12;

impl CategoryFigure {
    fn panel_width(&self) -> usize {
        let longest = self.categories.iter().map(|c| c.chars().count()).max().unwrap_or(0);
        let category = (SERIES_STEP * self.series.len() + 24).max(8 * longest + 14).max(60);
        ((LEFT + RIGHT) as usize + category * self.categories.len().max(1)).max(520)
    }

    /// Rows and columns of panels.
    fn grid(&self) -> (usize, usize) {
        let n = self.panels.len().max(1);
        let columns = (MAX_WIDTH / self.panel_width()).clamp(1, n);
        (n.div_ceil(columns), columns)
    }

    fn head_height(&self) -> u32 {
        if self.title.is_empty() { 34 } else { 62 }
    }

    fn panel_height(&self) -> u32 {
        let has_titles = self.panels.iter().any(|p| !p.title.is_empty());
        PLOT_HEIGHT + if has_titles { 28 } else { 0 }
    }

    fn legend_column(&self) -> usize {
        48 + 8 * self.series.iter().map(|s| s.chars().count()).max().unwrap_or(0)
    }

    fn legend_columns(&self) -> usize {
        let width = self.grid().1 * self.panel_width() - LEFT as usize;
        (width / self.legend_column()).clamp(1, self.series.len().max(1))
    }

    fn legend_height(&self) -> usize {
        16 + 24 * self.series.len().div_ceil(self.legend_columns())
    }
}

impl Drawing for CategoryFigure {
    fn size(&self) -> (usize, usize) {
        let (rows, columns) = self.grid();
        let height = self.head_height() as usize + rows * self.panel_height() as usize + self.legend_height();
        (columns * self.panel_width(), height)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        let ipx = |n: u32| (n * scale) as i32;
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(self.head_height() * scale);
        let (rows, columns) = self.grid();
        let (body, legend) = rest.split_vertically(rows as u32 * self.panel_height() * scale);
        let middle = head.dim_in_pixel().0 as i32 / 2;
        if !self.title.is_empty() {
            head.draw(&Text::new(self.title.clone(), (middle, ipx(24)), text(20 * scale, INK, HPos::Center)))?;
        }
        let note = text(13 * scale, RGBColor(95, 95, 95), HPos::Center);
        head.draw(&Text::new(self.note.clone(), (middle, ipx(self.head_height() - 14)), note))?;
        for (panel, area) in self.panels.iter().zip(body.split_evenly((rows, columns))) {
            self.draw_panel(&area, panel, scale)?;
        }
        self.draw_legend(&legend, scale)
    }
}

impl CategoryFigure {
    fn draw_panel<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, panel: &CategoryPanel, scale: u32) -> Drawn<DB> {
        let ipx = |n: u32| (n * scale) as i32;
        let (width, height) = area.dim_in_pixel();
        let top = self.panel_height() - PLOT_HEIGHT;
        if !panel.title.is_empty() {
            area.draw(&Text::new(panel.title.clone(), (width as i32 / 2, ipx(16)), text(16 * scale, INK, HPos::Center)))?;
        }
        let n = self.categories.len().max(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .margin_top((top + 8) * scale)
            .margin_left(8 * scale)
            .margin_right(RIGHT * scale)
            .x_label_area_size(52 * scale)
            .y_label_area_size((LEFT - 8) * scale)
            .build_cartesian_2d(0.0..n, range(panel))?;
        let (low, high) = (chart.y_range().start, chart.y_range().end);
        // Every second category on a tinted ground, so that its series are seen as one group.
        let bands = (0..self.categories.len()).filter(|i| i % 2 == 1).map(|i| i as f64);
        chart.draw_series(bands.map(|x| Rectangle::new([(x, low), (x + 1.0, high)], RGBColor(245, 245, 245).filled())))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT.stroke_width(scale))
            .axis_style(INK.stroke_width(scale))
            .set_all_tick_mark_size(4 * scale)
            .x_labels(0)
            .y_labels(7)
            .y_label_formatter(&|v| tick(*v))
            .label_style(("sans-serif", 14 * scale).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 16 * scale).into_font().color(&INK))
            .y_desc(panel.y_label.as_str())
            .draw()?;
        for (i, category) in self.categories.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(i as f64 + 0.5, low));
            let origin = area.get_base_pixel();
            let at = (x - origin.0, y - origin.1 + ipx(14));
            area.draw(&Text::new(category.clone(), at, text(14 * scale, INK, HPos::Center)))?;
        }
        let below = (ipx(LEFT) + (width as i32 - ipx(LEFT + RIGHT)) / 2, height as i32 - ipx(14));
        area.draw(&Text::new(self.x_label.clone(), below, text(16 * scale, INK, HPos::Center)))?;

        let step = (0.8 / self.series.len().max(1) as f64).min(0.2);
        for (s, categories) in panel.values.iter().enumerate() {
            let style = Style::of(s);
            let offset = 0.5 + step * (s as f64 - (self.series.len() - 1) as f64 / 2.0);
            for (c, values) in categories.iter().enumerate() {
                let Some(summary) = Summary::of(values) else { continue };
                let x = c as f64 + offset;
                let faint = style.color.mix(0.45).filled();
                // Beside the bar, which would hide them.
                if values.len() > 1 {
                    chart.draw_series(values.iter().map(|&y| EmptyElement::at((x, y)) + Circle::new((ipx(5), 0), ipx(2), faint)))?;
                }
                if summary.half_width.is_finite() {
                    let (bottom, top) = (summary.mean - summary.half_width, summary.mean + summary.half_width);
                    let line = style.color.stroke_width((3 * scale).div_ceil(2));
                    chart.draw_series(std::iter::once(PathElement::new([(x, bottom), (x, top)], line)))?;
                    let cap = |y: f64| EmptyElement::at((x, y)) + PathElement::new([(-ipx(3), 0), (ipx(3), 0)], line);
                    chart.draw_series([cap(bottom), cap(top)])?;
                }
                let (x, y) = chart.backend_coord(&(x, summary.mean));
                let origin = area.get_base_pixel();
                draw_marker(area, (x - origin.0, y - origin.1), style, ipx(4))?;
            }
        }
        Ok(())
    }

    fn draw_legend<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        let ipx = |n: u32| (n * scale) as i32;
        let (columns, width) = (self.legend_columns() as i32, self.legend_column() as u32);
        for (index, label) in self.series.iter().enumerate() {
            let at = (ipx(LEFT) + ipx(width) * (index as i32 % columns), ipx(14) + ipx(24) * (index as i32 / columns));
            draw_marker(area, at, Style::of(index), ipx(5))?;
            // The backends centre the line box, whose middle lies above that of the letters.
            area.draw(&Text::new(label.clone(), (at.0 + ipx(14), at.1 + ipx(3)), text(15 * scale, INK, HPos::Left)))?;
        }
        Ok(())
    }
}

fn text(points: u32, color: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", points).into_font().color(&color).pos(Pos::new(horizontal, VPos::Center))
}

/// A range that holds all seeds and intervals, with a little room above and below.
fn range(panel: &CategoryPanel) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for values in panel.values.iter().flatten() {
        let Some(summary) = Summary::of(values) else { continue };
        let reach = if summary.half_width.is_finite() { summary.half_width } else { 0.0 };
        for value in values.iter().copied().chain([summary.mean - reach, summary.mean + reach]) {
            (low, high) = (low.min(value), high.max(value));
        }
    }
    if low > high {
        return 0.0..1.0;
    }
    let room = if high - low > 1e-12 * high.abs().max(low.abs()) { 0.05 * (high - low) } else { 0.5_f64.max(low.abs() * 0.1) };
    low - room..high + room
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::figure::{png, svg};

    fn example(series: usize, categories: usize, panels: usize) -> CategoryFigure {
        let value = |s: usize, c: usize, seed: usize| (s as f64 * 0.31 + c as f64).sin() + 0.07 * (seed as f64 * 1.7 + s as f64).cos();
        let values: Vec<Vec<Vec<f64>>> =
            (0..series).map(|s| (0..categories).map(|c| (0..5).map(|seed| value(s, c, seed)).collect()).collect()).collect();
        CategoryFigure {
            title: "A title".into(),
            note: "a note".into(),
            x_label: "noise".into(),
            categories: (0..categories).map(|c| format!("irrational-{c}/3")).collect(),
            series: (0..series).map(|s| format!("method 0.{s}")).collect(),
            panels: (0..panels)
                .map(|p| CategoryPanel { title: format!("panel {p}"), y_label: "test accuracy".into(), values: values.clone() })
                .collect(),
        }
    }

    #[test]
    fn all_words_are_drawn_and_everything_lies_within_the_picture() {
        let figure = example(9, 7, 3);
        let text = svg(&figure).unwrap();
        for word in ["A title", "a note", "irrational-6/3", "method 0.8", "panel 2", "test accuracy"] {
            assert!(text.contains(word), "{word} is missing");
        }
        let (width, height) = figure.size();
        for (attribute, limit) in [("cx=\"", width), ("cy=\"", height), (" x=\"", width), (" y=\"", height)] {
            for rest in text.split(attribute).skip(1) {
                let value: f64 = rest.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=limit as f64).contains(&value), "{attribute}{value}");
            }
        }
        // Seven categories of nine series of five seeds in three panels, besides the markers that are discs.
        assert!(text.matches("<circle").count() >= 7 * 9 * 5 * 3);
    }

    #[test]
    fn odd_data_is_drawn() {
        for (series, categories, panels) in [(0, 0, 1), (1, 1, 1), (2, 0, 1), (1, 1, 0)] {
            svg(&example(series, categories, panels)).unwrap();
        }
        let mut figure = example(2, 2, 1);
        figure.panels[0].values[0][0] = vec![1.0];
        figure.panels[0].values[1][1].clear();
        assert_eq!(&png(&figure).unwrap()[..4], b"\x89PNG");
    }
}
