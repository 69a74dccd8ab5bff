mod driver;
mod model;

use std::sync::Arc;

use super::{Answer, Fault, Session, Then};
use crate::block::{BlockDevice, BlockError, Extents, Features, Zeroes};
use crate::nbd::server::{Agreed, Export, Exports, Replies, TlsMode};
use crate::nbd::wire::{
    ALLOCATION, ALLOCATION_CONTEXT, ClientFlags, OptionCode as Code, OptionReply as Reply, TransmissionFlags,
};

const CLIENT: ClientFlags = ClientFlags { fixed_newstyle: true, no_zeroes: true };

/// A device of which only the size is asked.
struct Fixed(u64);

impl BlockDevice for Fixed {
    fn size(&self) -> u64 {
        self.0
    }

    fn features(&self) -> Features {
        Features { read_only: false, preferred_block: 4096, always_waits: false }
    }

    fn read(&self, _: u64, _: &mut [u8], _: &mut Extents) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn status(&self, _: u64, _: u64, _: usize, _: &mut Extents) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn cache(&self, _: u64, _: u64) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn write(&self, _: u64, _: &mut [u8], _: bool) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Zeroes, _: bool) -> Result<(), BlockError> {
        Err(BlockError::NotSupported)
    }

    fn stop(&self) {}
}

/// `one`, the default, and `two`, which is read-only and has no description.
fn exports() -> Exports {
    let one = Export {
        name: "one".into(),
        description: "the first".into(),
        device: Arc::new(Fixed(1 << 20)),
        read_only: false,
    };
    let two = Export {
        name: "two".into(),
        description: String::new(),
        device: Arc::new(Fixed(2 << 20)),
        read_only: true,
    };
    Exports::new(vec![one, two])
}

/// A string behind its length.
fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Data of NBD_OPT_INFO and NBD_OPT_GO.
fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let count = u16::try_from(wanted.len()).unwrap().to_be_bytes();
    let wanted = wanted.iter().flat_map(|kind| kind.to_be_bytes()).collect::<Vec<_>>();
    [&string(name)[..], &count, &wanted].concat()
}

/// Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes();
    let queries = queries.iter().flat_map(|query| string(query)).collect::<Vec<_>>();
    [&string(name)[..], &count, &queries].concat()
}

/// The replies in an answer, taken apart: types and data. Panics unless each is a reply to `code`.
fn replies(code: Code, mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut take = |count: usize| {
        let (front, rest) = bytes.split_at(count);
        bytes = rest;
        front.to_vec()
    };
    let mut replies = Vec::new();
    loop {
        let head = take(20);
        let word = |at: usize| u32::from_be_bytes(*head[at..].first_chunk().unwrap());
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(word(8), code.0);
        replies.push((word(12), take(word(16) as usize)));
        if word(12) == Reply::ACK.0 || word(12) >> 31 == 1 {
            assert!(take(0).is_empty() && bytes.is_empty(), "something follows the last reply");
            return replies;
        }
    }
}

/// A client whose options are answered without ending the session, until one does.
struct Haggling<'a>(Option<Session<'a>>);

impl<'a> Haggling<'a> {
    fn with(exports: &'a Exports) -> Self {
        Self(Some(Session::new(exports, CLIENT, TlsMode::Off)))
    }

    fn answer(&mut self, code: Code, data: &[u8]) -> Answer<'a> {
        self.0.take().unwrap().option(code, Some(data))
    }

    /// All replies to an option after which the session goes on.
    fn ask(&mut self, code: Code, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let answer = self.answer(code, data);
        let Then::GoOn(session) = answer.then else { panic!("{code:?} ended the session") };
        self.0 = Some(session);
        replies(code, &answer.bytes)
    }

    /// The type of the last reply.
    fn verdict(&mut self, code: Code, data: &[u8]) -> Reply {
        Reply(self.ask(code, data).pop().unwrap().0)
    }

    /// What NBD_OPT_GO ends with: the export's name, what was agreed on, and the transmission flags.
    fn go(mut self, name: &str) -> (String, Agreed, u16) {
        let answer = self.answer(Code::GO, &info(name, &[]));
        let told = replies(Code::GO, &answer.bytes).remove(0).1;
        let Then::Transmit(export, agreed) = answer.then else { panic!("not chosen") };
        (export.name.clone(), agreed, u16::from_be_bytes(*told.last_chunk().unwrap()))
    }
}

