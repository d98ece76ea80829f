//! Means with 95 % intervals.

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use super::aggregate::{interval, mean};

/// Mean, spread and uncertainty of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Mean.
    pub mean: f64,
    /// Standard deviation with `n - 1` in the denominator; 0 for one value.
    pub std: f64,
    /// Half width of the 95 % interval of the mean by Student's t; infinite for one value.
    pub half_width: f64,
}

impl Summary {
    /// Summary of `values`; nothing for an empty list.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Some(Self { n, mean, std: 0.0, half_width: f64::INFINITY });
        }
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
        Some(Self { n, mean, std, half_width: t_quantile(n - 1) * std / (n as f64).sqrt() })
    }
}

/// A mean with the half width of its interval, where there is one.
pub fn plus_minus(summary: Option<Summary>) -> String {
    match summary {
        None => "-".to_string(),
        Some(s) if s.half_width.is_finite() => format!("{:.3} ± {:.3}", s.mean, s.half_width),
        Some(s) => format!("{:.3}", s.mean),
    }
}

/// The 95 % interval of the mean of `values` by the percentile bootstrap: between the 2.5 % and 97.5 % quantiles of the
/// means of 10 000 samples with replacement. The draws are the same in every call. Nothing for fewer than five values,
/// whose samples are too alike.
///
/// Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
pub fn bootstrap(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 5 || values.iter().any(|v| !v.is_finite()) {
        return None;
    }
    interval(&[&[values.to_vec()]], |methods| mean(&methods[0]))
}

/// The 97.5 % quantile of Student's t.
fn t_quantile(degrees_of_freedom: usize) -> f64 {
    match StudentsT::new(0.0, 1.0, degrees_of_freedom as f64) {
        Ok(law) => law.inverse_cdf(0.975),
        Err(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_printed_tables() {
        for (df, expected) in [(1, 12.706), (4, 2.776), (9, 2.262), (99, 1.984)] {
            assert!((t_quantile(df) - expected).abs() < 1e-3, "{df}: {}", t_quantile(df));
        }
    }

    #[test]
    fn the_bootstrap_agrees_with_the_binomial_law() {
        // The mean of a resample of ten zeros and ten ones is a binomial number of 20 trials over 20, whose 2.5 % and
        // 97.5 % quantiles are 6 and 14.
        let values: Vec<f64> = (0..20).map(|i| f64::from(i % 2)).collect();
        assert_eq!(bootstrap(&values), Some((0.3, 0.7)));
        assert_eq!(bootstrap(&[2.0; 5]), Some((2.0, 2.0)));
        assert_eq!(bootstrap(&[1.0; 4]), None);
        assert_eq!(bootstrap(&[1.0, 2.0, 3.0, 4.0, f64::NAN]), None);
    }

    #[test]
    fn summary_of_a_known_sample() {
        let s = Summary::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((s.n, s.mean), (5, 3.0));
        assert!((s.std - 2.5_f64.sqrt()).abs() < 1e-12);
        assert!((s.half_width - 2.776_445 * (0.5_f64).sqrt()).abs() < 1e-4);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[7.0]).unwrap().mean, 7.0);
    }
}
