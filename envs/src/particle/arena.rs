//! The soft edge of the arena in the chase scenarios.

use super::world::Vec2;

/// Penalty for leaving the square of half-width 1, summed over both axes: 0 up to |x| = 0.9, then linear to 1 at
/// |x| = 1, then `min(e^(2|x| − 2), 10)`.
#[inline]
pub fn boundary_penalty(position: Vec2) -> f64 {
    let axis = |x: f64| {
        let x = x.abs();
        if x < 0.9 {
            0.0
        } else if x < 1.0 {
            (x - 0.9) * 10.0
        } else {
            (2.0 * x - 2.0).exp().min(10.0)
        }
    };
    axis(position[0]) + axis(position[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalty_is_continuous_and_capped() {
        assert_eq!(boundary_penalty([0.89, -0.89]), 0.0);
        assert!((boundary_penalty([0.95, 0.0]) - 0.5).abs() < 1e-12);
        assert!((boundary_penalty([1.0 - 1e-12, 0.0]) - boundary_penalty([-1.0, 0.0])).abs() < 1e-9);
        assert!((boundary_penalty([0.0, -1.12]) - 0.24_f64.exp()).abs() < 1e-12);
        assert_eq!(boundary_penalty([7.0, -7.0]), 20.0);
    }
}
