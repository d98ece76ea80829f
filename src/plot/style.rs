//! How series are told apart: by colour, dash and marker together.

use plotters::style::RGBColor;

/// The palette of Okabe and Ito, which readers with any common colour blindness can tell apart, with a dark brown for its yellow, which is
/// too light on white.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
    RGBColor(120, 70, 30),
];

/// Shape at the points of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Disc.
    Circle,
    /// Square.
    Square,
    /// Triangle.
    Triangle,
    /// Cross.
    Cross,
}

/// Look of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// Colour.
    pub color: RGBColor,
    /// Lengths of dash and gap; a solid line if absent.
    pub dash: Option<(u32, u32)>,
    /// Marker.
    pub marker: Marker,
}

impl Style {
    /// The look of the `index`-th series.
    pub fn of(index: usize) -> Self {
        let dashes = [None, Some((9, 4)), Some((3, 3)), Some((14, 4))];
        let markers = [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Cross];
        Self { color: COLORS[index % COLORS.len()], dash: dashes[index % dashes.len()], marker: markers[index % markers.len()] }
    }
}

/// A tick label: few digits, `k` and `M` for thousands and millions.
pub fn tick(value: f64) -> String {
    let magnitude = value.abs();
    let (scaled, unit) = match magnitude {
        m if m >= 1e6 => (value / 1e6, "M"),
        m if m >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    if magnitude != 0.0 && magnitude < 1e-3 {
        return format!("{value:.1e}");
    }
    let text = format!("{scaled:.3}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let text = if text == "-0" { "0" } else { text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "0"),
            (0.25, "0.25"),
            (-30.0, "-30"),
            (2000.0, "2000"),
            (50_000.0, "50k"),
            (1_500_000.0, "1.5M"),
            (0.0001, "1.0e-4"),
        ] {
            assert_eq!(tick(value), expected);
        }
    }

    #[test]
    fn the_first_series_differ_in_every_respect() {
        for (a, b) in [(0, 1), (1, 2), (2, 3)] {
            let (a, b) = (Style::of(a), Style::of(b));
            assert!(a.color != b.color && a.dash != b.dash && a.marker != b.marker);
        }
    }
}
