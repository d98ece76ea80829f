//! Independent pieces of work on several threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::failure::Result;

/// Does `work` on each of `items`, `jobs` at once, begun in their order. `report` hears of each outcome on the calling thread; the
/// first error that it returns ends the work.
///
/// # Errors
/// What `report` returns; items that have begun are then still finished.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> R + Sync,
    mut report: impl FnMut(&T, R) -> Result<()>,
) -> Result<()> {
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (sender, next, stopped, work) = (sender.clone(), &next, &stopped, &work);
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    // The receiver outlives the workers.
                    let _ = sender.send((item, work(item)));
                }
            });
        }
        drop(sender);
        let mut first = Ok(());
        for (item, outcome) in receiver {
            if first.is_ok() {
                first = report(item, outcome);
                stopped.fetch_or(first.is_err(), Ordering::Relaxed);
            }
        }
        first
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    #[test]
    fn every_item_is_reported_once_and_an_error_ends_the_work() {
        let items: Vec<usize> = (0..40).collect();
        for jobs in [0, 1, 3, 100] {
            let mut seen = Vec::new();
            in_parallel(
                &items,
                jobs,
                |i| i * i,
                |i, square| {
                    seen.push((*i, square));
                    Ok(())
                },
            )
            .unwrap();
            seen.sort_unstable();
            assert_eq!(seen, items.iter().map(|i| (*i, i * i)).collect::<Vec<_>>());
        }
        let mut reported = 0;
        let failed = in_parallel(
            &items,
            1,
            |i| *i,
            |i, _| {
                reported += 1;
                if *i == 2 { Err(Failure::run("enough")) } else { Ok(()) }
            },
        );
        assert!(failed.unwrap_err().render(false, 80).contains("enough"));
        assert_eq!(reported, 3);
    }
}
