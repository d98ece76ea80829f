//! ERNIE's Lipschitz regulariser and its Gaussian baseline.
//!
//! For an observation `o` and network outputs `f(o)` the penalty is
//!
//! ```text
//! R(o) = max over ‖u‖ ≤ radius of D( f(o + s·u), f(o) )
//! ```
//!
//! with `s` the unit of each feature, and the loss of the algorithm grows by `weight · mean R`. The maximum is sought by
//! projected gradient ascent from a small random start, in the coordinates `u`:
//! `u ← Π( u + step_size · g / ‖g‖ )` for the l2 ball and `u ← Π( u + step_size · sign g )` for the l∞ ball. With one
//! step of the length of the radius this solves the linearised problem. The start must not be 0, where every distance
//! has gradient 0.
//!
//! Source: Bukharin et al., "Robust Multi-Agent Reinforcement Learning via Adversarial Regularization", NeurIPS 2023
//! (arXiv 2310.10810). Departures from the released code: the perturbation is projected onto a real ball (the release
//! clamps gradients), the distance is taken per sample and averaged (the release takes one norm over the batch, so that
//! its weight depends on the batch size), and the ascent direction is normalised.
//!
//! Features behind the observation, such as an agent index, are never perturbed.
//!
//! Logged: `ernie/penalty` (mean of R before the weight), `ernie/weight`, `ernie/perturbation_over_radius`,
//! `ernie/gradient_ratio` (norm of the weighted penalty's gradient with respect to the weights over that of the
//! algorithm's loss, in the first minibatch of an update, averaged over groups) and `ernie/lipschitz_lower_bound` (the last
//! one measured).

use serde::{Deserialize, Serialize};
use steadfast_envs::{Rng, SnapshotReader, SnapshotWriter};

use super::{Observed, Penalty, PenaltyGradients, Regularizer};
use crate::head::Distance;
use crate::nn::{Mlp, Trace};
use crate::{AgentError, StateDict};

/// The ball that holds a perturbation, per sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Euclidean length.
    L2,
    /// Largest coordinate.
    Linf,
}

/// The unit in which a perturbation is measured, feature by feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The environment's own units.
    Absolute,
    /// The running standard deviation of each feature; one that never varies is not perturbed.
    RunningStd,
}

/// Which of the two outputs the penalty trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradient {
    /// Both; the perturbation itself counts as a constant (ERNIE without Stackelberg).
    Detached,
    /// Only the perturbed one, which is pulled to the clean one.
    TargetClean,
}

/// Settings of the adversarial penalty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LipschitzConfig {
    /// Weight of the penalty (the paper's λ), at least 0. With 0 the run equals the unregularised one bit for bit.
    pub weight: f64,
    /// Fraction of the run over which the weight grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
    /// Radius of the ball (the paper's ε), at least 0, in the units of `scale`.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Units of the perturbation: `absolute` or `running_std`.
    pub scale: Scale,
    /// Ascent steps K, 0 to 1000.
    pub steps: usize,
    /// Length of an ascent step in the units of the radius, above 0; the radius for one step, else 2 radius / steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<f64>,
    /// Standard deviation of the perturbation from which the ascent starts, in the units of `scale`, above 0.
    pub initial_std: f64,
    /// Distance of outputs: `kl` or `l2`.
    pub distance: Distance,
    /// What the penalty trains: `detached` or `target_clean`.
    pub gradient: Gradient,
    /// The Lipschitz constant is bounded from below every so many updates; 0 means never.
    pub probe_every: usize,
}

impl Default for LipschitzConfig {
    fn default() -> Self {
        Self {
            weight: 0.1,
            // Early policies are nearly uniform, so their divergence says nothing yet about a good weight.
            warmup_fraction: 0.1,
            radius: 0.1,
            norm: Norm::L2,
            scale: Scale::RunningStd,
            steps: 1,
            step_size: None,
            initial_std: 1e-3,
            distance: Distance::Kl,
            gradient: Gradient::Detached,
            probe_every: 10,
        }
    }
}

impl LipschitzConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        check_ball(self.weight, self.warmup_fraction, self.radius)?;
        if self.steps > 1000 {
            return Err(out_of_range("steps", "between 0 and 1000", self.steps.to_string()));
        }
        if let Some(size) = self.step_size
            && !(size.is_finite() && size > 0.0)
        {
            return Err(out_of_range("step_size", "a finite number above 0", size.to_string()));
        }
        if !(self.initial_std.is_finite() && self.initial_std > 0.0) {
            return Err(out_of_range(
                "initial_std",
                "a finite number above 0: at zero the ascent has no direction",
                self.initial_std.to_string(),
            ));
        }
        Ok(())
    }
}

