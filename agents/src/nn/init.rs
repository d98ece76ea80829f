//! Orthogonal initialisation.

use steadfast_envs::Rng;

/// A matrix `[output, input]`, row-major, whose shorter side is orthonormal, times `gain`.
///
/// Uniformly distributed over such matrices: Gram–Schmidt on Gaussian vectors, which is the QR decomposition with a
/// positive diagonal. Source: Saxe et al. 2013 (arXiv 1312.6120).
pub(super) fn orthogonal(output: usize, input: usize, gain: f32, rng: &mut Rng) -> Vec<f32> {
    let (n_vectors, length) = (output.min(input), output.max(input));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(n_vectors);
    while basis.len() < n_vectors {
        let mut vector: Vec<f64> = (0..length).map(|_| rng.normal()).collect();
        let before = norm(&vector);
        // The second pass removes what rounding left of the first.
        for _ in 0..2 {
            for other in &basis {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let after = norm(&vector);
        // A draw that is almost dependent on the others would be all rounding error; it is drawn again.
        if after > 1e-6 * before {
            vector.iter_mut().for_each(|v| *v /= after);
            basis.push(vector);
        }
    }
    let element = |o: usize, i: usize| if output <= input { basis[o][i] } else { basis[i][o] };
    (0..output).flat_map(|o| (0..input).map(move |i| (o, i))).map(|(o, i)| (f64::from(gain) * element(o, i)) as f32).collect()
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_side_is_orthonormal() {
        for (output, input) in [(5, 64), (64, 18), (64, 64), (1, 7), (7, 1)] {
            let gain = 1.5_f32;
            let w = orthogonal(output, input, gain, &mut Rng::from_seed(4));
            let short = output.min(input);
            let at = |vector: usize, k: usize| if output <= input { w[vector * input + k] } else { w[k * input + vector] };
            for a in 0..short {
                for b in 0..short {
                    let dot: f64 = (0..output.max(input)).map(|k| f64::from(at(a, k)) * f64::from(at(b, k))).sum();
                    let expected = if a == b { f64::from(gain * gain) } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-6, "{output}x{input}: <{a},{b}> = {dot}");
                }
            }
        }
    }

    #[test]
    fn signs_are_not_biased() {
        let mut rng = Rng::from_seed(5);
        let mean = (0..2000).map(|_| orthogonal(3, 3, 1.0, &mut rng)[0]).sum::<f32>() / 2000.0;
        assert!(mean.abs() < 0.05, "{mean}");
    }
}
