//! Transfers of one thread between memory and a file, under way at once: io_uring(7).
//!
//! A ring owns the memory of a transfer from its beginning to its end, and whoever drops the ring waits for the ends
//! of all: so the kernel never reads or writes memory that has been given back.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::block::{DEPTH, Direction, Readiness, Transfer};

/// Entries of the submission queue: all transfers, and what else is waited for. A power of two.
const ENTRIES: u32 = 256;
/// Most rings of a file at once: each takes a descriptor. Threads beyond that wait for each of their requests.
pub const MOST: usize = 64;
/// With so many ends to tell, no more are looked for: nobody answers more at a time, and others end meanwhile, of which
/// one call then tells, as far as it goes (Linux 6.18: twenty).
const ENOUGH: usize = 8;
/// Marks what is watched, among the entries' user data.
const WATCH: u64 = 1 << 32;

/// The rings of a file.
#[derive(Default)]
pub struct Rings {
    count: AtomicUsize,
    /// Set by the first attempt that the kernel refuses and always will.
    refused: AtomicBool,
}

impl Rings {
    /// For transfers from and to `file` by the calling thread; `None` where there are enough already, or the kernel or
    /// the container does not allow it, which is logged once.
    pub fn ring<'a>(&'a self, file: &'a File) -> Option<Ring<'a>> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        // Counted by now, so that it is given back however this ends.
        let place = Place(&self.count);
        if self.count.fetch_add(1, Ordering::Relaxed) >= MOST {
            return None;
        }
        Ring::new(file, place).inspect_err(|error| self.log(error)).ok()
    }

    fn log(&self, error: &io::Error) {
        let lasting = error.kind() == io::ErrorKind::Unsupported
            || matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL));
        if !lasting {
            tracing::debug!(%error, "no io_uring for a thread");
        } else if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "io_uring cannot be used here: threads that wait do its work, and need more processor time");
        }
    }
}

/// Among those that are counted, until it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One thread's transfers.
pub struct Ring<'a> {
    ring: IoUring,
    descriptor: RawFd,
    /// By their tokens.
    transfers: Vec<Option<Entry>>,
    under_way: usize,
    /// Ends that are still to be told.
    ended: VecDeque<Ended>,
    file: PhantomData<&'a File>,
    _place: Place<'a>,
}

struct Entry {
    transfer: Transfer,
    /// Bytes of it that have been moved.
    moved: usize,
}

/// What has ended.
pub enum Ended {
    /// A transfer.
    Transfer(Transfer, io::Result<()>),
    /// The wait for the descriptor with this token.
    Watch(usize),
}

impl<'a> Ring<'a> {
    fn new(file: &'a File, place: Place<'a>) -> io::Result<Self> {
        // Completions are worked off when this thread asks for them, which it is told to do, and nobody else submits
        // (Linux 6.1).
        let mut quick = IoUring::builder();
        quick.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        let quick = quick.build(ENTRIES);
        let ring = quick.or_else(|_| IoUring::new(ENTRIES))?;
        // Waiting with a limit (Linux 5.11), and no completion that is lost.
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Not registered: a ring lets go of what is, and so of its lock, some time after it is closed.
        let descriptor = file.as_raw_fd();
        let transfers = (0..DEPTH).map(|_| None).collect();
        let ended = VecDeque::new();
        Ok(Self { ring, descriptor, transfers, under_way: 0, ended, file: PhantomData, _place: place })
    }

    /// Begins a transfer, which the kernel has after [`Ring::hand_over`], or a [`Ring::wait`] that finds no end to tell;
    /// its end is told by [`Ring::next_ended`].
    ///
    /// # Panics
    /// If its token is another one's that is under way, or its memory is too short: the kernel would use what it may not.
    pub fn begin(&mut self, mut transfer: Transfer) {
        let token = transfer.token;
        assert!(self.transfers[token].is_none(), "{token} is under way already");
        assert!(transfer.data().len() == transfer.length);
        self.transfers[token] = Some(Entry { transfer, moved: 0 });
        self.under_way += 1;
        self.go_on(token);
    }