/// Settings of the penalty at a random perturbation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GaussianConfig {
    /// Weight of the penalty, at least 0.
    pub weight: f64,
    /// Fraction of the run over which the weight grows linearly from 0, 0 to 1.
    pub warmup_fraction: f64,
    /// Radius of the ball onto which a standard normal draw is projected, at least 0, in the units of `scale`.
    pub radius: f64,
    /// The ball: `l2` or `linf`.
    pub norm: Norm,
    /// Units of the perturbation: `absolute` or `running_std`.
    pub scale: Scale,
    /// Distance of outputs: `kl` or `l2`.
    pub distance: Distance,
    /// What the penalty trains: `detached` or `target_clean`.
    pub gradient: Gradient,
    /// The Lipschitz constant is bounded from below every so many updates; 0 means never.
    pub probe_every: usize,
}

impl Default for GaussianConfig {
    fn default() -> Self {
        let adversarial = LipschitzConfig::default();
        Self {
            weight: adversarial.weight,
            warmup_fraction: adversarial.warmup_fraction,
            radius: adversarial.radius,
            norm: adversarial.norm,
            scale: adversarial.scale,
            distance: adversarial.distance,
            gradient: adversarial.gradient,
            probe_every: adversarial.probe_every,
        }
    }
}

impl GaussianConfig {
    /// Checks the ranges given with the fields.
    ///
    /// # Errors
    /// [`AgentError::Config`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), AgentError> {
        check_ball(self.weight, self.warmup_fraction, self.radius)
    }
}

fn check_ball(weight: f64, warmup_fraction: f64, radius: f64) -> Result<(), AgentError> {
    if !(weight.is_finite() && weight >= 0.0) {
        return Err(out_of_range("weight", "a finite number of at least 0", weight.to_string()));
    }
    if !(0.0..=1.0).contains(&warmup_fraction) {
        return Err(out_of_range("warmup_fraction", "between 0 and 1", warmup_fraction.to_string()));
    }
    if !(radius.is_finite() && radius >= 0.0) {
        return Err(out_of_range("radius", "a finite number of at least 0", radius.to_string()));
    }
    Ok(())
}

fn out_of_range(field: &'static str, expected: &str, got: String) -> AgentError {
    AgentError::Config { field: field.into(), expected: expected.to_string(), got }
}

/// How perturbations are found.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Search {
    /// Projected ascent.
    Ascent { steps: usize, step_size: f32, initial_std: f32 },
    /// One projected draw.
    Draw,
}

/// The penalty at an adversarial or random perturbation.
pub struct LipschitzRegularizer {
    weight: f64,
    warmup_fraction: f64,
    radius: f32,
    norm: Norm,
    scale: Scale,
    search: Search,
    distance: Distance,
    gradient: Gradient,
    probe_every: usize,
    rng: Rng,
    /// Standard normals from which the starts of ascents are cut at random places: a start only has to point somewhere,
    /// and a fresh draw per feature would cost as much as the ascent step.
    starts: Vec<f32>,
    starts_seed: u64,
    // Room for one minibatch, kept from call to call.
    perturbed: Vec<f32>,
    offset: Vec<f32>,
    d_output: Vec<f32>,
    d_input: Vec<f32>,
    value: Vec<f32>,
    trace: Trace,
}

impl LipschitzRegularizer {
    /// The adversarial penalty.
    pub fn adversarial(config: &LipschitzConfig, mut rng: Rng) -> Self {
        let starts_seed = rng.next_u64();
        let radius = config.radius as f32;
        let automatic = if config.steps <= 1 { config.radius } else { 2.0 * config.radius / config.steps as f64 };
        let step_size = config.step_size.unwrap_or(automatic) as f32;
        let search = Search::Ascent { steps: config.steps, step_size, initial_std: config.initial_std as f32 };
        Self {
            weight: config.weight,
            warmup_fraction: config.warmup_fraction,
            radius,
            norm: config.norm,
            scale: config.scale,
            search,
            distance: config.distance,
            gradient: config.gradient,
            probe_every: config.probe_every,
            rng,
            starts: draw_starts(starts_seed),
            starts_seed,
            perturbed: Vec::new(),
            offset: Vec::new(),
            d_output: Vec::new(),
            d_input: Vec::new(),
            value: Vec::new(),
            trace: Trace::default(),
        }
    }

    /// The penalty at a random perturbation.
    pub fn gaussian(config: &GaussianConfig, rng: Rng) -> Self {
        let ball = LipschitzConfig {
            weight: config.weight,
            warmup_fraction: config.warmup_fraction,
            radius: config.radius,
            norm: config.norm,
            scale: config.scale,
            distance: config.distance,
            gradient: config.gradient,
            probe_every: config.probe_every,
            ..LipschitzConfig::default()
        };
        Self { search: Search::Draw, ..Self::adversarial(&ball, rng) }
    }

