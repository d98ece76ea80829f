//! How well an audit finds wrong labels, where the truth is known: precision against recall.

use steadfast_reward::audit::Audit;
use steadfast_reward::metrics::precision_recall_curve;

use super::figure::{Panel, Point, Series};

/// Most points of a curve; more cannot be told apart.
const MOST_POINTS: usize = 500;

/// Precision against recall of "the labels with the lowest margins are wrong", with the share of wrong labels, which is
/// the precision of a random order. Nothing if the truth is not known or all labels are alike.
pub fn panel(audit: &Audit, note: &str) -> Option<Panel> {
    let detection = audit.detection?;
    let known: Vec<_> = audit.pairs.iter().filter(|p| !p.equal).filter_map(|p| Some((-p.margin, p.flipped?))).collect();
    let (scores, flipped): (Vec<f32>, Vec<bool>) = known.into_iter().unzip();
    let curve = precision_recall_curve(&scores, &flipped);
    let points = thinned(&curve).map(|&(_, precision, recall)| Point { x: recall, y: precision, half_width: f64::INFINITY });
    let audited = Series { label: "lowest margins first".to_string(), points: points.collect() };
    let ends = [0.0, 1.0].map(|x| Point { x, y: detection.rate, half_width: f64::INFINITY });
    let random = Series { label: format!("random order ({:.1} % wrong)", 100.0 * detection.rate), points: ends.to_vec() };
    Some(Panel {
        title: format!("Wrong labels found: average precision {:.3}, AUROC {:.3}", detection.average_precision, detection.auroc),
        note: note.to_string(),
        x_label: "recall: share of the wrong labels that is found".to_string(),
        y_label: "precision: share of the found that is wrong".to_string(),
        series: vec![audited, random],
    })
}

/// The first and the last item and at most as many between them as can be told apart.
pub(super) fn thinned<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let step = items.len().div_ceil(MOST_POINTS).max(1);
    items.iter().enumerate().filter(move |(i, _)| i % step == 0 || i + 1 == items.len()).map(|(_, item)| item)
}

#[cfg(test)]
mod tests {
    use steadfast_reward::audit::{AuditedPair, PassReport};
    use steadfast_reward::{LossConfig, Preference};

    use super::*;

    fn audit(pairs: &[(f32, Option<bool>)]) -> Audit {
        let pair =
            |&(margin, flipped): &(f32, Option<bool>)| AuditedPair { margin, flipped, ..AuditedPair::new(&Preference::<()>::default(), 1) };
        let loss = LossConfig::default().build().unwrap();
        let margins: Vec<f32> = pairs.iter().map(|p| p.0).collect();
        Audit::new(pairs.iter().map(pair).collect(), Default::default(), vec![PassReport::new(1, &margins, &loss)], 1, &loss)
    }

    #[test]
    fn the_curve_ends_at_the_share_of_wrong_labels() {
        let panel = panel(&audit(&[(-2.0, Some(true)), (-1.0, Some(false)), (0.5, Some(true)), (1.0, Some(false))]), "").unwrap();
        let points: Vec<(f64, f64)> = panel.series[0].points.iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(points, [(0.5, 1.0), (0.5, 0.5), (1.0, 2.0 / 3.0), (1.0, 0.5)]);
        assert!(panel.series[1].points.iter().all(|p| p.y == 0.5));
    }

    #[test]
    fn nothing_is_drawn_without_a_truth() {
        assert!(panel(&audit(&[(-2.0, None), (-1.0, None)]), "").is_none());
    }

    #[test]
    fn long_curves_keep_their_ends() {
        let items: Vec<usize> = (0..12_345).collect();
        let kept: Vec<usize> = thinned(&items).copied().collect();
        assert!(kept.len() <= MOST_POINTS + 1 && kept[0] == 0 && kept[kept.len() - 1] == 12_344);
    }
}
