//! Buffers and pipes of a thread, lent to connections while they have bytes that the other side has
//! not taken.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};

use super::splice::Pipe;

/// Sizes of buffers; a direction starts with the smallest and grows while reads fill it.
pub(super) const SIZES: [usize; 3] = [4 * 1024, 16 * 1024, 64 * 1024];
/// Buffers kept of each size: less than 2 MiB a thread.
const KEPT: [usize; 3] = [64, 32, 16];
/// Pipes kept; each is two descriptors.
const KEPT_PIPES: usize = 8;

#[derive(Default)]
struct Pool {
    buffers: [Vec<Box<[u8]>>; 3],
    pipes: Vec<Pipe>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Runs `f` on the pool, unless the thread is ending.
fn with<T>(f: impl FnOnce(&mut Pool) -> Option<T>) -> Option<T> {
    POOL.try_with(|pool| f(&mut *pool.try_borrow_mut().ok()?)).ok().flatten()
}

/// A buffer of one of [`SIZES`]; goes back to the pool of the thread that drops it.
pub(super) struct Buffer {
    class: usize,
    bytes: Box<[u8]>,
}

impl Buffer {
    pub(super) fn take(class: usize) -> Self {
        let class = class.min(SIZES.len() - 1);
        let bytes = with(|pool| pool.buffers[class].pop());
        Self { class, bytes: bytes.unwrap_or_else(|| vec![0; SIZES[class]].into_boxed_slice()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        with(|pool| {
            let kept = &mut pool.buffers[self.class];
            if kept.len() < KEPT[self.class] {
                kept.push(bytes);
            }
            Some(())
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

pub(super) fn take_pipe() -> io::Result<Pipe> {
    with(|pool| pool.pipes.pop()).map_or_else(Pipe::new, Ok)
}

/// Keeps an empty pipe for the next direction that needs one.
pub(super) fn give_pipe(pipe: Pipe) {
    if pipe.is_empty() {
        with(|pool| {
            if pool.pipes.len() < KEPT_PIPES {
                pool.pipes.push(pipe);
            }
            Some(())
        });
    }
}
