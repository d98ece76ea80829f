//! One quantity against another in the course of training: a line through the means over seeds at each evaluation, bars of
//! the 95 % interval of the vertical one at some of them, and the seeds themselves as faint thin lines.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::figure::{Drawing, Drawn, FAINT, INK, draw_marker};
use super::layout::{LEFT, Layout, RIGHT, range};
use super::stats::Summary;
use super::style::{Style, tick};

/// Panels that share their quantities and series.
#[derive(Debug, Clone, PartialEq)]
pub struct PathFigure {
    /// Text above all panels; none if empty.
    pub title: String,
    /// What lines and bars mean, in small print.
    pub note: String,
    /// Horizontal quantity.
    pub x_label: String,
    /// Vertical quantity.
    pub y_label: String,
    /// Names of the series.
    pub series: Vec<String>,
    /// The panels, in the order of reading.
    pub panels: Vec<PathPanel>,
}

/// One pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub struct PathPanel {
    /// Text above the panel; none if empty.
    pub title: String,
    /// `[series, seed, evaluation]`: the two quantities. The seeds of a series have equally many evaluations.
    pub seeds: Vec<Vec<Vec<(f64, f64)>>>,
}

const PANEL_WIDTH: usize = 600;
/// Markers on longer paths would hide the line.
const MAX_MARKERS: usize = 40;
/// More bars would hide each other.
const MAX_BARS: usize = 12;

/// Means over seeds at each evaluation: the horizontal one, and the vertical one with its interval.
fn means(seeds: &[Vec<(f64, f64)>]) -> Vec<(f64, Summary)> {
    let n = seeds.iter().map(Vec::len).min().unwrap_or(0);
    let at = |i: usize| {
        let x = Summary::of(&seeds.iter().map(|path| path[i].0).collect::<Vec<_>>())?;
        Some((x.mean, Summary::of(&seeds.iter().map(|path| path[i].1).collect::<Vec<_>>())?))
    };
    (0..n).filter_map(at).collect()
}

/// The ends of the interval of a mean, if it has one.
fn bar(summary: &Summary) -> Option<(f64, f64)> {
    summary.half_width.is_finite().then_some((summary.mean - summary.half_width, summary.mean + summary.half_width))
}

impl PathFigure {
    fn layout(&self) -> Layout<'_> {
        Layout {
            title: &self.title,
            note: &self.note,
            series: &self.series,
            has_lines: true,
            panels: self.panels.iter().map(|p| p.title.as_str()).collect(),
            panel_width: PANEL_WIDTH,
        }
    }

    fn draw_panel<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, panel: &PathPanel, scale: u32) -> Drawn<DB> {
        let ipx = |n: u32| (n * scale) as i32;
        let paths: Vec<Vec<(f64, Summary)>> = panel.seeds.iter().map(|seeds| means(seeds)).collect();
        let points = || panel.seeds.iter().flatten().flatten();
        let bars = paths.iter().flatten().filter_map(|(_, y)| bar(y)).flat_map(|(bottom, top)| [bottom, top]);
        let mut chart = ChartBuilder::on(area)
            .margin_top((self.layout().panel_head() + 8) * scale)
            .margin_left(8 * scale)
            .margin_right(RIGHT * scale)
            .x_label_area_size(52 * scale)
            .y_label_area_size((LEFT - 8) * scale)
            .build_cartesian_2d(range(points().map(|p| p.0)), range(points().map(|p| p.1).chain(bars)))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT.stroke_width(scale))
            .axis_style(INK.stroke_width(scale))
            .set_all_tick_mark_size(4 * scale)
            .x_labels(7)
            .y_labels(7)
            .x_label_formatter(&|v| tick(*v))
            .y_label_formatter(&|v| tick(*v))
            .label_style(("sans-serif", 14 * scale).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 16 * scale).into_font().color(&INK))
            .x_desc(self.x_label.as_str())
            .y_desc(self.y_label.as_str())
            .draw()?;
        for (s, seeds) in panel.seeds.iter().enumerate().filter(|(_, seeds)| seeds.len() > 1) {
            let faint = Style::of(s).color.mix(0.35).stroke_width(scale);
            // Piece by piece: the bitmap backend draws long spikes at sharp bends.
            let pieces = seeds.iter().flat_map(|path| path.windows(2)).map(|ends| PathElement::new(ends, faint));
            chart.draw_series(pieces)?;
        }
        for (s, path) in paths.iter().enumerate() {
            let style = Style::of(s);
            let thin = style.color.mix(0.8).stroke_width(scale);
            // The last one has a bar, and so many before it that they can be told apart.
            let chosen = path.iter().rev().step_by(path.len().div_ceil(MAX_BARS).max(1));
            for (x, bottom, top) in chosen.filter_map(|(x, y)| bar(y).map(|(bottom, top)| (*x, bottom, top))) {
                chart.draw_series(std::iter::once(PathElement::new([(x, bottom), (x, top)], thin)))?;
                let cap = |y: f64| EmptyElement::at((x, y)) + PathElement::new([(-ipx(3), 0), (ipx(3), 0)], thin);
                chart.draw_series([cap(bottom), cap(top)])?;
            }
            let line: Vec<(f64, f64)> = path.iter().map(|(x, y)| (*x, y.mean)).collect();
            let stroke = style.color.stroke_width(2 * scale);
            match style.dash {
                None => chart.draw_series(line.windows(2).map(|ends| PathElement::new(ends, stroke)))?,
                Some((dash, gap)) => chart.draw_series(
                    line.windows(2).map(|ends| DashedPathElement::new([ends[0], ends[1]], dash * scale, gap * scale, stroke)),
                )?,
            };
            if line.len() <= MAX_MARKERS {
                let origin = area.get_base_pixel();
                for point in &line {
                    let (x, y) = chart.backend_coord(point);
                    draw_marker(area, (x - origin.0, y - origin.1), style, ipx(4))?;
                }
            }
        }
        Ok(())
    }
}

