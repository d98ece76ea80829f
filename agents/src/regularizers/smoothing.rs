//! A regulariser at work in a learner: its units, its share of the gradient, what is logged of it.

use steadfast_envs::{Rng, RolloutBatch};

use super::lipschitz::Scale;
use super::spectral::UpperBound;
use super::{Observed, PenaltyGradients, Regularizer, RegularizerConfig};
use crate::AgentError;
use crate::head::{Distance, PolicyHead};
use crate::learner::Metrics;
use crate::nn::{Mlp, Trace, squared_norm};
use crate::state_dict::StateDict;
use crate::team::SharedInput;

/// Samples on which the Lipschitz constant is bounded.
const PROBE_ROWS: usize = 256;

/// The regulariser of one network.
pub(crate) struct Smoothing {
    regularizer: Box<dyn Regularizer>,
    /// Size of one unit of perturbation in each observed feature, in network input units.
    unit: Vec<f32>,
    upper_bound: UpperBound,
    plain_gradient: Vec<f32>,
    probe_inputs: Vec<f32>,
}

/// Sums over the minibatches of an update.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SmoothingSums {
    penalties: f64,
    penalty: f64,
    relative_norm: f64,
    gradient_ratios: f64,
    gradient_ratio: f64,
    interaction_shares: f64,
    interaction_share: f64,
}

/// A network with what its last forward pass left, whose backward pass is to be finished.
pub(crate) struct Backward<'a> {
    pub(crate) net: &'a Mlp,
    pub(crate) trace: &'a mut Trace,
    pub(crate) head: &'a PolicyHead,
    /// `[rows, input]`.
    pub(crate) inputs: &'a [f32],
    /// Rows of one moment, as in [`Observed::members`].
    pub(crate) members: usize,
    /// Largest size of an input, if inputs are clamped.
    pub(crate) limit: Option<f32>,
    /// `[rows, output]`: derivative of the algorithm's loss; the penalty's part is added.
    pub(crate) d_output: &'a mut [f32],
    /// Flat, with respect to the weights; what it holds is kept.
    pub(crate) gradient: &'a mut [f32],
    /// With respect to the logarithms of the deviations; empty if there are none.
    pub(crate) log_std_gradient: &'a mut [f32],
}

impl Smoothing {
    /// For a network with these outputs.
    ///
    /// # Errors
    /// [`AgentError::Config`] if a divergence of distributions is asked for and the outputs stand for none.
    pub(crate) fn new(config: &RegularizerConfig, head: &PolicyHead, rng: Rng) -> Result<Self, AgentError> {
        if config.distance() == Some(Distance::Kl) && !head.has_distribution() {
            return Err(AgentError::Config {
                field: format!("regularizer.{}.distance", config.name()),
                expected: "\"l2\": the outputs of this learner's networks are no distribution".into(),
                got: "\"kl\"".into(),
            });
        }
        Ok(Self {
            regularizer: config.build(rng),
            unit: Vec::new(),
            upper_bound: UpperBound::default(),
            plain_gradient: Vec::new(),
            probe_inputs: Vec::new(),
        })
    }

    /// The regulariser itself.
    pub(crate) fn regularizer(&self) -> &dyn Regularizer {
        self.regularizer.as_ref()
    }

    /// Whether the statistics of observations are needed although inputs are not normalised.
    fn tracks_deviation(&self) -> bool {
        self.regularizer.scale() == Scale::RunningStd
    }

    /// Takes the units of perturbations from the statistics of observations.
    pub(crate) fn measure_units(&mut self, input: &SharedInput) {
        input.units(self.regularizer.scale(), &mut self.unit);
    }

    /// Adds the penalty times `weight`, above 0, to the loss and finishes the backward pass. With `measures` the size of its gradient is
    /// compared with that of the loss.
    ///
    /// # Errors
    /// What the regulariser reports.
    fn backward(&mut self, pass: Backward<'_>, weight: f64, measures: bool, sums: &mut SmoothingSums) -> Result<f64, AgentError> {
        let Backward { net, trace, head, inputs, members, limit, d_output, gradient, log_std_gradient } = pass;
        if measures {
            self.plain_gradient.clear();
            self.plain_gradient.extend_from_slice(gradient);
            net.backward(trace, d_output, Some(&mut self.plain_gradient), None);
        }
        let rows = trace.rows();
        let observed = Observed { rows, members, inputs, unit: &self.unit, limit, outputs: trace.output(), head };
        let mut gradients = PenaltyGradients { outputs: &mut *d_output, weights: &mut *gradient, log_std: log_std_gradient };
        let penalty = self.regularizer.penalty(net, &observed, weight, &mut gradients)?;
        net.backward(trace, d_output, Some(gradient), None);
        sums.penalties += 1.0;
        sums.penalty += penalty.value;
        sums.relative_norm += penalty.relative_norm;
        if measures {
            let plain = squared_norm(&self.plain_gradient).sqrt();
            self.plain_gradient.iter_mut().zip(&*gradient).for_each(|(p, g)| *p = g - *p);
            let own = squared_norm(&self.plain_gradient).sqrt();
            if plain > 0.0 {
                sums.gradient_ratios += 1.0;
                sums.gradient_ratio += own / plain;
            }
            if let Some(interaction) = self.regularizer.interaction()
                && own > 0.0
            {
                self.plain_gradient.copy_from_slice(interaction.weights);
                net.backward(trace, interaction.outputs, Some(&mut self.plain_gradient), None);
                sums.interaction_shares += 1.0;
                sums.interaction_share += f64::from(interaction.factor) * squared_norm(&self.plain_gradient).sqrt() / own;
            }
        }
        Ok(penalty.value)
    }

