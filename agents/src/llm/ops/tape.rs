//! Between candle's tensors and plain slices.

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

/// The numbers of a contiguous `f32` storage.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => Err(Error::Msg("fused operations need contiguous f32 tensors on the CPU".into())),
    }
}

/// Hands the numbers of a contiguous `f32` tensor on the CPU to `f`.
pub(crate) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => Err(Error::Msg("fused operations need tensors on the CPU".into())),
    }
}
