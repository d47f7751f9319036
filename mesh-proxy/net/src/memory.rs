//! Memory that the allocator holds back, and pages of the program that only its start needed.

/// Gives pages that are free inside the allocator back to the system. Worth its time (about a millisecond for 10 MiB)
/// after something large was built and its ingredients were dropped, on machines where every MiB counts.
pub fn release_unused() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes a number and may be called at any time from any thread.
    #[allow(unsafe_code, reason = "there is no safe wrapper")]
    unsafe {
        // The answer says whether something was given back, which changes nothing.
        let _gave_back = libc::malloc_trim(0);
    }
}

/// Takes the program's own code and constants out of this process's memory; what runs from now on comes back from the
/// page cache, 64 KiB around each access, without I/O. The start of a program touches nearly all of it once (the kernel
/// maps neighbours of each touched page), and pages that nobody maps are the first that a small machine can use for
/// something else. Gives the number of bytes that were let go.
pub fn release_startup_code() -> usize {
    #[cfg(target_os = "linux")]
    return program::release();
    #[cfg(not(target_os = "linux"))]
    return 0;
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "there is no safe interface to the loaded segments of a program")]
mod program {
    use std::ffi::{c_int, c_void};

    pub(super) fn release() -> usize {
        let mut released = 0_usize;
        // SAFETY: the callback gets a valid pointer to what it expects and keeps none of it.
        unsafe { libc::dl_iterate_phdr(Some(segments), std::ptr::from_mut(&mut released).cast()) };
        released
    }

    /// Called with the program first; ends the walk there, libraries are small and shared.
    ///
    /// # Safety
    /// `info` and `data` are those of [`release`].
    unsafe extern "C" fn segments(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: the loader gives a valid record with `dlpi_phnum` headers; `data` is the counter of `release`.
        let (info, headers, released) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
            (info, headers, &mut *data.cast::<usize>())
        };
        // SAFETY: asks for a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
        for header in headers {
            // Only what can never have been written: a written private page would come back as the file has it.
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let (Ok(base), Ok(offset), Ok(length)) = (
                usize::try_from(info.dlpi_addr),
                usize::try_from(header.p_vaddr),
                usize::try_from(header.p_filesz),
            ) else {
                continue;
            };
            // Whole pages of this segment: the last one may be shared with the next segment.
            let start = base.saturating_add(offset).div_ceil(page).saturating_mul(page);
            let end = base.saturating_add(offset).saturating_add(length) / page * page;
            let Some(length) = end.checked_sub(start).filter(|l| *l > 0) else { continue };
            // SAFETY: clean pages of a read-only file mapping; the kernel reads them again from the file when touched.
            if unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) } == 0 {
                *released += length;
            }
        }
        1
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    #[allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    fn code_that_is_let_go_comes_back_when_it_runs() {
        let resident = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|l| l.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        let released = super::release_startup_code();
        let after = resident();
        assert!(released > 500_000, "{released}");
        assert!(after < before, "{before} kB, then {after} kB");
        // Code and constants of many places still work.
        let text = format!("{:?} {:.3}", "x".repeat(3), 1.0_f64.exp());
        assert_eq!(text, "\"xxx\" 2.718");
    }
}
