//! Code of the Parquet crate over bytes that nobody has checked.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use parquet::errors::Result as ParquetResult;

use crate::error::{Result, RewardError};

thread_local! {
    /// True while a panic of this thread is caught and becomes an error, so that nothing need be printed about it.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the Parquet crate: its errors get the name of the file, and a panic over damaged bytes becomes an error.
/// Such a panic is not printed; all others go to the hook that was there before.
pub(super) fn guarded<T>(path: &Path, run: impl FnOnce() -> ParquetResult<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            // While a thread ends its flag may be gone; such a panic is none of ours.
            if !IS_GUARDED.try_with(Cell::get).unwrap_or(false) {
                previous(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IS_GUARDED.set(was_guarded);
    let reason = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its encoding makes no sense".to_string(),
    };
    Err(RewardError::Content {
        path: path.to_path_buf(),
        reason: format!("cannot be read as Parquet, it may be damaged or cut off: {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a process of its own, started by the test below: what it prints is looked at there.
    #[test]
    #[ignore = "half of `panics_over_a_file_are_not_printed`"]
    fn panics_inside_and_outside() {
        let caught: Result<()> = guarded(Path::new("a.parquet"), || panic!("inside"));
        assert!(caught.unwrap_err().to_string().contains("makes no sense"));
        assert!(std::thread::spawn(|| panic!("on another thread")).join().is_err());
        assert!(catch_unwind(|| panic!("afterwards")).is_err());
    }

    #[test]
    fn panics_over_a_file_are_not_printed() {
        let name = "dataset::parquet::guard::tests::panics_inside_and_outside";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        let (said, printed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("1 passed"), "{said}{printed}");
        assert!(printed.contains("on another thread") && printed.contains("afterwards"), "{printed}");
        assert!(!printed.contains("inside\n"), "{printed}");
        assert_eq!(printed.matches("panicked at").count(), 2, "{printed}");
    }
}
