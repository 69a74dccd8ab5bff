//! The reading side of a connection: reads ahead, and stops between two requests when it is asked to.

use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::buffers::{Buffer, MEDIUM};
use super::link::Link;
use super::patience::Patience;
use crate::pages::Pages;

/// Bytes read ahead: headers and the data of small writes come in with few system calls.
pub(super) const READ_AHEAD: usize = MEDIUM;
/// The same behind data of more than [`LARGE`]: what follows is likely to be as large, and would be copied.
const LITTLE: usize = 16 << 10;
/// Bytes. Of longer data, a client's socket may hold a part only.
pub(super) const LARGE: usize = 64 << 10;

/// Asks all connections of a server to stop reading at the end of a request.
pub(super) struct Pause {
    asked: AtomicBool,
    /// Becomes readable with `asked` and stays so: nobody reads it, so it wakes everybody.
    event: OwnedFd,
}

impl Pause {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { asked: AtomicBool::new(false), event })
    }

    pub(super) fn ask(&self) -> io::Result<()> {
        self.asked.store(true, Ordering::Release);
        rustix::io::write(&self.event, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Whether there is something to read on `link`, or a pause is asked for: true, whatever else there is. `None` if
    /// there is neither yet; with `sleeps`, it is waited for, and that does not happen but for a signal.
    fn comes_first(&self, link: &Link, sleeps: bool) -> io::Result<Option<bool>> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let descriptors = &mut [
            PollFd::new(&self.event, PollFlags::IN),
            PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN),
        ];
        match poll(descriptors, if sleeps { None } else { Some(&AT_ONCE) }) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(_) => Ok(Some(!descriptors[0].revents().is_empty())),
            Err(error) => Err(error.into()),
        }
    }
}

/// What comes after a request.
pub(super) enum Next {
    /// Another one, or at least its first byte.
    Request,
    /// Nothing: the client has ended the stream.
    End,
    /// A pause was asked for, and every byte that was taken from the socket has been used.
    Pause,
}

/// What could be read without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Now {
    /// Something has come.
    Came {
        /// As many bytes of it are where they were asked for.
        asked: usize,
        /// There was room for more.
        all: bool,
    },
    /// Nothing is there yet.
    Nothing,
    /// The client has ended the stream.
    End,
}

/// Everything that a client sends in transmission.
pub(super) struct Incoming {
    link: Arc<Link>,
    /// What is read into ahead of its time.
    ahead: Pages,
    /// The part of it that has been read and not been used.
    unused: Range<usize>,
    pause: Option<Arc<Pause>>,
    patience: Patience,
    /// The same for what is left of data of more than [`LARGE`]: a socket holds less, and the client is about to send on.
    rest: Patience,
    /// Bytes that are read ahead just now.
    window: usize,
}

impl Incoming {
    /// With `pause`, one more system call is made, or several, wherever a request is waited for. A link that cannot be
    /// handed over is not paused: that there is something to read need not mean that a request begins, and whoever
    /// waits for the rest of a record does not look at the pause.
    pub(super) fn new(link: Arc<Link>, pause: Option<Arc<Pause>>) -> Self {
        let pause = pause.filter(|_| link.can_be_handed_over());
        let ahead = Pages::new(READ_AHEAD);
        let [patience, rest] = [(); 2].map(|()| Patience::new(link.plain().is_some()));
        Self { link, ahead, unused: 0..0, pause, patience, rest, window: READ_AHEAD }
    }

