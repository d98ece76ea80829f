//! The tape of the fused operations on the CPU: what was computed, over buffers that serve again from pass to pass.
//!
//! Candle's tape makes a fresh tensor for every result and every sum of gradients. Faulting in, filling and adding those took
//! a sixth of a training step; here a step allocates nothing once the buffers have found their sizes.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, Error, Layout, Result, Storage, Tensor};

/// A weight of an operation on the CPU: its values, and where its gradient is added up (nowhere if it is frozen).
#[derive(Clone)]
pub(crate) struct Weight {
    pub value: Arc<Vec<f32>>,
    pub gradient: Option<Arc<Mutex<Vec<f32>>>>,
}

impl Weight {
    /// The gradient's sums; nothing if the weight is frozen.
    pub fn sums(&self) -> Option<MutexGuard<'_, Vec<f32>>> {
        // Sums of a thread that panicked are as good as any: the step that reads them checks that they are finite.
        self.gradient.as_ref().map(|g| g.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Passes after which a buffer that nobody took is given back to the system.
const KEPT: u64 = 8;
/// Sizes are multiples of it.
const GRAIN: usize = 1024;

/// Buffers that wait to be used again.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    pass: u64,
    /// Pass in which each was used last.
    buffers: Vec<(u64, Vec<f32>)>,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_pass(&self) {
        let mut idle = self.idle();
        idle.pass += 1;
        let pass = idle.pass;
        idle.buffers.retain(|(used, _)| pass - used <= KEPT);
    }

    /// A buffer of `n` numbers that mean nothing.
    pub fn take(self: &Arc<Self>, n: usize) -> Buffer {
        let mut idle = self.idle();
        let fits = |length: usize| length >= n && length <= 2 * n + GRAIN;
        // Of equal ones the one that was used last, so that others grow old.
        let fitting = idle.buffers.iter().enumerate().rev().filter(|(_, (_, b))| fits(b.len()));
        let best = fitting.min_by_key(|(_, (_, b))| b.len()).map(|(i, _)| i);
        let data = match best {
            Some(i) => idle.buffers.remove(i).1,
            None => vec![0.0; n.next_multiple_of(GRAIN)],
        };
        Buffer { data, n, pool: self.clone() }
    }
}

/// Numbers in a buffer that goes back to its pool.
pub(crate) struct Buffer {
    data: Vec<f32>,
    n: usize,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[..self.n]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.n]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.pool.idle();
        let pass = idle.pass;
        idle.buffers.push((pass, std::mem::take(&mut self.data)));
    }
}

/// A result on the tape, `[token, width]`.
#[derive(Clone)]
pub(crate) struct Activations {
    id: usize,
    width: usize,
    values: Rc<Buffer>,
}

impl Activations {
    /// The numbers.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Numbers per token.
    pub fn width(&self) -> usize {
        self.width
    }
}

/// An operation with a gradient by its input; gradients by weights are added to their sums.
pub(crate) trait Operation {
    /// Numbers per token of the result.
    fn output_width(&self, input_width: usize) -> usize;

    /// `x`: `[token, input width]`; writes all of `y`: `[token, output width]`.
    fn forward(&self, x: &[f32], y: &mut [f32]);

    /// From the gradient by `y` to that by `x`, which is added to `x_grad` if `adds`, else written all over it.
    fn backward(&self, x: &[f32], y: &[f32], grad: &[f32], x_grad: &mut [f32], adds: bool);
}

struct Node {
    /// None for a sum of two inputs.
    operation: Option<Box<dyn Operation>>,
    inputs: Vec<Activations>,
    output: Activations,
}

/// The operations of one pass in their order.
pub(crate) struct Tape {
    pool: Arc<Pool>,
    n_results: RefCell<usize>,
    /// None if no gradient will be asked for: results then go back to the pool with their last user.
    nodes: Option<RefCell<Vec<Node>>>,
}

impl Tape {
    /// A tape for one pass.
    pub fn new(pool: &Arc<Pool>, is_recording: bool) -> Self {
        pool.begin_pass();
        Self { pool: pool.clone(), n_results: RefCell::new(0), nodes: is_recording.then(RefCell::default) }
    }

    fn result(&self, values: Buffer, width: usize) -> Activations {
        let mut n = self.n_results.borrow_mut();
        *n += 1;
        Activations { id: *n - 1, width, values: Rc::new(values) }
    }

    fn record(&self, operation: Option<Box<dyn Operation>>, inputs: &[&Activations], output: &Activations) {
        if let Some(nodes) = &self.nodes {
            let inputs = inputs.iter().copied().cloned().collect();
            nodes.borrow_mut().push(Node { operation, inputs, output: output.clone() });
        }
    }

    /// Room for numbers that mean nothing yet.
    pub fn buffer(&self, n: usize) -> Buffer {
        self.pool.take(n)
    }

    /// Puts numbers on the tape.
    pub fn input(&self, values: Buffer, width: usize) -> Activations {
        self.result(values, width)
    }

    /// Applies an operation.
    pub fn apply(&self, operation: impl Operation + 'static, x: &Activations) -> Activations {
        let width = operation.output_width(x.width);
        let mut y = self.pool.take(x.values.len() / x.width * width);
        operation.forward(&x.values, &mut y);
        let y = self.result(y, width);
        self.record(Some(Box::new(operation)), &[x], &y);
        y
    }

