//! Panels side by side and in rows, under a common head and above a common legend.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figure::{Drawn, INK, draw_marker};
use super::style::Style;

/// Left of the plots.
pub(super) const LEFT: u32 = 82;
/// Right of the plots.
pub(super) const RIGHT: u32 = 22;
const PLOT_HEIGHT: u32 = 420;
/// Panels are put into further rows when they would get wider than this.
const MAX_WIDTH: usize = 1900;

/// What the panels share.
pub(super) struct Layout<'a> {
    /// Text above all panels; none if empty.
    pub title: &'a str,
    /// What the marks mean, in small print.
    pub note: &'a str,
    /// Names of the series, for the legend.
    pub series: &'a [String],
    /// Whether series are lines, which the legend then shows behind their markers.
    pub has_lines: bool,
    /// Texts above the panels; none where empty.
    pub panels: Vec<&'a str>,
    /// Width of a panel in logical pixels.
    pub panel_width: usize,
}

impl Layout<'_> {
    /// Width and height of the whole picture in logical pixels.
    pub fn size(&self) -> (usize, usize) {
        let (rows, columns) = self.grid();
        let height = self.head_height() as usize + rows * self.panel_height() as usize + self.legend_height();
        (columns * self.panel_width, height)
    }

    /// Rows and columns of panels.
    fn grid(&self) -> (usize, usize) {
        let n = self.panels.len().max(1);
        let columns = (MAX_WIDTH / self.panel_width).clamp(1, n);
        (n.div_ceil(columns), columns)
    }

    fn head_height(&self) -> u32 {
        if self.title.is_empty() { 34 } else { 62 }
    }

    fn panel_height(&self) -> u32 {
        PLOT_HEIGHT + self.panel_head()
    }

    /// Room for the texts above the panels.
    pub fn panel_head(&self) -> u32 {
        if self.panels.iter().any(|title| !title.is_empty()) { 28 } else { 0 }
    }

    /// Lengths of the line before the text of a legend's entry, and of the whole entry.
    fn legend_entry(&self) -> (usize, usize) {
        let line = if self.has_lines { 34 } else { 0 };
        (line, 48 + line + 8 * self.series.iter().map(|s| s.chars().count()).max().unwrap_or(0))
    }

    fn legend_columns(&self) -> usize {
        let width = self.grid().1 * self.panel_width - LEFT as usize;
        (width / self.legend_entry().1).clamp(1, self.series.len().max(1))
    }

    fn legend_height(&self) -> usize {
        16 + 24 * self.series.len().div_ceil(self.legend_columns())
    }

    /// Draws everything but what is below the texts above the panels, which `draw_panel(index, area)` draws.
    pub fn draw<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        scale: u32,
        mut draw_panel: impl FnMut(usize, &DrawingArea<DB, Shift>) -> Drawn<DB>,
    ) -> Drawn<DB> {
        let ipx = |n: u32| (n * scale) as i32;
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(self.head_height() * scale);
        let (rows, columns) = self.grid();
        let (body, legend) = rest.split_vertically(rows as u32 * self.panel_height() * scale);
        let middle = head.dim_in_pixel().0 as i32 / 2;
        if !self.title.is_empty() {
            head.draw(&Text::new(self.title.to_string(), (middle, ipx(24)), text(20 * scale, INK, HPos::Center)))?;
        }
        let note = text(13 * scale, RGBColor(95, 95, 95), HPos::Center);
        head.draw(&Text::new(self.note.to_string(), (middle, ipx(self.head_height() - 14)), note))?;
        for (index, (title, area)) in self.panels.iter().zip(body.split_evenly((rows, columns))).enumerate() {
            if !title.is_empty() {
                let middle = area.dim_in_pixel().0 as i32 / 2;
                area.draw(&Text::new((*title).to_string(), (middle, ipx(16)), text(16 * scale, INK, HPos::Center)))?;
            }
            draw_panel(index, &area)?;
        }
        self.draw_legend(&legend, scale)
    }

    fn draw_legend<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        let ipx = |n: usize| (n * scale as usize) as i32;
        let (columns, (line, width)) = (self.legend_columns(), self.legend_entry());
        for (index, label) in self.series.iter().enumerate() {
            let (x, y) = (ipx(LEFT as usize + width * (index % columns)), ipx(14 + 24 * (index / columns)));
            let style = Style::of(index);
            if self.has_lines {
                let (ends, stroke) = ([(x, y), (x + ipx(line), y)], style.color.stroke_width(2 * scale));
                match style.dash {
                    None => area.draw(&PathElement::new(ends, stroke))?,
                    Some((dash, gap)) => {
                        area.draw(&plotters::element::DashedPathElement::new(ends, dash * scale, gap * scale, stroke))?;
                    }
                }
            }
            draw_marker(area, (x + ipx(line / 2), y), style, ipx(5))?;
            // The backends centre the line box, whose middle lies above that of the letters.
            area.draw(&Text::new(
                label.clone(),
                (x + ipx(line + if self.has_lines { 8 } else { 14 }), y + ipx(3)),
                text(15 * scale, INK, HPos::Left),
            ))?;
        }
        Ok(())
    }
}

/// The look of a text whose middle line is at its position.
pub(super) fn text(points: u32, color: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", points).into_font().color(&color).pos(Pos::new(horizontal, VPos::Center))
}

/// A range that holds all values, with a little room at both ends; 0 to 1 without values.
pub(super) fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let room = if high - low > 1e-12 * high.abs().max(low.abs()) { 0.05 * (high - low) } else { 0.5_f64.max(low.abs() * 0.1) };
    low - room..high + room
}