const DF: u16 = TransmissionFlags::SEND_DF.0;

#[test]
fn list_names_every_export_with_its_description() {
    let exports = exports();
    let listed = Haggling::with(&exports).ask(Code::LIST, b"");
    let server = |name: &str, text: &str| (Reply::SERVER.0, [&string(name)[..], text.as_bytes()].concat());
    assert_eq!(listed, [server("one", "the first"), server("two", ""), (Reply::ACK.0, Vec::new())]);
}

#[test]
fn info_and_go_tell_the_same_and_only_what_is_there() {
    let exports = exports();
    for (name, size, first) in [("", 1_u64 << 20, true), ("one", 1 << 20, true), ("two", 2 << 20, false)] {
        let wanted = info(name, &[1, 2, 3, 99]);
        let told = Haggling::with(&exports).ask(Code::INFO, &wanted);
        let mut haggling = Haggling::with(&exports);
        let answer = haggling.answer(Code::GO, &wanted);
        assert_eq!(replies(Code::GO, &answer.bytes), told);
        assert!(matches!(answer.then, Then::Transmit(..)));
        let kind = |(_, data): &(u32, Vec<u8>)| data.first_chunk().map(|kind| u16::from_be_bytes(*kind));
        let kinds: Vec<_> = told.iter().filter_map(kind).collect();
        assert_eq!(kinds, if first { vec![0, 3, 1, 2] } else { vec![0, 3, 1] });
        assert_eq!(told[0].1[2..10], size.to_be_bytes());
        let canonical = if first { "one" } else { "two" };
        assert_eq!(told[2].1[2..], *canonical.as_bytes());
    }
}

#[test]
fn reply_modes_are_agreed_on_once_and_extended_headers_are_the_higher_one() {
    let exports = exports();
    let mut it = Haggling::with(&exports);
    assert_eq!(it.verdict(Code::STRUCTURED_REPLY, b""), Reply::ACK);
    assert_eq!(it.verdict(Code::STRUCTURED_REPLY, b""), Reply::ERR_INVALID);
    assert_eq!(it.verdict(Code::EXTENDED_HEADERS, b""), Reply::ACK);
    assert_eq!(it.verdict(Code::EXTENDED_HEADERS, b""), Reply::ERR_INVALID);
    assert_eq!(it.verdict(Code::STRUCTURED_REPLY, b""), Reply::ERR_EXT_HEADER_REQD);
    assert_eq!(it.go("one").1.replies, Replies::Extended);
}

#[test]
fn fragments_can_be_forbidden_where_there_are_any() {
    let exports = exports();
    for (options, replies, df) in [
        (&[][..], Replies::Simple, 0),
        (&[Code::STRUCTURED_REPLY], Replies::Structured, DF),
        (&[Code::EXTENDED_HEADERS], Replies::Extended, DF),
    ] {
        let mut it = Haggling::with(&exports);
        for option in options {
            assert_eq!(it.verdict(*option, b""), Reply::ACK);
        }
        let (name, agreed, flags) = it.go("two");
        assert_eq!((&name[..], agreed, flags & DF), ("two", Agreed { replies, allocation: false }, df));
    }
}

#[test]
fn options_without_data_take_none() {
    let exports = exports();
    for code in [Code::LIST, Code::STRUCTURED_REPLY, Code::EXTENDED_HEADERS] {
        let mut it = Haggling::with(&exports);
        assert_eq!(it.verdict(code, b"x"), Reply::ERR_INVALID, "{code:?}");
        assert_eq!(it.verdict(code, b""), Reply::ACK, "{code:?} is as good as new");
    }
}

