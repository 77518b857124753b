//! Memory that the process has freed but not given back.

/// Gives memory that was freed back to the system, where the C library keeps it for itself.
///
/// Takes some milliseconds; allocations wait for it.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's function has no safe form")]
pub fn give_back_freed_memory() {
    // SAFETY: glibc's malloc_trim takes its own locks, may be called at any time from any thread,
    // and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Does nothing: other C libraries give back what is freed.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_freed_memory() {}