    /// Waits where a request may begin.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        if !self.unused.is_empty() {
            return Ok(Next::Request);
        }
        let Self { link, patience, pause, ahead, window, .. } = self;
        let ahead = ahead.first_mut(*window);
        let length = match pause {
            Some(pause) if patience.wait(|sleeps| pause.comes_first(link, sleeps))? => {
                return Ok(Next::Pause);
            }
            Some(_) => retry(|| (&**link).read(ahead))?,
            None => {
                let slices = &mut [IoSliceMut::new(ahead)];
                patience.wait(|sleeps| receive(link, slices, sleeps))?
            }
        };
        self.unused = 0..length;
        Ok(if length == 0 { Next::End } else { Next::Request })
    }

    /// How much is read ahead follows what was waited for last: the data of a large request, or something small.
    fn follow(&mut self, whole: usize) {
        self.window = if whole > LARGE { LITTLE } else { READ_AHEAD };
    }

    /// So that there is room behind it. Returns how many bytes are here.
    fn move_to_front(&mut self) -> usize {
        let here = self.unused.len();
        self.ahead.first_mut(self.unused.end).copy_within(self.unused.clone(), 0);
        self.unused = 0..here;
        here
    }

    /// Waits for more than what is here; false at the end of the stream, and once a pause is asked for. There must be
    /// room for more.
    pub(super) fn more(&mut self) -> io::Result<bool> {
        if self.is_pausing() {
            return Ok(false);
        }
        self.follow(0);
        let here = self.move_to_front();
        let length = retry(|| (&*self.link).read(&mut self.ahead.first_mut(self.window)[here..]))?;
        self.unused.end += length;
        Ok(length > 0)
    }

    /// Reads what is there: into `data`, which is filled up to `filled`, and what follows ahead. Nothing is to be here if
    /// there is `data`, and nothing is read ahead once a pause is asked for.
    ///
    /// # Errors
    /// The operating system's, and one for TLS.
    pub(super) fn read_now(&mut self, data: &mut [u8], filled: usize) -> io::Result<Now> {
        let here = self.move_to_front();
        if !data.is_empty() || here >= self.window {
            self.follow(data.len());
        }
        let bytes = &mut data[filled..];
        let wanted = bytes.len();
        let end = if self.is_pausing() { here } else { self.window };
        let slices = &mut [IoSliceMut::new(bytes), IoSliceMut::new(&mut self.ahead.first_mut(end)[here..])];
        if wanted == 0 && here == end {
            return Ok(Now::Nothing);
        }
        let socket = self.link.plain().ok_or(io::ErrorKind::Unsupported)?;
        match retry(|| socket.receive_now(slices)) {
            Ok(0) => Ok(Now::End),
            Ok(length) => {
                self.unused.end += length.saturating_sub(wanted);
                Ok(Now::Came { asked: length.min(wanted), all: length < wanted + end - here })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Now::Nothing),
            Err(error) => Err(error),
        }
    }

    /// A pause has been asked for.
    pub(super) fn is_pausing(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.is_asked())
    }

    /// What becomes readable once a pause is asked for, if one ever may be.
    pub(super) fn pause_event(&self) -> Option<BorrowedFd<'_>> {
        self.pause.as_ref().map(|pause| pause.event.as_fd())
    }

    /// What has been read ahead.
    pub(super) fn here(&self) -> &[u8] {
        &self.ahead.first(self.unused.end)[self.unused.start..]
    }

    /// The next `length` bytes, all of which are here, to be used where they are.
    pub(super) fn at_here(&mut self, length: usize) -> &mut [u8] {
        &mut self.ahead.first_mut(self.unused.start + length)[self.unused.start..]
    }

    /// They have been used.
    pub(super) fn use_here(&mut self, length: usize) {
        self.unused.start += length;
    }

    /// Moves the first `length` bytes that are here to `memory`, which has [`READ_AHEAD`] bytes: where the others are
    /// fewer, by an exchange of the one for the other. Returns where in `memory` they are.
    pub(super) fn exchange(&mut self, memory: &mut Buffer<'_>, length: usize) -> Range<usize> {
        let taken = self.unused.start..self.unused.start + length;
        if self.unused.len() - length > length {
            // It is less to copy than the others.
            memory[..length].copy_from_slice(self.at_here(length));
            self.use_here(length);
            return 0..length;
        }
        let theirs = std::mem::replace(&mut self.ahead, memory.lend());
        let rest = &theirs.first(self.unused.end)[taken.end..];
        self.ahead.first_mut(rest.len()).copy_from_slice(rest);
        self.unused = 0..rest.len();
        memory.take_back(theirs);
        taken
    }

    /// Fills `bytes` with the next part of a request. Reads ahead no more once a pause is asked for.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let here = self.unused.len().min(bytes.len());
        let (now, mut missing) = bytes.split_at_mut(here);
        now.copy_from_slice(self.at_here(here));
        self.use_here(here);
        let whole = here + missing.len();
        if !missing.is_empty() {
            self.follow(whole);
        }
        while !missing.is_empty() {
            // What follows comes in with the same call, as far as it is there.
            let window = if self.is_pausing() { 0 } else { self.window };
            let slices = &mut [IoSliceMut::new(missing), IoSliceMut::new(self.ahead.first_mut(window))];
            let link = &self.link;
            let length = if whole > LARGE {
                self.rest.wait(|sleeps| receive(link, slices, sleeps))?
            } else {
                retry(|| (&**link).read_vectored(slices))?
            };
            let (now, beyond) = (length.min(missing.len()), length.saturating_sub(missing.len()));
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            missing = &mut missing[now..];
            self.unused = 0..beyond;
        }
        Ok(())
    }
}

