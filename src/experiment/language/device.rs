//! The device by its name in configurations.

use steadfast_agents::llm::Device;

use crate::failure::{Failure, Result};

/// Number of the GPU that a name means, nothing for the CPU; `None` if it is no name of a device.
pub fn number(name: &str) -> Option<Option<usize>> {
    match name {
        "cpu" => Some(None),
        "cuda" => Some(Some(0)),
        _ => name.strip_prefix("cuda:")?.parse().ok().map(Some),
    }
}

/// The device of that name.
///
/// # Errors
/// [`Failure::Run`] if there is no such GPU.
pub fn open(name: &str) -> Result<Device> {
    match number(name) {
        Some(Some(ordinal)) => Device::new_cuda(ordinal).map_err(|e| {
            let message = format!("cannot use device `{name}`");
            Failure::caused_with_help(message, std::io::Error::other(e.to_string()), "check the driver with nvidia-smi, or use device=cpu")
        }),
        _ => Ok(Device::Cpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        assert_eq!(number("cpu"), Some(None));
        assert_eq!(number("cuda"), Some(Some(0)));
        assert_eq!(number("cuda:3"), Some(Some(3)));
        assert!(number("cuda:x").is_none() && number("gpu").is_none());
        assert!(open("cpu").unwrap().is_cpu());
    }
}
