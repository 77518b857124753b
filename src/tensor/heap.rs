//! How the C library keeps memory that the process has freed.

/// Bytes from which an allocation is mapped by itself while [`MappedApart`] lives.
#[cfg(target_env = "gnu")]
const APART: libc::c_int = 64 << 10;

/// Bytes from which an allocation is mapped by itself otherwise: the most that the C library takes.
#[cfg(target_env = "gnu")]
const TOGETHER: libc::c_int = 32 << 20;

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

/// Keeps freed memory for the next allocation up to `bytes` at the end of each of the C library's
/// heaps, and reuses what is freed however large it is: mapping the activations of every run anew
/// takes half as long as computing them.
pub fn reuse_freed_memory(bytes: u64) {
    #[cfg(target_env = "gnu")]
    {
        set(libc::M_TRIM_THRESHOLD, libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX));
        set(libc::M_MMAP_THRESHOLD, TOGETHER);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Has what is allocated while it lives mapped by itself, so that it goes back to the system when
/// it is freed, and lies between nothing that is freed before. There is one at a time.
#[derive(Debug)]
pub struct MappedApart(());

impl MappedApart {
    /// Begins.
    pub fn begin() -> Self {
        #[cfg(target_env = "gnu")]
        set(libc::M_MMAP_THRESHOLD, APART);
        Self(())
    }
}

impl Drop for MappedApart {
    fn drop(&mut self) {
        #[cfg(target_env = "gnu")]
        set(libc::M_MMAP_THRESHOLD, TOGETHER);
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's function has no safe form")]
fn set(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: glibc's mallopt takes its own locks and may be called at any time from any thread;
    // what was allocated before stays where it is.
    unsafe {
        libc::mallopt(parameter, value);
    }
}
