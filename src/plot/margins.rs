//! How the margins of an audit are distributed.

use steadfast_reward::audit::Audit;

use super::figure::{Panel, Point, Series};
use super::precision_recall::thinned;

/// Share of the labelled pairs with at most a margin, against the margin. `threshold` is the margin below which δ > 0.
pub fn panel(audit: &Audit, threshold: Option<f64>, note: &str) -> Panel {
    let mut margins: Vec<f32> = audit.pairs.iter().filter(|p| !p.equal).map(|p| p.margin).collect();
    margins.sort_by(f32::total_cmp);
    let n = margins.len().max(1) as f64;
    let shares: Vec<Point> = margins
        .iter()
        .enumerate()
        .map(|(i, &margin)| Point { x: f64::from(margin), y: (i + 1) as f64 / n, half_width: f64::INFINITY })
        .collect();
    let mut series = vec![Series { label: "labelled pairs".to_string(), points: thinned(&shares).copied().collect() }];
    let line = |label: &str, x: f64| Series {
        label: label.to_string(),
        points: [0.0, 1.0].map(|y| Point { x, y, half_width: f64::INFINITY }).to_vec(),
    };
    series.push(line("margin 0: judged against the label to the left", 0.0));
    series.extend(threshold.map(|x| line("outliers (δ > 0) to the left", x)));
    Panel {
        title: "Margins of the pairs".to_string(),
        note: note.to_string(),
        x_label: "margin: reward of the chosen less that of the rejected".to_string(),
        y_label: "share of pairs with at most this margin".to_string(),
        series,
    }
}