    /// `x + added`.
    pub fn add(&self, mut x: Activations, added: &Activations) -> Activations {
        let sum = |y: &mut [f32], x: &[f32]| y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
        if self.nodes.is_none()
            && let Some(values) = Rc::get_mut(&mut x.values)
        {
            sum(values, &added.values);
            return x;
        }
        let mut y = self.pool.take(x.values.len());
        y.iter_mut().zip(x.values.iter().zip(added.values.iter())).for_each(|(y, (x, a))| *y = x + a);
        let y = self.result(y, x.width);
        self.record(None, &[&x, added], &y);
        y
    }

    /// Goes back from the gradient by `of` to that by `input`; weights get theirs on the way.
    pub fn backward(self, of: &Activations, grad: Buffer, input: &Activations) -> Rc<Buffer> {
        let mut grads: Vec<Option<Rc<Buffer>>> = Vec::new();
        grads.resize_with(*self.n_results.borrow(), || None);
        grads[of.id] = Some(Rc::new(grad));
        let mut nodes = self.nodes.map(RefCell::into_inner).unwrap_or_default();
        while let Some(node) = nodes.pop() {
            let Some(grad) = grads[node.output.id].take() else { continue };
            let Some(operation) = &node.operation else {
                for x in &node.inputs {
                    grads[x.id] = Some(match grads[x.id].take() {
                        // Both inputs of a sum have its gradient; it is copied only if one of them gets more.
                        None => grad.clone(),
                        Some(sum) => {
                            let mut sum = own(sum, &self.pool);
                            sum.iter_mut().zip(grad.iter()).for_each(|(sum, g)| *sum += g);
                            Rc::new(sum)
                        }
                    });
                }
                continue;
            };
            let x = &node.inputs[0];
            let (mut x_grad, adds) = match grads[x.id].take() {
                Some(sum) => (own(sum, &self.pool), true),
                None => (self.pool.take(x.values.len()), false),
            };
            operation.backward(&x.values, &node.output.values, &grad, &mut x_grad, adds);
            grads[x.id] = Some(Rc::new(x_grad));
        }
        grads[input.id].take().unwrap_or_else(|| {
            let mut zeros = self.pool.take(input.values.len());
            zeros.fill(0.0);
            Rc::new(zeros)
        })
    }
}

/// A buffer that nobody else sees.
fn own(buffer: Rc<Buffer>, pool: &Arc<Pool>) -> Buffer {
    Rc::try_unwrap(buffer).unwrap_or_else(|shared| {
        let mut copy = pool.take(shared.len());
        copy.copy_from_slice(&shared);
        copy
    })
}

/// The numbers of a contiguous `f32` storage.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => Err(Error::Msg("expected a contiguous f32 tensor".into())),
    }
}

/// Hands the numbers of an `f32` tensor on the CPU to `f`.
pub(crate) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => Err(Error::Msg("expected a tensor on the CPU".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y = factor x`, with the factor as its weight.
    struct Scale(Weight);

    impl Operation for Scale {
        fn output_width(&self, input_width: usize) -> usize {
            input_width
        }
        fn forward(&self, x: &[f32], y: &mut [f32]) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = self.0.value[0] * x);
        }
        fn backward(&self, x: &[f32], _: &[f32], grad: &[f32], x_grad: &mut [f32], adds: bool) {
            for ((out, g), x) in x_grad.iter_mut().zip(grad).zip(x) {
                *out = if adds { *out } else { 0.0 } + self.0.value[0] * g;
                self.0.sums().expect("it is trained")[0] += g * x;
            }
        }
    }

    fn weight(value: f32) -> Weight {
        Weight { value: Arc::new(vec![value]), gradient: Some(Arc::new(Mutex::new(vec![0.0]))) }
    }

    fn input(tape: &Tape, values: &[f32]) -> Activations {
        let mut buffer = tape.buffer(values.len());
        buffer.copy_from_slice(values);
        tape.input(buffer, 1)
    }

    #[test]
    fn gradients_of_forks_and_sums_are_those_by_hand() {
        let pool = Arc::new(Pool::default());
        let (a, b) = (weight(3.0), weight(5.0));
        let tape = Tape::new(&pool, true);
        let x = input(&tape, &[2.0, -1.0]);
        // y = x + a x; z = y + b y = (1 + a)(1 + b) x.
        let y = tape.add(x.clone(), &tape.apply(Scale(a.clone()), &x));
        let z = tape.add(y.clone(), &tape.apply(Scale(b.clone()), &y));
        assert_eq!(z.values(), [48.0, -24.0]);
        let mut grad = tape.buffer(2);
        grad.copy_from_slice(&[1.0, 10.0]);
        let found = tape.backward(&z, grad, &x);
        assert_eq!(**found, [24.0, 240.0]);
        // d/da = Σ g (1 + b) x, d/db = Σ g (1 + a) x.
        assert_eq!((a.sums().unwrap()[0], b.sums().unwrap()[0]), (-48.0, -32.0));
    }

    #[test]
    fn buffers_serve_again_and_old_ones_are_given_back() {
        let pool = Arc::new(Pool::default());
        let pass = |n: usize, is_recording: bool| {
            let tape = Tape::new(&pool, is_recording);
            let x = input(&tape, &vec![1.0; n]);
            let y = tape.apply(Scale(weight(2.0)), &x);
            let z = tape.add(y, &x);
            assert!(z.values().iter().all(|&z| z == 3.0));
        };
        (0..3).for_each(|_| pass(5000, true));
        assert_eq!(pool.idle().buffers.len(), 3);
        // Without recording, the sum takes the place of its first part.
        (0..=KEPT).for_each(|_| pass(5000, false));
        assert_eq!(pool.idle().buffers.len(), 2);
        (0..=KEPT).for_each(|_| pass(10, false));
        assert!(pool.idle().buffers.iter().all(|(_, b)| b.len() == GRAIN));
    }
}
