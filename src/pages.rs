//! Memory for the data of requests: it begins with a page, as I/O past the page cache wants it, and is wiped when it is
//! given back.
//!
//! Past the page cache, memory is pinned, and told to the device, piece by piece as it lies in the machine: 256 pieces
//! for 1 MiB of ordinary pages, which is more than a virtual disk takes at once (254 in virtio-blk). In a huge page it
//! is one. So large pieces come two from a huge page, where that is wanted and the kernel has one.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, madvise};
use zeroize::{Zeroize, Zeroizing};

/// Where memory begins: at multiples of this, for which each piece has as many bytes more.
const PAGE: usize = 4096;
/// Bytes of a huge page on x86-64, and on aarch64 with pages of 4 KiB. Elsewhere memory only begins with their multiple.
const HUGE: usize = 2 << 20;
/// Bytes of what comes from a huge page.
const HALF: usize = HUGE / 2;

/// Memory that begins with a page; wiped when it is given back.
pub struct Pages(Memory);

enum Memory {
    Ordinary { all: Zeroizing<Box<[u8]>>, start: usize },
    Huge(Half),
}

impl Default for Pages {
    fn default() -> Self {
        Self(Memory::Ordinary { all: Zeroizing::default(), start: 0 })
    }
}

impl Pages {
    /// `size` bytes, all zero.
    pub fn new(size: usize) -> Self {
        let all = Zeroizing::new(vec![0; size + PAGE].into_boxed_slice());
        let start = all.as_ptr().align_offset(PAGE);
        Self(Memory::Ordinary { all, start })
    }

    /// The same, in one piece of the machine's memory if `size` is half of a huge page and the kernel has one.
    pub fn in_one_piece(size: usize) -> Self {
        if size == HALF { Self(Memory::Huge(Half::take())) } else { Self::new(size) }
    }

    /// True for those of which no bytes were asked for, as by default.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Memory::Ordinary { all, .. } if all.is_empty())
    }

    /// The first `length` bytes, of which there are as many as it was made with.
    pub fn first(&self, length: usize) -> &[u8] {
        match &self.0 {
            Memory::Ordinary { all, start } => &all[*start..][..length],
            Memory::Huge(half) => &half.bytes()[..length],
        }
    }

    /// The same, to be changed.
    pub fn first_mut(&mut self, length: usize) -> &mut [u8] {
        match &mut self.0 {
            Memory::Ordinary { all, start } => &mut all[*start..][..length],
            Memory::Huge(half) => &mut half.bytes_mut()[..length],
        }
    }
}

/// As many bytes as a huge page has, and where one may lie.
#[repr(align(0x20_0000))]
struct HugePage {
    _bytes: [u8; HUGE],
}

/// The owner of these.
struct Slab(NonNull<u8>);

// SAFETY: the memory belongs to this value alone, and its two halves to one `Half` each.
unsafe impl Send for Slab {}
// SAFETY: as above; nothing is reached through `&Slab` but by a `Half`.
unsafe impl Sync for Slab {}

impl Slab {
    const LAYOUT: Layout = Layout::new::<HugePage>();

    fn new() -> Self {
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { alloc(Self::LAYOUT) });
        let Some(start) = start else { handle_alloc_error(Self::LAYOUT) };
        // SAFETY: the whole range was allocated above, and advice of this kind changes nothing that it holds. Nobody has
        // touched it, so its pages are still to be made. Where it is refused they are ordinary ones.
        let _ = unsafe { madvise(start.as_ptr().cast(), HUGE, Advice::LinuxHugepage) };
        // SAFETY: these bytes were allocated above.
        unsafe { start.as_ptr().write_bytes(0, HUGE) };
        Self(start)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and no half is left that would reach it.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) };
    }
}

/// One half of a [`Slab`], and its only owner.
struct Half {
    slab: Arc<Slab>,
    is_second: bool,
}

/// Halves whose other half is in use; all zero.
static SPARE: Mutex<Vec<Spare>> = Mutex::new(Vec::new());

/// A half that nobody uses. (It is not a [`Half`], which would come here again when it is dropped.)
struct Spare {
    slab: Arc<Slab>,
    is_second: bool,
}

fn spare() -> MutexGuard<'static, Vec<Spare>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Half {
    fn take() -> Self {
        if let Some(Spare { slab, is_second }) = spare().pop() {
            return Self { slab, is_second };
        }
        let slab = Arc::new(Slab::new());
        spare().push(Spare { slab: slab.clone(), is_second: true });
        Self { slab, is_second: false }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: both halves begin within the slab.
        unsafe { self.slab.0.as_ptr().add(if self.is_second { HALF } else { 0 }) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the slab lives as long as `self`, its bytes are initialised, and there is one `Half` or `Spare` for each
        // half, so `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start(), HALF) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start(), HALF) }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        let mut spare = spare();
        match spare.iter().position(|other| Arc::ptr_eq(&other.slab, &self.slab)) {
            // Both halves are free, and so is the slab, once this one is gone as well.
            Some(other) => drop(spare.swap_remove(other)),
            None => spare.push(Spare { slab: self.slab.clone(), is_second: self.is_second }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_with_a_page_and_are_zero() {
        for size in [1, PAGE, 300_000, HALF, HALF + 1] {
            for mut pages in [Pages::new(size), Pages::in_one_piece(size)] {
                assert!(pages.first(size).as_ptr().addr().is_multiple_of(PAGE) && !pages.is_empty());
                assert!(pages.first(size).iter().all(|byte| *byte == 0));
                pages.first_mut(size).fill(7);
                assert!(pages.first(size).iter().all(|byte| *byte == 7));
            }
        }
        assert!(Pages::default().is_empty() && Pages::default().first(0).is_empty());
    }

    /// Other tests take halves as well, so nothing is said of which halves are spare.
    #[test]
    fn halves_are_apart_wiped_and_used_again() {
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..40usize {
                        let mut pages = Pages::in_one_piece(HALF);
                        assert!(pages.first(HALF).iter().all(|byte| *byte == 0));
                        pages.first_mut(HALF).fill(thread + 1);
                        held.push(pages);
                        if round % 3 == 2 {
                            held.swap_remove(round % held.len());
                        }
                        assert!(
                            held.iter().all(|one| one.first(HALF).iter().all(|byte| *byte == thread + 1))
                        );
                        held.truncate(6);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_slab_goes_when_both_halves_have_gone() {
        let pages = Pages::in_one_piece(HALF);
        let Memory::Huge(half) = &pages.0 else { panic!("not from a slab") };
        let slab = Arc::downgrade(&half.slab);
        drop(pages);
        // Another test may have taken the other half meanwhile, or the same one again.
        while slab.upgrade().is_some() {
            std::thread::yield_now();
        }
    }
}
