//! Outcomes of a sweep: categories along the horizontal axis, one marker per series, the mean over seeds with its 95 %
//! interval, and the seeds themselves as faint dots.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::figure::{Drawing, Drawn, FAINT, INK, draw_marker};
use super::layout::{LEFT, Layout, RIGHT, range, text};
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

/// Between neighbouring series.
const SERIES_STEP: usize = 12;

impl CategoryFigure {
    fn panel_width(&self) -> usize {
        let longest = self.categories.iter().map(|c| c.chars().count()).max().unwrap_or(0);
        let category = (SERIES_STEP * self.series.len() + 24).max(8 * longest + 14).max(60);
        ((LEFT + RIGHT) as usize + category * self.categories.len().max(1)).max(520)
    }

    fn layout(&self) -> Layout<'_> {
        Layout {
            title: &self.title,
            note: &self.note,
            series: &self.series,
            has_lines: false,
            panels: self.panels.iter().map(|p| p.title.as_str()).collect(),
            panel_width: self.panel_width(),
        }
    }
}

impl Drawing for CategoryFigure {
    fn size(&self) -> (usize, usize) {
        self.layout().size()
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        self.layout().draw(root, scale, |index, area| self.draw_panel(area, &self.panels[index], scale))
    }
}

impl CategoryFigure {
    fn draw_panel<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, panel: &CategoryPanel, scale: u32) -> Drawn<DB> {
        let ipx = |n: u32| (n * scale) as i32;
        let (width, height) = area.dim_in_pixel();
        let top = self.layout().panel_head();
        let n = self.categories.len().max(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .margin_top((top + 8) * scale)
            .margin_left(8 * scale)
            .margin_right(RIGHT * scale)
            .x_label_area_size(52 * scale)
            .y_label_area_size((LEFT - 8) * scale)
            .build_cartesian_2d(0.0..n, range(extent(panel)))?;
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
}

/// All seeds, and the ends of all intervals.
fn extent(panel: &CategoryPanel) -> impl Iterator<Item = f64> + '_ {
    panel.values.iter().flatten().filter_map(|values| Some((values, Summary::of(values)?))).flat_map(|(values, summary)| {
        let reach = if summary.half_width.is_finite() { summary.half_width } else { 0.0 };
        values.iter().copied().chain([summary.mean - reach, summary.mean + reach])
    })
}

/// Makes sure that nothing in an SVG picture lies outside of it.
#[cfg(test)]
pub(super) fn assert_within(text: &str, (width, height): (usize, usize)) {
    let value = |text: &str| -> f64 { text.parse().expect("coordinates are numbers") };
    for (attribute, limit) in [("cx=\"", width), ("cy=\"", height), (" x=\"", width), (" y=\"", height)] {
        for rest in text.split(attribute).skip(1) {
            let found = value(rest.split('"').next().unwrap_or_default());
            assert!((0.0..=limit as f64).contains(&found), "{attribute}{found}");
        }
    }
    for rest in text.split("points=\"").skip(1) {
        for point in rest.split('"').next().unwrap_or_default().split_whitespace() {
            let (x, y) = point.split_once(',').expect("points are pairs");
            assert!((0.0..=width as f64).contains(&value(x)) && (0.0..=height as f64).contains(&value(y)), "{point}");
        }
    }
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
        assert_within(&text, figure.size());
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