impl Drawing for PathFigure {
    fn size(&self) -> (usize, usize) {
        self.layout().size()
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        self.layout().draw(root, scale, |index, area| self.draw_panel(area, &self.panels[index], scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::figure::{png, svg};
    use crate::plot::sweep::assert_within;

    fn example(series: usize, seeds: usize, evaluations: usize, panels: usize) -> PathFigure {
        let point = |s: usize, seed: usize, i: usize| {
            let kl = i as f64 * (1.0 + 0.1 * seed as f64);
            (kl, kl.sqrt() - 0.1 * (s as f64 + 1.0) * kl + 0.05 * (seed as f64 * 1.7).cos())
        };
        let path = |s: usize, seed: usize| (0..evaluations).map(|i| point(s, seed, i)).collect::<Vec<_>>();
        let of_series = |s: usize| (0..seeds).map(|seed| path(s, seed)).collect::<Vec<_>>();
        PathFigure {
            title: "A title".into(),
            note: "a note".into(),
            x_label: "divergence in nats".into(),
            y_label: "gold reward".into(),
            series: (0..series).map(|s| format!("method 0.{s}")).collect(),
            panels: (0..panels).map(|p| PathPanel { title: format!("panel {p}"), seeds: (0..series).map(of_series).collect() }).collect(),
        }
    }

    #[test]
    fn all_words_are_drawn_and_everything_lies_within_the_picture() {
        let figure = example(6, 4, 9, 4);
        let text = svg(&figure).unwrap();
        for word in ["A title", "a note", "divergence in nats", "gold reward", "method 0.5", "panel 3"] {
            assert!(text.contains(word), "{word} is missing");
        }
        assert_within(&text, figure.size());
    }

    #[test]
    fn points_are_means_over_seeds() {
        let seeds = [vec![(0.0, 1.0), (2.0, 5.0)], vec![(1.0, 3.0), (3.0, 5.0)]];
        let found = means(&seeds);
        let points: Vec<(f64, f64)> = found.iter().map(|(x, y)| (*x, y.mean)).collect();
        assert_eq!(points, [(0.5, 2.0), (2.5, 5.0)]);
        // Two values that differ by 2: the quantile of one degree of freedom is 12.706.
        assert!((found[0].1.half_width - 12.706).abs() < 1e-3 && found[1].1.half_width == 0.0);
        assert!(means(&[]).is_empty());
    }

    #[test]
    fn odd_data_is_drawn() {
        for (series, seeds, evaluations, panels) in [(0, 0, 0, 1), (1, 1, 1, 1), (2, 0, 3, 1), (2, 2, 0, 1), (1, 1, 1, 0), (1, 2, 60, 1)] {
            svg(&example(series, seeds, evaluations, panels)).unwrap();
        }
        assert_eq!(&png(&example(2, 2, 3, 1)).unwrap()[..4], b"\x89PNG");
    }
}
