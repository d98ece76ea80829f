//! Distances between the outputs of a network at two inputs, for regularisers.

/// Squared Euclidean distance `Σ (a - b)²` of each row of `n` values into `value` `[rows]`.
///
/// `d_a` and `d_b` `[rows, n]` receive, added, the derivatives of `weight · Σ value`: `± 2 weight (a - b)`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn squared_l2(
    a: &[f32],
    b: &[f32],
    rows: usize,
    n: usize,
    value: &mut [f32],
    weight: f32,
    d_a: Option<&mut [f32]>,
    d_b: Option<&mut [f32]>,
) {
    assert!(n > 0 && a.len() == rows * n && b.len() == rows * n && value.len() == rows, "shapes in squared_l2");
    for ((a, b), value) in a.chunks_exact(n).zip(b.chunks_exact(n)).zip(value) {
        *value = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    }
    for (gradient, weight) in [(d_a, 2.0 * weight), (d_b, -2.0 * weight)] {
        let Some(gradient) = gradient else { continue };
        assert!(gradient.len() == rows * n, "gradient in squared_l2");
        for (d, (a, b)) in gradient.iter_mut().zip(a.iter().zip(b)) {
            *d += weight * (a - b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_of_three_and_four_is_twenty_five() {
        let (a, b) = ([3.0, 4.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]);
        let (mut value, mut d_a, mut d_b) = ([0.0; 2], [1.0; 4], [0.0; 4]);
        squared_l2(&a, &b, 2, 2, &mut value, 0.5, Some(&mut d_a), Some(&mut d_b));
        assert_eq!(value, [25.0, 0.0]);
        assert_eq!(d_a, [4.0, 5.0, 1.0, 1.0]);
        assert_eq!(d_b, [-3.0, -4.0, 0.0, 0.0]);
    }
}
