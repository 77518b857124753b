//! Settings of the C library's allocator for freed memory.

use std::sync::{Mutex, PoisonError};

/// Smallest allocation that gets its own mapping while a [`MappedApart`] lives, in bytes.
#[cfg(target_env = "gnu")]
const APART: libc::c_int = 64 << 10;

/// Smallest allocation that gets its own mapping otherwise, in bytes. The C library accepts no
/// larger threshold.
#[cfg(target_env = "gnu")]
const TOGETHER: libc::c_int = 32 << 20;

/// Returns freed memory that the C library still holds to the system.
///
/// The call takes some milliseconds. Allocations block meanwhile.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's function has no safe form")]
pub fn give_back_freed_memory() {
    // SAFETY: glibc's malloc_trim takes its own locks and may be called at any time from any
    // thread. It touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Does nothing, because other C libraries return freed memory themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_freed_memory() {}

/// Element of an array whose pages can be given back.
///
/// # Safety
///
/// Every bit pattern of the type is a value of it, the size of the type divides that of a page, and
/// [`ZERO`](Self::ZERO) has no bit that is 1.
#[expect(unsafe_code, reason = "an implementation promises what the compiler does not check")]
pub unsafe trait Plain: Copy {
    /// Zero.
    const ZERO: Self;
}

// SAFETY: every bit pattern is a number, an infinity or not a number.
#[expect(unsafe_code, reason = "every bit pattern is a value")]
unsafe impl Plain for f32 {
    const ZERO: Self = 0.0;
}

// SAFETY: every bit pattern is an integer.
#[expect(unsafe_code, reason = "every bit pattern is a value")]
unsafe impl Plain for i8 {
    const ZERO: Self = 0;
}

/// Sets `values` to zero by giving their pages back to the system, which makes pages of zeros of
/// them when they are next read or written. The values must lie in memory that the allocator gave,
/// not in a mapped file.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the C library's function has no safe form")]
pub fn forget_pages<T: Plain>(values: &mut [T]) {
    // SAFETY: the function reads a constant of the system.
    let Ok(page @ 1..) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else {
        return values.fill(T::ZERO);
    };
    let to_page = values.as_ptr().align_offset(page).min(values.len());
    let (before, rest) = values.split_at_mut(to_page);
    let (pages, after) = rest.split_at_mut(rest.len() - rest.len() % (page / size_of::<T>()));
    before.fill(T::ZERO);
    after.fill(T::ZERO);
    if pages.is_empty() {
        return;
    }
    // SAFETY: the range is whole pages that the slice borrows alone. Whatever they hold afterwards
    // is a valid element.
    let advised = unsafe {
        libc::madvise(pages.as_mut_ptr().cast(), size_of_val(pages), libc::MADV_DONTNEED)
    };
    if advised != 0 {
        pages.fill(T::ZERO);
    }
}

/// Sets `values` to zero.
#[cfg(not(target_os = "linux"))]
pub fn forget_pages<T: Plain>(values: &mut [T]) {
    values.fill(T::ZERO);
}

/// Keeps freed memory for later allocations: up to `bytes` at the end of each of the C library's
/// heaps. Freed blocks of any size are reused. Mapping the activations of every run again would
/// take half as long as computing them.
pub fn reuse_freed_memory(bytes: u64) {
    #[cfg(target_env = "gnu")]
    {
        set(libc::M_TRIM_THRESHOLD, libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX));
        set(libc::M_MMAP_THRESHOLD, TOGETHER);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Number of guards that live. The threshold belongs to the process.
static NUM_APART: Mutex<usize> = Mutex::new(0);

/// Guard during whose life each large allocation gets its own mapping. Such memory returns to the
/// system when it is freed. It never lies between shorter-lived allocations.
#[derive(Debug)]
pub struct MappedApart(());

impl MappedApart {
    /// Lowers the threshold for allocations with their own mapping.
    pub fn begin() -> Self {
        let mut num_apart = NUM_APART.lock().unwrap_or_else(PoisonError::into_inner);
        *num_apart += 1;
        #[cfg(target_env = "gnu")]
        if *num_apart == 1 {
            set(libc::M_MMAP_THRESHOLD, APART);
        }
        Self(())
    }
}

impl Drop for MappedApart {
    fn drop(&mut self) {
        let mut num_apart = NUM_APART.lock().unwrap_or_else(PoisonError::into_inner);
        *num_apart -= 1;
        #[cfg(target_env = "gnu")]
        if *num_apart == 0 {
            set(libc::M_MMAP_THRESHOLD, TOGETHER);
        }
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's function has no safe form")]
fn set(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: glibc's mallopt takes its own locks and may be called at any time from any thread.
    // Earlier allocations stay where they are.
    unsafe {
        libc::mallopt(parameter, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_pages_are_zeros_and_their_neighbours_stay() {
        let mut values = vec![1.0_f32; 10_000];
        for range in [1..9_999, 3..5, 17..17, 0..1_024, 0..10_000] {
            values.fill(1.0);
            forget_pages(&mut values[range.clone()]);
            for (index, value) in values.iter().enumerate() {
                assert_eq!(*value == 0.0, range.contains(&index), "{index} of {range:?}");
            }
        }
    }
}