    /// Changes the network after a step of the optimiser.
    pub(crate) fn constrain(&mut self, net: &mut Mlp) {
        self.regularizer.constrain(net);
    }

    /// A lower bound of the network's Lipschitz constant on samples from all over `inputs` `[rows, input]`, and an upper bound
    /// anywhere, if they are due in update `update`, counted from 1.
    pub(crate) fn probe(
        &mut self,
        update: u64,
        net: &Mlp,
        trace: &mut Trace,
        head: &PolicyHead,
        inputs: &[f32],
        limit: Option<f32>,
    ) -> Option<[f64; 2]> {
        let every = self.regularizer.probe_every() as u64;
        if every == 0 || !(update - 1).is_multiple_of(every) {
            return None;
        }
        let width = net.input();
        let samples = inputs.len() / width;
        self.probe_inputs.clear();
        for sample in (0..samples).step_by(samples.div_ceil(PROBE_ROWS).max(1)) {
            self.probe_inputs.extend_from_slice(&inputs[sample * width..(sample + 1) * width]);
        }
        let rows = self.probe_inputs.len() / width;
        net.forward_train(&self.probe_inputs, rows, trace);
        let observed = Observed { rows, members: 1, inputs: &self.probe_inputs, unit: &self.unit, limit, outputs: trace.output(), head };
        let lower = self.regularizer.lipschitz_lower_bound(net, &observed);
        Some([lower, self.upper_bound.of(net, &self.unit)])
    }

    /// Saves what the next penalty depends on.
    pub(crate) fn save(&self, prefix: &str, state: &mut StateDict) {
        self.regularizer.save(prefix, state);
    }

    /// Restores what [`Smoothing::save`] saved.
    ///
    /// # Errors
    /// [`AgentError`] naming the array that does not fit.
    pub(crate) fn load(&mut self, prefix: &str, state: &StateDict) -> Result<(), AgentError> {
        self.regularizer.load(prefix, state)
    }
}

/// Takes the bounds of one more network into those of all, of which the most sensitive one counts.
pub(crate) fn widen(all: &mut Option<[f64; 2]>, bounds: Option<[f64; 2]>) {
    if let Some(bounds) = bounds {
        let other = all.unwrap_or(bounds);
        *all = Some([other[0].max(bounds[0]), other[1].max(bounds[1])]);
    }
}

/// Finishes a backward pass with the penalty of a regulariser, if there is one and its `weight` is above 0; returns the penalty before the
/// weight. See [`Smoothing::backward`].
///
/// # Errors
/// What the regulariser reports.
pub(crate) fn backward(
    smoothing: Option<&mut Smoothing>,
    pass: Backward<'_>,
    weight: f64,
    measures: bool,
    sums: &mut SmoothingSums,
) -> Result<f64, AgentError> {
    match smoothing {
        Some(smoothing) if weight > 0.0 => smoothing.backward(pass, weight, measures, sums),
        _ => {
            pass.net.backward(pass.trace, pass.d_output, Some(pass.gradient), None);
            Ok(0.0)
        }
    }
}

/// Weight of a regulariser at a point of the run; 0 if there is none.
pub(crate) fn weight_of(smoothing: Option<&Smoothing>, progress: f64) -> f64 {
    smoothing.map_or(0.0, |s| s.regularizer().weight(progress))
}

/// Takes the observations of a batch into the statistics of those who share a network, if inputs are normalised by them or the
/// regulariser measures in them; `room` is overwritten.
pub(crate) fn observe(input: &mut SharedInput, smoothing: Option<&Smoothing>, batch: &RolloutBatch, room: &mut Vec<f32>) {
    if input.normalizes || smoothing.is_some_and(Smoothing::tracks_deviation) {
        let steps = &batch.observations[..batch.n_steps * batch.observation_row()];
        input.observe(steps, batch.n_agents, batch.observation_width, room);
    }
}

impl SmoothingSums {
    /// Adds those of another network.
    pub(crate) fn add(&mut self, other: &Self) {
        self.penalties += other.penalties;
        self.penalty += other.penalty;
        self.relative_norm += other.relative_norm;
        self.gradient_ratios += other.gradient_ratios;
        self.gradient_ratio += other.gradient_ratio;
        self.interaction_shares += other.interaction_shares;
        self.interaction_share += other.interaction_share;
    }

    /// Logs the means, with the weight of now and the last bounds of the Lipschitz constant.
    pub(crate) fn log(&self, weight: f64, lipschitz: Option<[f64; 2]>, metrics: &mut Metrics) {
        metrics.push("ernie/weight", weight);
        if self.penalties > 0.0 {
            metrics.push("ernie/penalty", self.penalty / self.penalties);
            metrics.push("ernie/perturbation_over_radius", self.relative_norm / self.penalties);
        }
        if self.gradient_ratios > 0.0 {
            metrics.push("ernie/gradient_ratio", self.gradient_ratio / self.gradient_ratios);
        }
        if self.interaction_shares > 0.0 {
            metrics.push("ernie/interaction_share", self.interaction_share / self.interaction_shares);
        }
        if let Some([lower, upper]) = lipschitz {
            metrics.push("ernie/lipschitz_lower_bound", lower);
            metrics.push("ernie/lipschitz_upper_bound", upper);
        }
    }
}
