//! What a server said, held against what it was asked: every option answered in its place, every request answered
//! exactly once, every reply of the form that was agreed on, and nothing else (doc/proto.md).
//!
//! Constants stand here once more, so that a wrong one in `nbd::wire` is no excuse.

mod replies;

use std::collections::HashMap;

use replies::{Asked, Replies};

const IHAVEOPT: &[u8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const COMPACT_REQUEST: u32 = 0x2560_9513;
const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Bytes of a piece of zeros that is longer than what moves in one piece.
const ZEROS: usize = (1 << 20) + (1 << 18);
/// Longest payload that a server of ours takes.
const MAX_PAYLOAD: u64 = 64 << 20;
/// Options, and bytes of their data, after which a server of ours has enough.
const MAX_OPTIONS: usize = 1024;
const MAX_DATA: usize = 16 << 20;

const DISC: u16 = 2;
const WRITE: u16 = 1;
const PAYLOAD_LEN: u16 = 1 << 5;

/// How requests and replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Simple,
    Structured,
    Extended,
}

/// What was agreed on when transmission began.
#[derive(Clone, Copy)]
struct Agreed {
    mode: Mode,
    /// The number of the metadata context that was selected.
    context: Option<u32>,
}

/// `input` with a cookie of its own in everything that looks like a request, and perhaps zeros after it.
pub(super) fn with_cookies(input: &[u8], zeros: bool) -> Vec<u8> {
    let own = input.len();
    let mut input = input.to_vec();
    if zeros {
        input.resize(own + ZEROS, 0);
    }
    let (mut at, mut cookie) = (0, 0_u64);
    // By numbers, and not among the zeros: the fuzzer looks closely at every comparison of bytes, which takes longer
    // than the whole conversation.
    while at < own
        && let Some((magic, rest)) = input[at..].split_first_chunk()
        && rest.len() >= 12
    {
        if [COMPACT_REQUEST, EXTENDED_REQUEST].contains(&u32::from_be_bytes(*magic)) {
            cookie += 1;
            input[at + 8..at + 16].copy_from_slice(&cookie.to_be_bytes());
            at += 16;
        } else {
            at += 1;
        }
    }
    input
}

/// Checks a handshake and everything after it.
pub(super) fn conversation(input: &[u8], output: &[u8]) {
    let (mut input, mut output) = (Bytes(input), Bytes(output));
    match agree(&mut input, &mut output) {
        Some(agreed) => transmission(&mut input, &mut output, agreed),
        None => assert!(output.0.is_empty(), "{} bytes after the end of a handshake", output.0.len()),
    }
}

/// Checks a handshake, after which nothing is sent.
pub(super) fn handshake(input: &[u8], output: &[u8]) {
    let (mut input, mut output) = (Bytes(input), Bytes(output));
    agree(&mut input, &mut output);
    assert!(output.0.is_empty(), "{} bytes after the end of a handshake", output.0.len());
}

/// Follows a handshake to its end; nothing if it does not lead to transmission.
fn agree(input: &mut Bytes<'_>, output: &mut Bytes<'_>) -> Option<Agreed> {
    assert_eq!(output.take(18), Some(&b"NBDMAGICIHAVEOPT\0\x03"[..]), "a greeting");
    let flags = input.number(4)?;
    if flags & !3 != 0 {
        return None;
    }
    let mut agreed = Agreed { mode: Mode::Simple, context: None };
    let mut budget = MAX_DATA;
    for _ in 0..MAX_OPTIONS {
        if input.take(8)? != IHAVEOPT {
            return None;
        }
        let (option, length) = (input.number(4)?, input.length(4)?);
        if length > budget {
            // The last word, if there is one that fits.
            if !output.0.is_empty() {
                option_reply(output, option);
            }
            return None;
        }
        budget -= length;
        input.take(length)?;
        match option {
            1 => return chosen_by_name(output, flags & 2 == 0).then_some(agreed),
            2 => {
                assert_eq!(option_reply(output, option).0, 1, "NBD_OPT_ABORT is acknowledged");
                return None;
            }
            _ => {
                let acknowledged = other_option(output, option, &mut agreed);
                if option == 7 && acknowledged {
                    return Some(agreed);
                }
            }
        }
    }
    None
}

/// NBD_OPT_EXPORT_NAME: answered without a header, or not at all.
fn chosen_by_name(output: &mut Bytes<'_>, zeroes: bool) -> bool {
    if output.0.is_empty() {
        return false;
    }
    let answer = output.take(if zeroes { 134 } else { 10 }).unwrap_or_else(|| panic!("half an answer"));
    assert!(answer[10..].iter().all(|byte| *byte == 0));
    assert_eq!(answer[9] & 1, 1, "NBD_FLAG_HAS_FLAGS");
    true
}