#[test]
fn contexts_need_structured_replies_first() {
    let exports = exports();
    let mut it = Haggling::with(&exports);
    for code in [Code::LIST_META_CONTEXT, Code::SET_META_CONTEXT] {
        assert_eq!(it.verdict(code, &contexts("", &[ALLOCATION])), Reply::ERR_INVALID);
    }
    for first in [Code::STRUCTURED_REPLY, Code::EXTENDED_HEADERS] {
        let mut it = Haggling::with(&exports);
        it.verdict(first, b"");
        let entry =
            |id: u32| (Reply::META_CONTEXT.0, [&id.to_be_bytes()[..], ALLOCATION.as_bytes()].concat());
        let ack = (Reply::ACK.0, Vec::new());
        let asked = contexts("", &[ALLOCATION, "x:y"]);
        assert_eq!(it.ask(Code::LIST_META_CONTEXT, &asked), [entry(0), ack.clone()]);
        assert_eq!(it.ask(Code::LIST_META_CONTEXT, &contexts("two", &["base:"])), [entry(0), ack.clone()]);
        assert_eq!(it.ask(Code::LIST_META_CONTEXT, &contexts("two", &[])), [entry(0), ack.clone()]);
        assert_eq!(it.ask(Code::LIST_META_CONTEXT, &contexts("two", &["x:"])), vec![ack.clone()]);
        assert_eq!(it.ask(Code::SET_META_CONTEXT, &contexts("", &[])), vec![ack.clone()]);
        assert_eq!(it.ask(Code::SET_META_CONTEXT, &contexts("", &["base:"])), vec![ack.clone()]);
        assert_eq!(it.ask(Code::SET_META_CONTEXT, &asked), [entry(ALLOCATION_CONTEXT), ack]);
        assert!(it.go("one").1.allocation, "the empty name and the default export's are the same export");
    }
}

#[test]
fn a_status_may_be_filtered_where_there_is_a_context_and_headers_have_room() {
    const PAYLOAD: u16 = TransmissionFlags::BLOCK_STATUS_PAYLOAD.0;
    let exports = exports();
    for (headers, context, offered) in [
        (Code::STRUCTURED_REPLY, true, 0),
        (Code::EXTENDED_HEADERS, false, 0),
        (Code::EXTENDED_HEADERS, true, PAYLOAD),
    ] {
        let mut it = Haggling::with(&exports);
        it.verdict(headers, b"");
        if context {
            assert_eq!(it.ask(Code::SET_META_CONTEXT, &contexts("one", &[ALLOCATION])).len(), 2);
        }
        assert_eq!(it.go("one").2 & PAYLOAD, offered);
    }
}

#[test]
fn a_context_lapses_with_the_next_selection_and_with_another_export() {
    let exports = exports();
    let selected = || {
        let mut it = Haggling::with(&exports);
        it.verdict(Code::STRUCTURED_REPLY, b"");
        assert_eq!(it.ask(Code::SET_META_CONTEXT, &contexts("one", &[ALLOCATION])).len(), 2);
        it
    };
    assert!(selected().go("").1.allocation);
    assert!(!selected().go("two").1.allocation);
    for (data, verdict) in [
        (contexts("one", &[]), Reply::ACK),
        (contexts("none", &[ALLOCATION]), Reply::ERR_UNKNOWN),
        (b"?".to_vec(), Reply::ERR_INVALID),
        (contexts("one", &["x:"; 1025]), Reply::ERR_TOO_BIG),
    ] {
        let mut it = selected();
        assert_eq!(it.verdict(Code::SET_META_CONTEXT, &data), verdict);
        assert!(!it.go("one").1.allocation, "{verdict:?} replaces what was selected");
    }
    let mut it = selected();
    assert_eq!(it.verdict(Code::EXTENDED_HEADERS, b""), Reply::ACK);
    assert!(it.go("one").1.allocation, "only the headers change");
}

