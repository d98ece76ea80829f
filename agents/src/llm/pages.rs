//! Memory in large pages. Weights and past keys and values are read once per token, and in pages of 4 KiB the processor would spend
//! much of that time on finding them.

/// Zeros that were not touched yet, in large pages where the system has them to give.
pub(crate) fn zeros_in_large_pages(len: usize) -> Vec<f32> {
    let memory = vec![0.0_f32; len];
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let start = memory.as_ptr() as usize;
        let (first, end) = (start.next_multiple_of(PAGE), (start + size_of_val(memory.as_slice())) / PAGE * PAGE);
        if first < end {
            // SAFETY: these pages lie within the vector; the advice changes nothing that they hold. A system that does not take it
            // says so, and all is as before.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    memory
}
