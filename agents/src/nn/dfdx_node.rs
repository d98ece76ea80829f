//! The [`Mlp`] as one node on dfdx's tape, so that any loss composed of dfdx operations can train it.
//!
//! dfdx sees the flat parameters as one tensor and the whole network as one operation; forward and backward run on our
//! kernels. Losses with a closed form need none of this.

use dfdx::prelude::{Cpu, CpuError, Gradients, HasShape, PutTape, SplitTape, Tape, Tensor, TensorFromVec};

use super::mlp::{Mlp, Trace};

/// A two-dimensional tensor with sizes known at run time.
pub type Rows<T> = Tensor<(usize, usize), f32, Cpu, T>;

/// The place of a network's parameters among dfdx's gradients.
///
/// ```
/// use dfdx::prelude::*;
/// use steadfast_agents::nn::{Activation, Adam, AdamConfig, Mlp, MlpNode};
/// let mut rng = steadfast_envs::SeedTree::new(0).child("network").rng();
/// let mut net = Mlp::new(2, &[16], 1, Activation::Tanh, 1.0, 1.0, &mut rng)?;
/// let mut adam = Adam::new(net.n_parameters(), AdamConfig::default());
/// let device = Cpu::default();
/// let x = device.tensor_from_vec(vec![0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], (4, 2));
/// let y = device.tensor_from_vec(vec![0.0, 1.0, 1.0, 0.0], (4, 1));
/// let node = MlpNode::new(&net, &device);
/// let mut first = None;
/// for _ in 0..300 {
///     let out = node.forward(&net, x.leaky_trace())?;
///     let loss = (out - y.clone()).square().mean::<Rank0, _>();
///     first.get_or_insert(loss.array());
///     let gradients = loss.backward();
///     adam.step(net.parameters_mut(), &node.gradient(&gradients), 0.01, 1.0);
/// }
/// let last = (node.forward(&net, x)? - y).square().mean::<Rank0, _>();
/// assert!(last.array() < 0.1 * first.unwrap());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MlpNode {
    /// Carries the identity and the length; its values are not used.
    parameters: Tensor<(usize,), f32, Cpu>,
    device: Cpu,
}

impl MlpNode {
    /// A node for `net` and every network of its number of parameters.
    pub fn new(net: &Mlp, device: &Cpu) -> Self {
        let n = net.n_parameters();
        Self { parameters: device.tensor_from_vec(vec![0.0; n], (n,)), device: device.clone() }
    }

    /// Outputs `[rows, output]` of `x` `[rows, input]`. The parameters receive a gradient, `x` does not.
    ///
    /// # Errors
    /// dfdx's, if memory runs out.
    ///
    /// # Panics
    /// If `x` does not have the network's input width, or `net` has another number of parameters than at [`MlpNode::new`].
    pub fn forward<T: Tape<f32, Cpu>>(&self, net: &Mlp, x: Rows<T>) -> Result<Rows<T>, CpuError> {
        self.apply(net, x, false)
    }

    /// [`MlpNode::forward`] with a gradient for `x` too, which costs about as much as the parameters'.
    ///
    /// # Errors
    /// dfdx's, if memory runs out.
    ///
    /// # Panics
    /// As [`MlpNode::forward`].
    pub fn forward_with_input_gradient<T: Tape<f32, Cpu>>(&self, net: &Mlp, x: Rows<T>) -> Result<Rows<T>, CpuError> {
        self.apply(net, x, true)
    }

    /// The gradient of the flat parameters, in the layout of [`Mlp::parameters`].
    ///
    /// # Panics
    /// If no loss that used this node was differentiated into `gradients`.
    pub fn gradient(&self, gradients: &Gradients<f32, Cpu>) -> Vec<f32> {
        gradients.get(&self.parameters).as_vec()
    }

    fn apply<T: Tape<f32, Cpu>>(&self, net: &Mlp, x: Rows<T>, wants_input_gradient: bool) -> Result<Rows<T>, CpuError> {
        let (n_parameters,) = *self.parameters.shape();
        assert_eq!(n_parameters, net.n_parameters(), "parameters of the network given to MlpNode");
        let (x, mut tape) = x.split_tape();
        let (rows, input) = *x.shape();
        assert_eq!(input, net.input(), "input width of the network given to MlpNode");
        let mut trace = Trace::default();
        net.forward_train(&x.as_vec(), rows, &mut trace);
        let out = self.device.try_tensor_from_vec(trace.output().to_vec(), (rows, net.output()))?;
        if T::OWNS_TAPE {
            let (net, parameters, result) = (net.clone(), self.parameters.clone(), out.clone());
            tape.add_backward_op(move |gradients| {
                let d_out = gradients.get_or_alloc_mut(&result)?.to_vec();
                net.backward(&mut trace, &d_out, Some(gradients.get_or_alloc_mut(&parameters)?), None);
                if wants_input_gradient {
                    let mut d_input = vec![0.0; rows * input];
                    net.backward(&mut trace, &d_out, None, Some(&mut d_input));
                    for (to, d) in gradients.get_or_alloc_mut(&x)?.iter_mut().zip(d_input) {
                        *to += d;
                    }
                }
                Ok(())
            });
        }
        Ok(out.put_tape(tape))
    }
}