#[test]
fn export_name_begins_transmission_or_ends_the_session() {
    let exports = exports();
    let ask = |client: ClientFlags, first: Option<Code>, name: &[u8]| {
        let mut session = Session::new(&exports, client, TlsMode::Off);
        if let Some(code) = first {
            let Then::GoOn(next) = session.option(code, Some(b"")).then else { panic!("{code:?}") };
            session = next;
        }
        session.option(Code::EXPORT_NAME, Some(name))
    };
    let (short, long) = (
        ClientFlags { fixed_newstyle: true, no_zeroes: true },
        ClientFlags { fixed_newstyle: true, no_zeroes: false },
    );
    for (client, length) in [(short, 10), (long, 134)] {
        let answer = ask(client, None, b"two");
        assert_eq!(answer.bytes.len(), length);
        assert_eq!(answer.bytes[..8], (2_u64 << 20).to_be_bytes());
        assert!(matches!(answer.then, Then::Transmit(export, agreed)
            if export.name == "two" && agreed == Agreed::default()));
    }
    let answer = ask(short, Some(Code::STRUCTURED_REPLY), b"");
    assert_eq!(u16::from_be_bytes([answer.bytes[8], answer.bytes[9]]) & DF, DF);
    assert!(matches!(answer.then, Then::Transmit(_, agreed) if agreed.replies == Replies::Structured));
    for (first, name, fault) in [
        (None, &b"none"[..], Fault::NoSuchExport("none".into())),
        (None, b"\xff", Fault::NoSuchExport("\u{fffd}".into())),
        (None, &[b'x'; 4097], Fault::LongName),
        (Some(Code::EXTENDED_HEADERS), b"one", Fault::ExportNameExtended),
    ] {
        let answer = ask(short, first, name);
        assert_eq!(answer.bytes, b"");
        assert!(matches!(answer.then, Then::HangUp(found) if found == fault), "{fault}");
    }
}

#[test]
fn abort_is_acknowledged_and_the_last() {
    let exports = exports();
    for data in [&b""[..], b"because"] {
        let answer = Haggling::with(&exports).answer(Code::ABORT, data);
        assert_eq!(replies(Code::ABORT, &answer.bytes), [(Reply::ACK.0, Vec::new())]);
        assert!(matches!(answer.then, Then::Over));
    }
}

#[test]
fn what_is_too_long_or_unknown_is_refused_and_the_session_goes_on() {
    let exports = exports();
    let verdict = |code: Code| {
        let session = Session::new(&exports, CLIENT, TlsMode::Off);
        let Then::GoOn(session) = session.option(Code::STRUCTURED_REPLY, Some(b"")).then else {
            panic!("refused")
        };
        let answer = session.option(code, None);
        assert!(matches!(answer.then, Then::GoOn(_)));
        Reply(replies(code, &answer.bytes).remove(0).0)
    };
    for code in [Code::INFO, Code::GO, Code::LIST_META_CONTEXT, Code::SET_META_CONTEXT] {
        assert_eq!(verdict(code), Reply::ERR_TOO_BIG, "{code:?}");
    }
    for code in [Code::LIST, Code::STRUCTURED_REPLY, Code::EXTENDED_HEADERS] {
        assert_eq!(verdict(code), Reply::ERR_INVALID, "{code:?}");
    }
    for code in [0, 4, 12, u32::MAX] {
        assert_eq!(verdict(Code(code)), Reply::ERR_UNSUP, "{code}");
    }
}

#[test]
fn while_the_server_ends_nothing_is_granted_any_more() {
    let exports = exports();
    for code in [Code::LIST, Code::INFO, Code::GO, Code::STRUCTURED_REPLY, Code(99)] {
        let session = Session::new(&exports, CLIENT, TlsMode::Off);
        let answer = session.shut_down(code);
        assert_eq!(replies(code, &answer.bytes).remove(0).0, Reply::ERR_SHUTDOWN.0);
        assert!(matches!(answer.then, Then::GoOn(_)), "the client is to say farewell itself");
    }
    let session = || Session::new(&exports, CLIENT, TlsMode::Off);
    let answer = session().shut_down(Code::EXPORT_NAME);
    assert!(answer.bytes.is_empty() && matches!(answer.then, Then::HangUp(Fault::ShuttingDown)));
    let answer = session().shut_down(Code::ABORT);
    assert_eq!(replies(Code::ABORT, &answer.bytes), [(Reply::ACK.0, Vec::new())]);
    assert!(matches!(answer.then, Then::Over));
}

