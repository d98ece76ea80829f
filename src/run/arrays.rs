//! Named arrays in safetensors files.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use steadfast_agents::{Array, StateDict};

/// The arrays as the bytes of a safetensors file.
///
/// # Errors
/// The reason as text; arrays whose shape and length disagree cannot be written.
pub fn to_bytes(state: &StateDict) -> Result<Vec<u8>, String> {
    let raw: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = state
        .arrays
        .iter()
        .map(|(name, array)| match array {
            Array::F32(shape, v) => (name, Dtype::F32, shape.clone(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Array::F64(shape, v) => (name, Dtype::F64, shape.clone(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Array::U64(v) => (name, Dtype::U64, vec![v.len()], v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        })
        .collect();
    let mut views = Vec::new();
    for (name, dtype, shape, bytes) in &raw {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| format!("array `{name}`: {e}"))?));
    }
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}

/// Reads what [`to_bytes`] wrote.
///
/// # Errors
/// The reason as text.
pub fn from_bytes(bytes: &[u8]) -> Result<StateDict, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let mut state = StateDict::default();
    for (name, view) in file.iter() {
        let array = match view.dtype() {
            Dtype::F32 => Array::F32(view.shape().to_vec(), words(view.data()).map(f32::from_le_bytes).collect()),
            Dtype::F64 => Array::F64(view.shape().to_vec(), words(view.data()).map(f64::from_le_bytes).collect()),
            Dtype::U64 => Array::U64(words(view.data()).map(u64::from_le_bytes).collect()),
            other => return Err(format!("array `{name}` has the unexpected type {other:?}")),
        };
        state.arrays.insert(name.to_string(), array);
    }
    Ok(state)
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks have the size asked for"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arrays_survive_bit_for_bit() {
        let mut state = StateDict::default();
        state.put_f32("a.weight", &[2, 2], &[1.0, -0.0, f32::MIN_POSITIVE, 1e30]);
        state.put_f64("b", &[1], &[0.1]);
        state.put_u64("c", &[u64::MAX, 0]);
        state.put_u64("empty", &[]);
        let again = from_bytes(&to_bytes(&state).unwrap()).unwrap();
        assert_eq!(again, state);
        assert_eq!(to_bytes(&again).unwrap(), to_bytes(&state).unwrap());
    }

    #[test]
    fn a_wrong_shape_is_an_error() {
        let mut state = StateDict::default();
        state.put_f32("a", &[3], &[1.0]);
        assert!(to_bytes(&state).unwrap_err().contains("`a`"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = from_bytes(&bytes);
        }

        #[test]
        fn damaged_files_never_panic(cut in 0_usize..200, at in 0_usize..200, value in any::<u8>()) {
            let mut state = StateDict::default();
            state.put_f32("weight", &[2, 3], &[1.0; 6]);
            state.put_u64("words", &[1, 2, 3]);
            let mut bytes = to_bytes(&state).unwrap();
            let n = bytes.len();
            bytes[at % n] = value;
            let _ = from_bytes(&bytes[..n - cut.min(n)]);
        }
    }
}