    /// Finds a perturbation for each row and leaves `offset` (in scaled coordinates, `[rows, features]`), `perturbed`
    /// (inputs) and `trace` (of the network at the perturbed inputs) for it.
    fn attack(&mut self, net: &Mlp, observed: &Observed<'_>, search: Search, distance: Distance) {
        let (rows, width, features) = (observed.rows, net.input(), observed.unit.len());
        self.offset.resize(rows * features, 0.0);
        self.perturbed.resize(rows * width, 0.0);
        self.perturbed.copy_from_slice(&observed.inputs[..rows * width]);
        self.d_output.resize(rows * net.output(), 0.0);
        self.d_input.resize(rows * width, 0.0);
        self.value.resize(rows, 0.0);
        let (std, steps, step_size) = match search {
            Search::Ascent { steps, step_size, initial_std } => (initial_std, steps, step_size),
            Search::Draw => (1.0, 0, 0.0),
        };
        for u in self.offset.chunks_exact_mut(features) {
            if steps > 0 && features < N_STARTS {
                let first = self.rng.below(N_STARTS - features);
                for (v, start) in u.iter_mut().zip(&self.starts[first..]) {
                    *v = std * start;
                }
            } else {
                u.iter_mut().for_each(|v| *v = std * self.rng.normal_f32());
            }
            project(u, self.norm, self.radius);
        }
        self.place(observed, width, features);
        net.forward_train(&self.perturbed, rows, &mut self.trace);
        for _ in 0..steps {
            self.d_output.fill(0.0);
            observed.head.divergence(
                distance,
                self.trace.output(),
                observed.outputs,
                rows,
                1.0,
                &mut self.value,
                Some(&mut self.d_output),
                None,
                None,
            );
            net.backward(&mut self.trace, &self.d_output, None, Some(&mut self.d_input));
            for (u, g) in self.offset.chunks_exact_mut(features).zip(self.d_input.chunks_exact(width)) {
                ascend(u, g, observed.unit, self.norm, step_size);
                project(u, self.norm, self.radius);
            }
            self.place(observed, width, features);
            net.forward_train(&self.perturbed, rows, &mut self.trace);
        }
    }

    /// `perturbed = inputs + unit · offset` on the perturbable features, clamped as the network's inputs are.
    fn place(&mut self, observed: &Observed<'_>, width: usize, features: usize) {
        for ((x, clean), u) in
            self.perturbed.chunks_exact_mut(width).zip(observed.inputs.chunks_exact(width)).zip(self.offset.chunks_exact(features))
        {
            for i in 0..features {
                x[i] = clean[i] + observed.unit[i] * u[i];
            }
            if let Some(limit) = observed.limit {
                x[..features].iter_mut().for_each(|v| *v = v.clamp(-limit, limit));
            }
        }
    }

    /// Mean length of the perturbations over the radius.
    fn relative_norm(&self, rows: usize, features: usize) -> f64 {
        if self.radius == 0.0 || rows == 0 {
            return 0.0;
        }
        let total: f64 = self.offset[..rows * features].chunks_exact(features).map(|u| f64::from(length(u, self.norm))).sum();
        total / rows as f64 / f64::from(self.radius)
    }
}