/// All replies to an option that has any number of them; true if the last is an acknowledgement.
fn other_option(output: &mut Bytes<'_>, option: u64, agreed: &mut Agreed) -> bool {
    let mut context = None;
    let acknowledged = loop {
        let (kind, data) = option_reply(output, option);
        match (kind, option) {
            (1, _) => {
                assert!(data.is_empty(), "an acknowledgement with data");
                break true;
            }
            (2, 3) => {
                let name =
                    Bytes(data).length(4).unwrap_or_else(|| panic!("an entry without a name's length"));
                assert!(name <= data.len() - 4, "a name longer than its entry");
            }
            (3, 6 | 7) => info(data),
            (4, 9 | 10) => {
                let (number, name) = data.split_at(4);
                assert_eq!(name, b"base:allocation");
                let number = u32::from_be_bytes(number.try_into().unwrap_or_default());
                assert_eq!(context.replace(number), None, "a context comes twice");
            }
            _ => {
                assert!(kind >> 31 == 1, "reply {kind:#x} to option {option}");
                assert!((1..=10).contains(&(kind & 0x7fff_ffff)), "no such error: {kind:#x}");
                assert!(std::str::from_utf8(data).is_ok(), "an error that nobody can read");
                break false;
            }
        }
    };
    match option {
        8 if acknowledged && agreed.mode == Mode::Simple => agreed.mode = Mode::Structured,
        11 if acknowledged => agreed.mode = Mode::Extended,
        // "If the server does not answer with NBD_REP_ACK, no contexts are selected."
        10 => agreed.context = context.filter(|_| acknowledged),
        _ => {}
    }
    acknowledged
}

/// NBD_REP_INFO.
fn info(data: &[u8]) {
    let (kind, rest) =
        data.split_first_chunk().unwrap_or_else(|| panic!("a piece of information of no type"));
    match u16::from_be_bytes(*kind) {
        0 => assert!(rest.len() == 10 && rest[9] & 1 == 1, "size and flags: {rest:?}"),
        1 | 2 => assert!(std::str::from_utf8(rest).is_ok(), "text: {rest:?}"),
        3 => assert_eq!(rest.len(), 12, "block sizes: {rest:?}"),
        kind => panic!("information of type {kind}"),
    }
}

/// Type and data of one reply to `option`.
fn option_reply<'a>(output: &mut Bytes<'a>, option: u64) -> (u64, &'a [u8]) {
    let mut reply = || {
        assert_eq!(output.number(8)?, OPTION_REPLY);
        assert_eq!(output.number(4)?, option, "an answer to another option");
        let (kind, length) = (output.number(4)?, output.length(4)?);
        Some((kind, output.take(length)?))
    };
    reply().unwrap_or_else(|| panic!("option {option} is not answered"))
}

/// Every request that is wholly there is answered, and answered once.
fn transmission(input: &mut Bytes<'_>, output: &mut Bytes<'_>, agreed: Agreed) {
    let mut asked = HashMap::new();
    while let Some((cookie, request)) = next_request(input, agreed.mode) {
        // Two requests in flight under one cookie cannot be told apart, which is their client's fault.
        if asked.insert(cookie, request).is_some() {
            return;
        }
    }
    Replies { agreed, asked }.check(output);
}

/// The next request that is to be answered, before the client says goodbye, errs or is at its end.
fn next_request(input: &mut Bytes<'_>, mode: Mode) -> Option<(u64, Asked)> {
    let (magic, width) = match mode {
        Mode::Extended => (EXTENDED_REQUEST, 8),
        _ => (COMPACT_REQUEST, 4),
    };
    if input.number(4)? != u64::from(magic) {
        return None;
    }
    let (flags, command) = (input.half()?, input.half()?);
    let (cookie, offset, length) = (input.number(8)?, input.number(8)?, input.number(width)?);
    if command == DISC {
        return None;
    }
    let mut asked = Asked::new(flags, command, offset, length);
    if command == WRITE || (mode == Mode::Extended && flags & PAYLOAD_LEN != 0) {
        if length > MAX_PAYLOAD {
            return None;
        }
        asked.take_payload(Bytes(input.take(usize::try_from(length).ok()?)?));
    }
    Some((cookie, asked))
}

/// Bytes that are taken from the front, big-endian.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    /// Of at most eight bytes.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn half(&mut self) -> Option<u16> {
        u16::try_from(self.number(2)?).ok()
    }

    fn length(&mut self, bytes: usize) -> Option<usize> {
        usize::try_from(self.number(bytes)?).ok()
    }
}
