//! The place where a gradient that was computed outside the tape enters it.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct Surrogate(Tensor);

/// A scalar whose derivative by `x` is `grad`. Its value, 0, means nothing.
pub(crate) fn surrogate(x: &Tensor, grad: Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op1(Surrogate(grad)) } else { (x * grad)?.sum_all() }
}

impl CustomOp1 for Surrogate {
    fn name(&self) -> &'static str {
        "surrogate"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