/// What has come, waited for with `sleeps`; `None` if nothing has.
fn receive(link: &Link, slices: &mut [IoSliceMut<'_>], sleeps: bool) -> io::Result<Option<usize>> {
    let mut link = link;
    let received = if sleeps { link.read_vectored(slices) } else { link.receive_now(slices) };
    match received {
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
        Err(error) if error.kind() == ErrorKind::WouldBlock && !sleeps => Ok(None),
        other => other.map(Some),
    }
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::super::buffers::{Allowance, Pool};
    use super::super::socket::Socket;
    use super::*;

    /// What is read from whoever has the other end.
    fn connected() -> (Incoming, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Incoming::new(Arc::new(Link::Plain(Socket::Unix(ours))), None), theirs)
    }

    /// Bytes of which no two stretches are alike.
    fn numbered(length: usize) -> Vec<u8> {
        (0..length.div_ceil(4))
            .flat_map(|number| u32::to_be_bytes(number.try_into().unwrap()))
            .take(length)
            .collect()
    }

    #[test]
    fn little_is_read_ahead_behind_large_data_and_much_behind_small() {
        let (incoming, theirs) = connected();
        let sent = numbered(1 << 20);
        std::thread::scope(|threads| {
            threads.spawn(|| (&theirs).write_all(&sent).unwrap());
            // So that whoever writes learns of it if this one fails.
            let mut incoming = incoming;
            let mut taken = Vec::new();
            for length in [LARGE + 1, 4096, LARGE + LITTLE, LARGE + LITTLE, LARGE].into_iter().cycle() {
                if taken.len() + length > sent.len() {
                    break;
                }
                let (start, here) = (taken.len(), incoming.here().len());
                taken.resize(start + length, 0);
                incoming.take(&mut taken[start..]).unwrap();
                if length > here {
                    assert_eq!(incoming.window, if length > LARGE { LITTLE } else { READ_AHEAD });
                    assert!(incoming.here().len() <= incoming.window);
                }
            }
            let start = taken.len();
            taken.resize(sent.len(), 0);
            incoming.take(&mut taken[start..]).unwrap();
            assert!(taken == sent);
        });
    }

    #[test]
    fn what_is_left_of_large_data_is_the_same_to_who_looks_out_for_it() {
        let (incoming, theirs) = connected();
        let sent = numbered(8 << 20);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for (number, part) in sent.chunks(50_001).enumerate() {
                    (&theirs).write_all(part).unwrap();
                    if number % 4 == 0 {
                        // Longer than `proven` looks out.
                        std::thread::sleep(std::time::Duration::from_micros(200));
                    }
                }
            });
            let (mut incoming, mut in_vain) = (incoming, 0);
            for whole in sent.chunks(1 << 20) {
                let mut taken = vec![0; whole.len()];
                incoming.rest = Patience::proven();
                incoming.take(&mut taken).unwrap();
                assert!(taken == whole);
                in_vain += usize::from(!incoming.rest.is_proven());
            }
            assert!(in_vain > 0, "nobody has looked out");
        });
    }

    #[test]
    fn what_is_there_is_read_ahead_in_the_same_way() {
        let (incoming, theirs) = connected();
        let sent = numbered(1 << 20);
        std::thread::scope(|threads| {
            // Not all of it is wanted.
            threads.spawn(|| (&theirs).write_all(&sent).ok());
            let mut incoming = incoming;
            let mut taken = Vec::new();
            for length in [LARGE + 1, 40_000, 0].into_iter().cycle() {
                let (mut data, mut filled) = (vec![0; length], 0);
                if length == 0 {
                    incoming.read_now(&mut [], 0).unwrap();
                }
                while filled < length {
                    let now = incoming.here().len().min(length - filled);
                    data[filled..filled + now].copy_from_slice(incoming.at_here(now));
                    incoming.use_here(now);
                    filled += now;
                    if filled == length {
                        break;
                    }
                    match incoming.read_now(&mut data, filled).unwrap() {
                        Now::Came { asked, .. } => filled += asked,
                        Now::Nothing => std::thread::yield_now(),
                        Now::End => unreachable!("there is enough"),
                    }
                    assert_eq!(incoming.window, if length > LARGE { LITTLE } else { READ_AHEAD });
                    assert!(incoming.here().len() <= incoming.window);
                }
                taken.extend(data);
                if sent.len() - taken.len() < READ_AHEAD {
                    break;
                }
            }
            assert!(taken == sent[..taken.len()]);
        });
    }

    proptest! {
        /// Whether the memory is exchanged or copied from, what is taken and what is still to come are the stream.
        #[test]
        fn an_exchange_takes_what_comes_next_and_leaves_the_rest(
            used in 0..20_000_usize,
            taken in 1..60_000_usize,
            left in 0..60_000_usize,
        ) {
            let (mut incoming, theirs) = connected();
            let sent = numbered(used + taken + left);
            let pool = Pool::new(Arc::new(Allowance::default()), false);
            let mut memory = pool.borrow(READ_AHEAD);
            std::thread::scope(|threads| {
                threads.spawn(|| (&theirs).write_all(&sent).unwrap());
                while incoming.here().len() < sent.len() {
                    incoming.more().unwrap();
                }
            });
            incoming.use_here(used);
            let place = incoming.exchange(&mut memory, taken);
            prop_assert!(memory[place] == sent[used..used + taken]);
            prop_assert!(incoming.here() == &sent[used + taken..]);
            // The memory that it has now is as good as the one before.
            std::thread::scope(|threads| {
                threads.spawn(|| (&theirs).write_all(&sent).unwrap());
                while incoming.here().len() < left + sent.len() {
                    incoming.more().unwrap();
                }
            });
            prop_assert!(incoming.here() == [&sent[used + taken..], &sent].concat());
        }
    }

    /// Messages of these lengths, each of two bytes that tell how many follow.
    fn messages(lengths: &[u16]) -> Vec<u8> {
        let message = |length: &u16| [&length.to_be_bytes()[..], &vec![3; usize::from(*length)]].concat();
        lengths.iter().flat_map(message).collect()
    }

    proptest! {
        /// What is taken before the pause and what the socket still holds are the whole stream, cut between messages.
        #[test]
        fn nothing_is_lost_at_a_pause(
            lengths in prop::collection::vec(prop_oneof![0..40_u16, 0..30_000_u16], 1..40),
            pause_after in 0..40_usize,
            in_the_middle: bool,
        ) {
            let stream = messages(&lengths);
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (mut left, socket) = (ours.try_clone().unwrap(), Arc::new(Link::Plain(Socket::Unix(ours))));
            let sent = stream.clone();
            let writer = std::thread::spawn(move || (&theirs).write_all(&sent).unwrap());
            let pause = Arc::new(Pause::new().unwrap());
            let mut incoming = Incoming::new(socket, Some(pause.clone()));
            let (mut taken, mut ahead) = (Vec::new(), usize::MAX);
            for number in 0.. {
                if number == pause_after && !in_the_middle {
                    pause.ask().unwrap();
                }
                match incoming.next().unwrap() {
                    Next::Request => {}
                    Next::End => {
                        prop_assert_eq!(number, lengths.len());
                        break;
                    }
                    Next::Pause => {
                        prop_assert!(incoming.here().is_empty());
                        prop_assert_eq!(&taken, &messages(&lengths[..number]));
                        break;
                    }
                }
                let mut head = [0; 2];
                incoming.take(&mut head).unwrap();
                if number == pause_after {
                    pause.ask().unwrap();
                    ahead = incoming.here().len();
                }
                let mut body = vec![0; u16::from_be_bytes(head).into()];
                incoming.take(&mut body).unwrap();
                taken.extend([&head[..], &body].concat());
                if number >= pause_after {
                    let now = incoming.here().len();
                    prop_assert!(now <= ahead, "reads ahead after a pause was asked for");
                    ahead = now;
                }
            }
            drop(incoming);
            left.read_to_end(&mut taken).unwrap();
            writer.join().unwrap();
            prop_assert!(taken == stream);
        }
    }
}