    /// Transfers that have begun, and whose end has not been told.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Waits for `descriptor` as well; that it is ready, or can never be, is told by [`Ring::next_ended`] once.
    pub fn watch(&mut self, descriptor: BorrowedFd<'_>, readiness: Readiness, token: usize) {
        let flags = match readiness {
            Readiness::Input => libc::POLLIN,
            Readiness::Room => libc::POLLOUT,
        };
        // Bits of a mask, none of which is a sign.
        let poll = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), u32::from(flags.cast_unsigned()));
        if let Err(error) = self.push(&poll.build().user_data(WATCH | token as u64)) {
            tracing::debug!(%error, "a descriptor cannot be watched");
            self.ended.push_back(Ended::Watch(token));
        }
    }

    /// Hands over what has begun, without waiting. What the kernel does not take now is handed over the next time.
    ///
    /// # Errors
    /// The operating system's.
    pub fn hand_over(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() { Ok(()) } else { self.submit() }
    }

    /// True if there is an end to tell.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Looks whether there are ends to tell, unless there are eight already. A wait for no time at all would do the same,
    /// and cost some microseconds: the kernel sets a timer for it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn look(&mut self) -> io::Result<()> {
        if self.ended.len() < ENOUGH {
            // The kernel's word that completions are to be worked off (io_uring_setup(2), `IORING_SETUP_TASKRUN_FLAG`).
            if self.ring.submission().taskrun() {
                self.submit()?;
            }
            self.collect();
        }
        Ok(())
    }

    /// Waits until there is an end to tell, or the time is over. There may be more, which a [`Ring::look`] finds: Linux
    /// 6.18 gives whom it wakes up as many completions as were waited for, which is one, and leaves the rest for the next
    /// call (io_cqring_wait() in io_uring/io_uring.c).
    ///
    /// # Errors
    /// The operating system's.
    pub fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        self.collect();
        while self.ended.is_empty() {
            let in_time = self.enter(at_most)?;
            self.collect();
            if !in_time {
                break;
            }
        }
        Ok(())
    }

    /// What has ended, if there is more to tell.
    pub fn next_ended(&mut self) -> Option<Ended> {
        let ended = self.ended.pop_front();
        if let Some(Ended::Transfer(..)) = &ended {
            self.under_way -= 1;
        }
        ended
    }

    fn submit(&self) -> io::Result<()> {
        match self.ring.submit() {
            // What is not handed over now is next time.
            Err(error) if is_passing(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Hands over what has begun, and waits; false if the time is over.
    fn enter(&mut self, at_most: Option<Duration>) -> io::Result<bool> {
        let entered = match at_most.map(Timespec::from) {
            None => self.ring.submit_and_wait(1),
            Some(time) => self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time)),
        };
        match entered {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(false),
            Err(error) if is_passing(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Hands the rest of a transfer to the kernel.
    fn go_on(&mut self, token: usize) {
        let Some(Some(Entry { transfer, moved })) = self.transfers.get_mut(token) else { return };
        let (offset, moved) = (transfer.offset + *moved as u64, *moved);
        let direction = transfer.direction;
        let file = Fd(self.descriptor);
        let rest = &mut transfer.data()[moved..];
        // At most a buffer's length, which is far less than 4 GiB.
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let entry = match direction {
            Direction::Read => opcode::Read::new(file, rest.as_mut_ptr(), length).offset(offset).build(),
            Direction::Write => opcode::Write::new(file, rest.as_ptr(), length).offset(offset).build(),
        };
        if let Err(error) = self.push(&entry.user_data(token as u64)) {
            self.end(token, Err(error));
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: the descriptor of a poll is looked up when it is submitted, and another file under its number would
        // only be waited for in vain. The memory of a read or a write belongs to a transfer in `transfers`, is not
        // moved with it, and stays there until the kernel has said that this entry has ended: by `collect`, or, if
        // the ring is dropped, by `drop`, which waits for that. No reference to it is used meanwhile. If the entry
        // is not taken, an error is returned, and the kernel never sees it.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)
    }

    /// Takes what the kernel says has ended; begins anew with what is not done by that.
    fn collect(&mut self) {
        // A copy, for the queue cannot be read while a transfer goes on. Rarely more than a handful.
        while let Some((data, result)) = {
            let mut completions = self.ring.completion();
            completions.next().map(|completion| (completion.user_data(), completion.result()))
        } {
            // Tokens are small numbers.
            let token = usize::try_from(data & !WATCH).unwrap_or(usize::MAX);
            if data & WATCH != 0 {
                self.ended.push_back(Ended::Watch(token));
                continue;
            }
            match usize::try_from(result) {
                Ok(count) => self.moved(token, count),
                Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => self.go_on(token),
                Err(_) => self.end(token, Err(io::Error::from_raw_os_error(-result))),
            }
        }
    }

    fn moved(&mut self, token: usize, count: usize) {
        let Some(Some(entry)) = self.transfers.get_mut(token) else { return };
        entry.moved += count;
        if entry.moved >= entry.transfer.length {
            self.end(token, Ok(()));
        } else if count == 0 {
            let kind = match entry.transfer.direction {
                Direction::Read => io::ErrorKind::UnexpectedEof,
                Direction::Write => io::ErrorKind::WriteZero,
            };
            self.end(token, Err(kind.into()));
        } else {
            self.go_on(token);
        }
    }

    fn end(&mut self, token: usize, result: io::Result<()>) {
        if let Some(entry) = self.transfers.get_mut(token).and_then(Option::take) {
            self.ended.push_back(Ended::Transfer(entry.transfer, result));
        }
    }
}

/// Interrupted, or completions have to be taken first.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

impl Drop for Ring<'_> {
    fn drop(&mut self) {
        while self.transfers.iter().any(Option::is_some) {
            if let Err(error) = self.enter(None) {
                // The kernel may still use their memory, which must not become anybody else's.
                tracing::error!(%error, "transfers that are under way cannot be waited for");
                self.transfers.drain(..).for_each(std::mem::forget);
                return;
            }
            self.collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::pages::Pages;

    fn transfer(token: usize, direction: Direction, offset: u64, length: usize) -> Transfer {
        Transfer { token, direction, offset, length, pages: Pages::new(length), prepared: 0 }
    }

    fn byte(round: u8, token: usize) -> u8 {
        round.wrapping_mul(u8::try_from(token).unwrap())
    }

    /// All that is under way, by token.
    fn all(ring: &mut Ring<'_>) -> Vec<(usize, Vec<u8>, io::Result<()>)> {
        let mut ended = Vec::new();
        while ring.under_way() > 0 {
            ring.wait(None).unwrap();
            while let Some(next) = ring.next_ended() {
                match next {
                    Ended::Transfer(mut transfer, result) => {
                        ended.push((transfer.token, transfer.data().to_vec(), result));
                    }
                    Ended::Watch(_) => unreachable!("nothing is watched"),
                }
            }
        }
        ended.sort_by_key(|(token, ..)| *token);
        ended
    }

    #[test]
    fn transfers_go_both_ways_as_many_as_there_may_be() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        let mut ring = rings.ring(&file).unwrap();
        for round in 1..4_u8 {
            for token in 0..DEPTH {
                let mut write = transfer(token, Direction::Write, token as u64 * 8192, 8192);
                write.data().fill(byte(round, token));
                ring.begin(write);
            }
            assert_eq!(ring.under_way(), DEPTH);
            assert!(all(&mut ring).iter().all(|(_, _, result)| result.is_ok()));
            for token in 0..DEPTH {
                ring.begin(transfer(token, Direction::Read, token as u64 * 8192, 8192));
            }
            for (token, data, result) in all(&mut ring) {
                result.unwrap();
                assert!(data == vec![byte(round, token); 8192]);
            }
        }
        assert_eq!(file.metadata().unwrap().len(), DEPTH as u64 * 8192);
    }

    #[test]
    fn what_is_handed_over_goes_on_without_anybody_waiting_for_it() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        let mut ring = rings.ring(&file).unwrap();
        let mut write = transfer(0, Direction::Write, 0, 4096);
        write.data().fill(9);
        ring.begin(write);
        ring.hand_over().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while file.metadata().unwrap().len() < 4096 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!ring.has_ended(), "nobody has asked");
        // Its end may be told some time after its bytes are there.
        while !ring.has_ended() {
            assert!(std::time::Instant::now() < deadline);
            ring.look().unwrap();
        }
        assert!(matches!(ring.next_ended(), Some(Ended::Transfer(_, Ok(())))));
        assert!(!ring.has_ended());
    }

    #[test]
    fn what_a_file_does_not_have_is_an_error() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        file.write_all_at(&[3; 5000], 0).unwrap();
        let mut ring = rings.ring(&file).unwrap();
        ring.begin(transfer(0, Direction::Read, 0, 5000));
        ring.begin(transfer(1, Direction::Read, 4096, 4096));
        let ended = all(&mut ring);
        assert!(ended[0].2.is_ok() && ended[0].1 == [3; 5000]);
        // The first part was moved, and then there was no more.
        assert_eq!(ended[1].2.as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(ended[1].1[..904], [3; 904]);
    }

    #[test]
    fn errors_are_the_operating_systems() {
        let (file, rings) = (File::open("/dev/null").unwrap(), Rings::default());
        let mut ring = rings.ring(&file).unwrap();
        ring.begin(transfer(7, Direction::Write, 0, 512));
        let ended = all(&mut ring);
        assert_eq!(ended[0].2.as_ref().unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn descriptors_are_watched_beside_transfers() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        let mut ring = rings.ring(&file).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // What a look finds that waits for nothing.
        ring.watch(ours.as_fd(), Readiness::Input, 4);
        ring.hand_over().unwrap();
        ring.look().unwrap();
        assert!(!ring.has_ended());
        theirs.write_all(b"x").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !ring.has_ended() {
            assert!(std::time::Instant::now() < deadline);
            ring.look().unwrap();
        }
        assert!(matches!(ring.next_ended(), Some(Ended::Watch(4))));
        (&ours).read_exact(&mut [0]).unwrap();
        ring.watch(ours.as_fd(), Readiness::Room, 5);
        ring.wait(None).unwrap();
        assert!(matches!(ring.next_ended(), Some(Ended::Watch(5))));
        ring.watch(ours.as_fd(), Readiness::Input, 6);
        ring.wait(Some(Duration::from_millis(1))).unwrap();
        assert!(ring.next_ended().is_none(), "the time was over first");
        ring.begin(transfer(0, Direction::Write, 0, 4096));
        ring.wait(None).unwrap();
        assert!(matches!(ring.next_ended(), Some(Ended::Transfer(..))));
        assert!(ring.next_ended().is_none());
        drop(theirs);
        ring.wait(None).unwrap();
        assert!(matches!(ring.next_ended(), Some(Ended::Watch(6))));
        assert_eq!(ring.under_way(), 0);
    }

    #[test]
    fn what_ends_together_is_told_by_one_look() {
        /// More than one call tells of.
        const ALL: usize = 40;
        const TRIES: usize = 20;
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        let mut ring = rings.ring(&file).unwrap();
        let together = (0..TRIES).filter(|_| {
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            for token in 0..ALL {
                ring.watch(event.as_fd(), Readiness::Input, token);
            }
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    // By then the other one sleeps, mostly.
                    std::thread::sleep(Duration::from_millis(5));
                    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
                });
                ring.wait(None).unwrap();
                ring.look().unwrap();
            });
            let known = ring.ended.len();
            ring.look().unwrap();
            assert!(known < ENOUGH || ring.ended.len() == known, "there were enough");
            let at_once = std::iter::from_fn(|| ring.next_ended()).count();
            for told in at_once..ALL {
                ring.wait(None).unwrap();
                assert!(ring.next_ended().is_some(), "{told} of {ALL}");
            }
            at_once > ENOUGH
        });
        // Whoever sleeps is told of one. Who does not sleep yet, as under an older Linux, is told of all.
        let together = together.count();
        assert!(together > TRIES / 2, "{together} of {TRIES}");
    }

    #[test]
    fn a_ring_that_is_dropped_leaves_nothing_under_way() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        for _ in 0..50 {
            let mut ring = rings.ring(&file).unwrap();
            for token in 0..DEPTH {
                let mut write = transfer(token, Direction::Write, token as u64 * 4096, 4096);
                write.data().fill(9);
                ring.begin(write);
            }
            drop(ring);
            let mut all = vec![0; DEPTH * 4096];
            file.read_exact_at(&mut all, 0).unwrap();
            assert!(all.iter().all(|byte| *byte == 9));
            file.set_len(0).unwrap();
        }
    }

    #[test]
    fn there_are_no_more_than_there_may_be() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        let all: Vec<_> = (0..MOST).map(|_| rings.ring(&file).unwrap()).collect();
        assert!(rings.ring(&file).is_none());
        drop(all);
        assert!(rings.ring(&file).is_some());
    }

    #[test]
    #[should_panic(expected = "under way already")]
    fn a_token_is_one_transfers_at_a_time() {
        let (file, rings) = (tempfile::tempfile().unwrap(), Rings::default());
        let mut ring = rings.ring(&file).unwrap();
        ring.begin(transfer(1, Direction::Write, 0, 4096));
        ring.begin(transfer(1, Direction::Write, 0, 4096));
    }
}
