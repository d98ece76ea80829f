//! A table of numbers as coloured cells.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figure::{Drawing, Drawn, INK};

/// Numbers by row and column; 0 is white, what is above green, what is below red.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// What is shown.
    pub title: String,
    /// What the numbers mean, in small print.
    pub note: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// `[row][column]`; nothing where there is no number.
    pub values: Vec<Vec<Option<f64>>>,
    /// `[row][column]`: true where the number is told from 0, which a frame shows.
    pub marked: Vec<Vec<bool>>,
}

const CELL: (usize, usize) = (136, 40);
const HEAD: usize = 64;
const FOOT: usize = 16;
const PIXELS_PER_LETTER: usize = 8;

impl HeatMap {
    /// Width of the row names.
    fn side(&self) -> usize {
        40 + PIXELS_PER_LETTER * self.rows.iter().map(|r| r.chars().count()).max().unwrap_or(0)
    }

    /// Lines of the longest column name.
    fn lines(&self) -> usize {
        self.columns.iter().map(|c| wrapped(c).len()).max().unwrap_or(1)
    }

    fn above(&self) -> usize {
        HEAD + 12 + 18 * self.lines()
    }
}

/// A name cut into lines that fit over a cell.
fn wrapped(name: &str) -> Vec<String> {
    let most = (CELL.0 - 8) / PIXELS_PER_LETTER;
    let mut lines: Vec<String> = Vec::new();
    for word in name.split_inclusive(['_', '.', ' ', '(', ';']) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() <= most => line.push_str(word),
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// White at 0, saturated at ±1.
fn color(share: f64) -> RGBColor {
    let (strong, share) = if share >= 0.0 { ([0.0, 158.0, 115.0], share) } else { ([213.0, 94.0, 0.0], -share) };
    let mix = |full: f64| (255.0 + (full - 255.0) * 0.85 * share.min(1.0)).round() as u8;
    RGBColor(mix(strong[0]), mix(strong[1]), mix(strong[2]))
}

impl Drawing for HeatMap {
    fn size(&self) -> (usize, usize) {
        let text = PIXELS_PER_LETTER * self.note.chars().count().max(self.title.chars().count()) + 40;
        let width = (self.side() + CELL.0 * self.columns.len() + 24).max(text);
        (width, self.above() + CELL.1 * self.rows.len() + FOOT)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
        let px = |n: usize| (n * scale as usize) as i32;
        let text =
            |points: u32, ink: RGBColor, h: HPos| ("sans-serif", points * scale).into_font().color(&ink).pos(Pos::new(h, VPos::Center));
        root.fill(&WHITE)?;
        let middle = root.dim_in_pixel().0 as i32 / 2;
        root.draw(&Text::new(self.title.clone(), (middle, px(22)), text(20, INK, HPos::Center)))?;
        root.draw(&Text::new(self.note.clone(), (middle, px(46)), text(13, RGBColor(95, 95, 95), HPos::Center)))?;
        let largest = self.values.iter().flatten().flatten().fold(0.0_f64, |m, v| m.max(v.abs()));
        for (c, column) in self.columns.iter().enumerate() {
            let x = px(self.side() + c * CELL.0 + CELL.0 / 2);
            for (l, line) in wrapped(column).into_iter().enumerate() {
                root.draw(&Text::new(line, (x, px(HEAD + 12 + 18 * l)), text(14, INK, HPos::Center)))?;
            }
        }
        for (r, row) in self.rows.iter().enumerate() {
            let top = self.above() + r * CELL.1;
            root.draw(&Text::new(row.clone(), (px(self.side() - 12), px(top + CELL.1 / 2)), text(15, INK, HPos::Right)))?;
            for c in 0..self.columns.len() {
                let left = self.side() + c * CELL.0;
                let corners = [(px(left + 1), px(top + 1)), (px(left + CELL.0 - 1), px(top + CELL.1 - 1))];
                let value = self.values[r][c];
                let fill = value.map_or(RGBColor(240, 240, 240), |v| color(if largest > 0.0 { v / largest } else { 0.0 }));
                root.draw(&Rectangle::new(corners, fill.filled()))?;
                if self.marked[r][c] {
                    root.draw(&Rectangle::new(corners, INK.stroke_width(2 * scale)))?;
                }
                let word = value.map_or_else(|| "-".to_string(), |v| format!("{v:+.2}"));
                let at = (px(left + CELL.0 / 2), px(top + CELL.1 / 2) + px(3));
                root.draw(&Text::new(word, at, text(15, INK, HPos::Center)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::figure::svg;

    #[test]
    fn names_and_numbers_are_there() {
        let map = HeatMap {
            title: "title".into(),
            note: "note".into(),
            rows: vec!["ernie".into(), "plain".into()],
            columns: vec!["observation_noise".into(), "mass".into()],
            values: vec![vec![Some(1.25), None], vec![Some(-0.5), Some(0.0)]],
            marked: vec![vec![true, false], vec![false, false]],
        };
        let text = svg(&map).unwrap();
        for word in ["title", "ernie", "observation_", "+1.25", "-0.50", "+0.00"] {
            assert!(text.contains(word), "{word} is missing");
        }
    }

    #[test]
    fn colours_lean_to_the_sign() {
        assert_eq!(color(0.0), RGBColor(255, 255, 255));
        assert!(color(0.5).0 < color(0.5).1 && color(-0.5).0 > color(-0.5).2);
    }
}
