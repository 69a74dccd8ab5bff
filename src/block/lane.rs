//! Reads and writes of one thread that are under way at once: what a device offers that is better served in depth.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{BlockError, Extents};
use crate::pages::Pages;

/// Most transfers of a lane that are under way at once; their tokens are below it.
pub const DEPTH: usize = 128;

/// Which way a [`Transfer`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

/// A read, or a write without FUA, and the memory that it is about.
pub struct Transfer {
    /// Below [`DEPTH`], and no other's that is under way: tells whoever began it which one it is.
    pub token: usize,
    /// Which way.
    pub direction: Direction,
    /// Of the device, in bytes.
    pub offset: u64,
    /// Bytes; at least one.
    pub length: usize,
    /// What is written, or where to it is read: as many of its first bytes.
    pub pages: Pages,
    /// Of a write, how many of its first bytes were prepared, by one [`Lane::prepare`] after the other.
    pub prepared: usize,
}

impl Transfer {
    /// The bytes that it is about.
    pub fn data(&mut self) -> &mut [u8] {
        self.pages.first_mut(self.length)
    }
}

/// What a watched descriptor is to be ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to read, or the end of it.
    Input,
    /// There is room to write.
    Room,
}

/// What has happened on a lane.
pub enum Event {
    /// A transfer has ended. After a write, its bytes are unspecified.
    Done(Transfer, Result<(), BlockError>),
    /// A descriptor that is watched under this token is ready, or can never be. It is not watched any more.
    Ready(usize),
}

/// Transfers of one thread. Dropped, it waits for those that are under way.
pub trait Lane {
    /// False for a transfer that [`Lane::begin`] would give back whatever else is under way.
    fn takes(&self, direction: Direction, offset: u64, length: usize) -> bool;

    /// Does for a write that it [takes](Lane::takes), and whose data is still coming in, what [`Lane::begin`] would do
    /// later: to `data`, from its start. Returns how many bytes that were, which hold anything from now on. `offset` is
    /// where `data` goes: that of the write, or where what was prepared of it before ends.
    fn prepare(&self, offset: u64, data: &mut [u8]) -> usize;

    /// Begins a transfer inside the device, which has it after [`Lane::hand_over`] at the latest, or after a
    /// [`Lane::wait`] that finds nothing to tell; gives it back as it was before it was prepared if the device would
    /// have to wait before it begins, or wants it whole otherwise: [`BlockDevice::read`](super::BlockDevice::read) and
    /// [`write`](super::BlockDevice::write) do it then.
    ///
    /// # Errors
    /// The transfer.
    fn begin(&mut self, transfer: Transfer) -> Result<(), Transfer>;

    /// Transfers that have begun, and whose end has not been told.
    fn under_way(&self) -> usize;

    /// Waits for `descriptor` as well. `token` is any number, and no other's that is being waited for.
    fn watch(&mut self, descriptor: BorrowedFd<'_>, readiness: Readiness, token: usize);

    /// Hands what has begun to the device, and waits for nothing. What it cannot take now, it is given the next time.
    ///
    /// # Errors
    /// The operating system's: nothing will happen any more.
    fn hand_over(&mut self) -> io::Result<()>;

    /// Looks whether there is something to tell, or more of it unless there is much, without waiting and mostly without a
    /// system call.
    ///
    /// # Errors
    /// The operating system's: nothing will happen any more.
    fn look(&mut self) -> io::Result<()>;

    /// True if [`Lane::next`] has something to tell.
    fn has_more(&self) -> bool;

    /// Waits until there is something to tell, of which there may be more, or the time is over.
    ///
    /// # Errors
    /// The operating system's: nothing will happen any more.
    fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()>;

    /// What has happened, if there is more to tell. Of a read that has ended well, `extents`, which may hold anything,
    /// tells what its bytes are.
    fn next(&mut self, extents: &mut Extents) -> Option<Event>;
}