/// A session under TLS.
fn secured(exports: &Exports, mode: TlsMode) -> Session<'_> {
    let answer = Session::new(exports, CLIENT, mode).option(Code::STARTTLS, Some(b""));
    assert_eq!(replies(Code::STARTTLS, &answer.bytes), [(Reply::ACK.0, Vec::new())]);
    let Then::StartTls(upgrade) = answer.then else { panic!("no TLS") };
    upgrade.secured()
}

#[test]
fn tls_begins_once_where_it_is_configured_and_takes_no_data() {
    let exports = exports();
    let verdict = |session: Session<'_>, data: &[u8]| {
        let answer = session.option(Code::STARTTLS, Some(data));
        assert!(matches!(answer.then, Then::GoOn(_)));
        Reply(replies(Code::STARTTLS, &answer.bytes).remove(0).0)
    };
    assert_eq!(verdict(Session::new(&exports, CLIENT, TlsMode::Off), b""), Reply::ERR_POLICY);
    for mode in [TlsMode::On, TlsMode::Require] {
        assert_eq!(verdict(Session::new(&exports, CLIENT, mode), b"x"), Reply::ERR_INVALID);
        assert_eq!(verdict(secured(&exports, mode), b""), Reply::ERR_INVALID);
        assert_eq!(Haggling(Some(secured(&exports, mode))).go("two").0, "two");
    }
}

#[test]
fn without_tls_nothing_goes_where_it_is_required() {
    let exports = exports();
    let mut it = Haggling(Some(Session::new(&exports, CLIENT, TlsMode::Require)));
    for code in (0..13).filter(|code| ![1, 2, 5].contains(code)) {
        for data in [Some(&b""[..]), Some(b"x"), None] {
            let answer = it.0.take().unwrap().option(Code(code), data);
            assert_eq!(replies(Code(code), &answer.bytes).remove(0).0, Reply::ERR_TLS_REQD.0, "{code}");
            let Then::GoOn(session) = answer.then else { panic!("{code} ended the session") };
            it.0 = Some(session);
        }
    }
    let answer = it.answer(Code::EXPORT_NAME, b"one");
    assert!(answer.bytes.is_empty() && matches!(answer.then, Then::HangUp(Fault::WithoutTls)));
    let answer = Session::new(&exports, CLIENT, TlsMode::Require).option(Code::ABORT, Some(b""));
    assert!(matches!(answer.then, Then::Over));
}

#[test]
fn nothing_that_was_agreed_on_in_the_clear_holds_under_tls() {
    let exports = exports();
    let mut it = Haggling(Some(Session::new(&exports, CLIENT, TlsMode::On)));
    it.verdict(Code::EXTENDED_HEADERS, b"");
    it.verdict(Code::SET_META_CONTEXT, &contexts("one", &[ALLOCATION]));
    let answer = it.answer(Code::STARTTLS, b"");
    let Then::StartTls(upgrade) = answer.then else { panic!("no TLS") };
    let (_, agreed, flags) = Haggling(Some(upgrade.secured())).go("one");
    assert_eq!((agreed, flags & DF), (Agreed::default(), 0));
}

#[test]
fn a_client_that_does_not_say_it_is_of_fixed_newstyle_gets_no_tls() {
    let exports = exports();
    let old = ClientFlags { fixed_newstyle: false, ..CLIENT };
    let mut it = Haggling(Some(Session::new(&exports, old, TlsMode::On)));
    assert_eq!(it.verdict(Code::STARTTLS, b""), Reply::ERR_POLICY);
    it.go("one");
    let mut it = Haggling(Some(Session::new(&exports, old, TlsMode::Require)));
    assert_eq!(it.verdict(Code::STARTTLS, b""), Reply::ERR_POLICY);
    assert_eq!(it.verdict(Code::GO, b""), Reply::ERR_TLS_REQD);
    let answer = it.answer(Code::EXPORT_NAME, b"one");
    assert!(answer.bytes.is_empty() && matches!(answer.then, Then::HangUp(Fault::WithoutTls)));
}
