//! Memory for the data of requests: it begins with a page, as I/O past the page cache wants it, and is wiped when it is
//! given back.
//!
//! Past the page cache, memory is pinned, and told to the device, piece by piece as it lies in the machine: 256 pieces
//! for 1 MiB of ordinary pages, which is more than a virtual disk takes at once (254 in virtio-blk). In a huge page it
//! is one. So large pieces come two from a huge page, where that is wanted and the kernel has one.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zeroize::{Zeroize, Zeroizing};

/// Where memory begins: at multiples of this, for which each piece has as many bytes more.
const PAGE: usize = 4096;
/// Bytes of a huge page on x86-64, and on aarch64 with pages of 4 KiB. Elsewhere, memory is merely aligned to it.
const HUGE: usize = 2 << 20;
/// Bytes of a large piece: two come from a huge page.
pub const HALF: usize = HUGE / 2;

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

/// A half of the huge page that begins there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    page: NonNull<u8>,
    is_second: bool,
}

// SAFETY: the memory has no ties to a thread, and each place has one owner: a `Half`, or what holds the spare ones.
unsafe impl Send for Place {}

/// Halves whose other half is in use; all zero.
static SPARE: Mutex<Vec<Place>> = Mutex::new(Vec::new());

fn spare() -> MutexGuard<'static, Vec<Place>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    fn other(self) -> Self {
        Self { is_second: !self.is_second, ..self }
    }

    /// Maps zeros for two halves, and returns the first.
    fn map() -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where there was none.
        let mapped = unsafe { mmap_anonymous(null_mut(), 2 * HUGE, protection, MapFlags::PRIVATE) };
        let Some(mapped) = mapped.ok().and_then(|mapped| NonNull::new(mapped.cast::<u8>())) else {
            handle_alloc_error(Layout::new::<[u8; 2 * HUGE]>())
        };
        let before = mapped.align_offset(HUGE);
        // SAFETY: the huge page lies within the mapping, `before` bytes from its start. What is unmapped is the rest of it,
        // which nobody has seen, and advice of this kind changes nothing that memory holds.
        unsafe {
            let page = mapped.add(before);
            if before > 0 {
                let _ = munmap(mapped.as_ptr().cast(), before);
            }
            let _ = munmap(page.add(HUGE).as_ptr().cast(), HUGE - before);
            // Where it is refused, pages are ordinary ones.
            let _ = madvise(page.as_ptr().cast(), HUGE, Advice::LinuxHugepage);
            Self { page, is_second: false }
        }
    }

    /// Gives both halves back to the kernel.
    ///
    /// # Safety
    /// Nobody owns the one or the other.
    unsafe fn unmap(self) {
        // SAFETY: `map` mapped these bytes, and nobody is left who would reach them.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), HUGE) };
    }
}

/// One half of a huge page, and its only owner.
struct Half(Place);

impl Half {
    fn take() -> Self {
        if let Some(place) = spare().pop() {
            return Self(place);
        }
        let first = Place::map();
        spare().push(first.other());
        Self(first)
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: both halves begin within the page.
        unsafe { self.0.page.add(if self.0.is_second { HALF } else { 0 }).as_ptr() }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: these bytes are mapped for as long as `self` lives and have been zero from the start; `self` is their
        // only owner, and `&self` keeps writers away.
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
        match spare.iter().position(|place| *place == self.0.other()) {
            None => spare.push(self.0),
            Some(other) => {
                spare.swap_remove(other);
                drop(spare);
                // SAFETY: the other half was spare, and is no more; this one ends here.
                unsafe { self.0.unmap() };
            }
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

    /// As proc(5) tells it: `hg` among the flags of the mapping.
    #[test]
    fn the_kernel_is_asked_for_a_huge_page() {
        let pages = Pages::in_one_piece(HALF);
        let at = pages.first(1).as_ptr().addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let holds = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(start)?..number(end)?).contains(&at))
        };
        let mapping = smaps.lines().skip_while(|line| holds(line) != Some(true));
        let flags = mapping.filter_map(|line| line.strip_prefix("VmFlags:")).next().unwrap();
        let knows = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(flags.split_whitespace().any(|flag| flag == "hg"), knows, "{flags}");
    }

    /// Other tests take halves as well, so nothing is said of which halves are spare.
    #[test]
    fn halves_are_apart_wiped_and_used_again() {
        let work = |thread: u8| {
            let (zeros, own) = (vec![0; HALF], vec![thread; HALF]);
            let mut held = Vec::new();
            for round in 0..40usize {
                let mut pages = Pages::in_one_piece(HALF);
                assert!(pages.first(HALF) == zeros);
                pages.first_mut(HALF).fill(thread);
                held.push(pages);
                if round % 3 == 2 {
                    held.swap_remove(round % held.len());
                }
                assert!(held.iter().all(|one| one.first(HALF) == own));
                held.truncate(6);
            }
        };
        let threads: Vec<_> = (1..=4u8).map(|thread| std::thread::spawn(move || work(thread))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    /// No more than one of a page's halves is ever spare, so that spare ones take no more than those in use.
    #[test]
    fn two_spare_halves_of_a_page_go_back_to_the_kernel() {
        let held: Vec<_> = (0..9).map(|_| Pages::in_one_piece(HALF)).collect();
        drop(held);
        let spare = spare();
        assert!(spare.iter().all(|place| !spare.contains(&place.other())));
    }
}
