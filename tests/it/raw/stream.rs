//! What a client talks over.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::support::PATIENCE;

pub(crate) trait Stream: Read + Write {
    /// Sends all of `out`; what comes meanwhile goes into `inbox`.
    fn exchange(&mut self, out: &[u8], inbox: &mut VecDeque<u8>) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn exchange(&mut self, out: &[u8], inbox: &mut VecDeque<u8>) -> io::Result<()> {
        exchange(self, out, inbox)
    }
}

impl Stream for TcpStream {
    fn exchange(&mut self, out: &[u8], inbox: &mut VecDeque<u8>) -> io::Result<()> {
        exchange(self, out, inbox)
    }
}

fn exchange(socket: &impl AsFd, mut out: &[u8], inbox: &mut VecDeque<u8>) -> io::Result<()> {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    while !out.is_empty() {
        let mut wanted = [PollFd::new(socket, PollFlags::IN | PollFlags::OUT)];
        if poll(&mut wanted, Some(&patience))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if wanted[0].revents().contains(PollFlags::OUT) {
            match send(socket, out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => out = &out[sent..],
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        } else {
            let mut piece = [0; 65536];
            match recv(socket, &mut piece, RecvFlags::DONTWAIT)? {
                (_, 0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (_, received) => inbox.extend(&piece[..received]),
            }
        }
    }
    Ok(())
}