impl Regularizer for LipschitzRegularizer {
    fn weight(&self, progress: f64) -> f64 {
        if self.warmup_fraction > 0.0 { self.weight * (progress / self.warmup_fraction).min(1.0) } else { self.weight }
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn penalty(
        &mut self,
        net: &Mlp,
        observed: &Observed<'_>,
        weight: f64,
        gradients: &mut PenaltyGradients<'_>,
    ) -> Result<Penalty, AgentError> {
        self.attack(net, observed, self.search, self.distance);
        let rows = observed.rows;
        self.d_output.fill(0.0);
        // The deviations belong to both outputs; with the clean one as a fixed target their two parts cancel.
        let (d_clean, d_log_std) = match self.gradient {
            Gradient::Detached => (Some(&mut *gradients.outputs), Some(&mut *gradients.log_std)),
            Gradient::TargetClean => (None, None),
        };
        observed.head.divergence(
            self.distance,
            self.trace.output(),
            observed.outputs,
            rows,
            (weight / rows as f64) as f32,
            &mut self.value,
            Some(&mut self.d_output),
            d_clean,
            d_log_std,
        );
        net.backward(&mut self.trace, &self.d_output, Some(&mut *gradients.weights), None);
        let total: f64 = self.value[..rows].iter().map(|v| f64::from(*v)).sum();
        Ok(Penalty { value: total / rows as f64, relative_norm: self.relative_norm(rows, observed.unit.len()) })
    }

    fn probe_every(&self) -> usize {
        self.probe_every
    }

    fn lipschitz_lower_bound(&mut self, net: &Mlp, observed: &Observed<'_>) -> f64 {
        if self.radius == 0.0 || observed.rows == 0 {
            return 0.0;
        }
        // Ten normalised steps find the top singular direction of a network that is nearly linear in the ball. A copy of
        // the generator keeps the draws of training independent of how often the bound is asked for.
        let rng = self.rng.clone();
        let norm = std::mem::replace(&mut self.norm, Norm::L2);
        let search = Search::Ascent { steps: 10, step_size: 0.4 * self.radius, initial_std: 0.1 * self.radius };
        self.attack(net, observed, search, Distance::L2);
        (self.norm, self.rng) = (norm, rng);
        let (outputs, width, features) = (net.output(), net.input(), observed.unit.len());
        let moved = self.perturbed.chunks_exact(width).zip(observed.inputs.chunks_exact(width));
        let changed = self.trace.output().chunks_exact(outputs).zip(observed.outputs.chunks_exact(outputs));
        moved
            .zip(changed)
            .map(|((x, clean), (f, before))| {
                let change: f64 = f.iter().zip(before).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                // The step that rounding and clamping left, not the one that was asked for.
                let step = |i: usize| f64::from(x[i] - clean[i]) / f64::from(observed.unit[i]);
                let size: f64 = (0..features).filter(|&i| observed.unit[i] > 0.0).map(|i| step(i).powi(2)).sum();
                if size > 0.0 { (change / size).sqrt() } else { 0.0 }
            })
            .fold(0.0, f64::max)
    }

    fn save(&self, prefix: &str, state: &mut StateDict) {
        let mut words = SnapshotWriter::default();
        self.rng.snapshot(&mut words);
        state.put_u64(format!("{prefix}rng"), &words.into_words());
        state.put_u64(format!("{prefix}starts_seed"), &[self.starts_seed]);
    }

    fn load(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        let words = state.u64(&format!("{prefix}rng"))?;
        let mut words = SnapshotReader::new("regulariser", words);
        self.rng = Rng::restore(&mut words)?;
        words.finish()?;
        self.starts_seed = state.counter(&format!("{prefix}starts_seed"))?;
        self.starts = draw_starts(self.starts_seed);
        Ok(())
    }
}

/// Numbers in [`LipschitzRegularizer::starts`].
const N_STARTS: usize = 1 << 14;

fn draw_starts(seed: u64) -> Vec<f32> {
    let mut rng = Rng::from_seed(seed);
    (0..N_STARTS).map(|_| rng.normal_f32()).collect()
}

/// `Σ (aᵢ bᵢ)²` in eight interleaved sums: a fixed order that vectorises.
fn weighted_squares(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (mut left, mut right) = (a.chunks_exact(8), b.chunks_exact(8));
    for (x, y) in (&mut left).zip(&mut right) {
        for i in 0..8 {
            sums[i] += (x[i] * y[i]) * (x[i] * y[i]);
        }
    }
    for (i, (x, y)) in left.remainder().iter().zip(right.remainder()).enumerate() {
        sums[i] += (x * y) * (x * y);
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// `Σ aᵢ²` in the same order.
fn squares(a: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let mut blocks = a.chunks_exact(8);
    for x in &mut blocks {
        for i in 0..8 {
            sums[i] += x[i] * x[i];
        }
    }
    for (i, x) in blocks.remainder().iter().enumerate() {
        sums[i] += x * x;
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// Length of a perturbation.
fn length(u: &[f32], norm: Norm) -> f32 {
    match norm {
        Norm::L2 => squares(u).sqrt(),
        Norm::Linf => u.iter().fold(0.0, |m, v| m.max(v.abs())),
    }
}

/// Brings a perturbation back into the ball.
fn project(u: &mut [f32], norm: Norm, radius: f32) {
    match norm {
        Norm::L2 => {
            let length = length(u, norm);
            if length > radius {
                let factor = radius / length;
                u.iter_mut().for_each(|v| *v *= factor);
            }
        }
        Norm::Linf => u.iter_mut().for_each(|v| *v = v.clamp(-radius, radius)),
    }
}

/// One ascent step in scaled coordinates; `gradient` is with respect to the inputs.
fn ascend(u: &mut [f32], gradient: &[f32], unit: &[f32], norm: Norm, step_size: f32) {
    match norm {
        Norm::L2 => {
            let square = weighted_squares(&gradient[..unit.len()], unit);
            // A network that does not react has no direction to ascend; squares of tiny gradients underflow to 0.
            if square > 0.0 {
                let factor = step_size / square.sqrt();
                for ((v, g), s) in u.iter_mut().zip(gradient).zip(unit) {
                    *v += factor * g * s;
                }
            }
        }
        Norm::Linf => {
            for ((v, g), s) in u.iter_mut().zip(gradient).zip(unit) {
                let slope = g * s;
                if slope != 0.0 {
                    *v += step_size * slope.signum();
                }
            }
        }
    }
}
