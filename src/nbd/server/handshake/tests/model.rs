//! Any options in any order, against a model of what may be answered.

use proptest::prelude::*;

use super::*;

/// What a client sends.
#[derive(Clone, Debug)]
enum Asked {
    ExportName(&'static str),
    Abort,
    List,
    Info(&'static str),
    Go(&'static str),
    StructuredReply,
    ExtendedHeaders,
    ListContexts(&'static str, Vec<&'static str>),
    SetContexts(&'static str, Vec<&'static str>),
    Unknown(u32),
    /// Anything, or too much of it.
    Noise(u32, Option<Vec<u8>>),
}

fn asked() -> impl Strategy<Value = Asked> {
    let name = || prop::sample::select(vec!["", "one", "two", "none"]);
    let query = prop::sample::select(vec!["base:allocation", "base:", "base:x", "x:allocation", "nothing"]);
    let queries = prop::collection::vec(query, 0..3);
    let noise = (0_u32..13, prop::option::of(prop::collection::vec(any::<u8>(), 1..20)));
    prop_oneof![
        1 => name().prop_map(Asked::ExportName),
        1 => Just(Asked::Abort),
        2 => Just(Asked::List),
        4 => name().prop_map(Asked::Info),
        2 => name().prop_map(Asked::Go),
        4 => Just(Asked::StructuredReply),
        4 => Just(Asked::ExtendedHeaders),
        6 => (name(), queries.clone()).prop_map(|(name, queries)| Asked::ListContexts(name, queries)),
        6 => (name(), queries).prop_map(|(name, queries)| Asked::SetContexts(name, queries)),
        2 => (12_u32..).prop_map(Asked::Unknown),
        4 => noise.prop_map(|(code, data)| Asked::Noise(code, data)),
    ]
}

impl Asked {
    fn encode(&self) -> (Code, Option<Vec<u8>>) {
        match self {
            Self::ExportName(name) => (Code::EXPORT_NAME, Some(name.as_bytes().to_vec())),
            Self::Abort => (Code::ABORT, Some(Vec::new())),
            Self::List => (Code::LIST, Some(Vec::new())),
            Self::Info(name) => (Code::INFO, Some(info(name, &[2, 1]))),
            Self::Go(name) => (Code::GO, Some(info(name, &[]))),
            Self::StructuredReply => (Code::STRUCTURED_REPLY, Some(Vec::new())),
            Self::ExtendedHeaders => (Code::EXTENDED_HEADERS, Some(Vec::new())),
            Self::ListContexts(name, queries) => (Code::LIST_META_CONTEXT, Some(contexts(name, queries))),
            Self::SetContexts(name, queries) => (Code::SET_META_CONTEXT, Some(contexts(name, queries))),
            Self::Unknown(code) => (Code(*code), Some(b"whatever".to_vec())),
            Self::Noise(code, data) => (Code(*code), data.clone()),
        }
    }
}

/// What a client and the server know of each other.
struct Model {
    replies: Replies,
    selected: Option<&'static str>,
}

/// The export that a name stands for.
fn canonical(name: &'static str) -> Option<&'static str> {
    match name {
        "" => Some("one"),
        "none" => None,
        name => Some(name),
    }
}

impl Model {
    /// The last reply's type, and how many replies come before it; `None` for what is not answered so.
    fn expects(&mut self, asked: &Asked) -> Option<(Reply, usize)> {
        let structured = self.replies != Replies::Simple;
        Some(match asked {
            Asked::ExportName(_) | Asked::Noise(..) => return None,
            Asked::Abort => (Reply::ACK, 0),
            Asked::List => (Reply::ACK, 2),
            Asked::Info(name) => match canonical(name) {
                Some("one") => (Reply::ACK, 4),
                Some(_) => (Reply::ACK, 3),
                None => (Reply::ERR_UNKNOWN, 0),
            },
            Asked::Go(name) => canonical(name).map_or((Reply::ERR_UNKNOWN, 0), |_| (Reply::ACK, 2)),
            Asked::StructuredReply => match self.replies {
                Replies::Simple => {
                    self.replies = Replies::Structured;
                    (Reply::ACK, 0)
                }
                Replies::Structured => (Reply::ERR_INVALID, 0),
                Replies::Extended => (Reply::ERR_EXT_HEADER_REQD, 0),
            },
            Asked::ExtendedHeaders if self.replies == Replies::Extended => (Reply::ERR_INVALID, 0),
            Asked::ExtendedHeaders => {
                self.replies = Replies::Extended;
                (Reply::ACK, 0)
            }
            Asked::ListContexts(..) | Asked::SetContexts(..) if !structured => (Reply::ERR_INVALID, 0),
            Asked::ListContexts(name, queries) => {
                let all = queries.is_empty() || queries.contains(&"base:") || queries.contains(&ALLOCATION);
                canonical(name).map_or((Reply::ERR_UNKNOWN, 0), |_| (Reply::ACK, all.into()))
            }
            Asked::SetContexts(name, queries) => {
                self.selected = canonical(name).filter(|_| queries.contains(&ALLOCATION));
                let found = self.selected.is_some().into();
                canonical(name).map_or((Reply::ERR_UNKNOWN, 0), |_| (Reply::ACK, found))
            }
            Asked::Unknown(_) => (Reply::ERR_UNSUP, 0),
        })
    }

    fn agreed(&self, name: &str) -> Agreed {
        Agreed { replies: self.replies, allocation: self.selected == Some(name) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_option_has_its_answer_and_no_more(options in prop::collection::vec(asked(), 1..30), tls: bool) {
        let exports = exports();
        let mut model = Model { replies: Replies::Simple, selected: None };
        let clear = || Session::new(&exports, CLIENT, TlsMode::Off);
        let mut session = if tls { secured(&exports, TlsMode::Require) } else { clear() };
        for asked in options {
            let (code, data) = asked.encode();
            let answer = session.option(code, data.as_deref());
            let expected = model.expects(&asked);
            if let Some((verdict, before)) = expected {
                let said = replies(code, &answer.bytes);
                prop_assert_eq!((Reply(said.last().unwrap().0), said.len() - 1), (verdict, before), "{:?}", asked);
            } else if code == Code::EXPORT_NAME {
                let chosen = matches!(answer.then, Then::Transmit(..));
                prop_assert_eq!(answer.bytes.len(), if chosen { 10 } else { 0 });
            } else {
                replies(code, &answer.bytes);
                if code == Code::SET_META_CONTEXT {
                    model.selected = None;
                }
            }
            session = match (answer.then, &asked) {
                (Then::GoOn(session), _) => session,
                (Then::Transmit(export, agreed), Asked::ExportName(name) | Asked::Go(name)) => {
                    prop_assert_eq!(Some(&export.name[..]), canonical(name));
                    prop_assert_eq!(agreed, model.agreed(&export.name));
                    return Ok(());
                }
                (Then::Transmit(_, agreed), Asked::Noise(1 | 7, _)) => {
                    prop_assert_eq!(agreed.replies, model.replies);
                    return Ok(());
                }
                // TLS is not configured, or runs already.
                (Then::StartTls(_), _) => return Err(TestCaseError::fail("TLS begins")),
                (Then::Over, Asked::Abort | Asked::Noise(2, _)) => return Ok(()),
                (Then::HangUp(_), Asked::ExportName(_) | Asked::Noise(1, _)) => return Ok(()),
                _ => return Err(TestCaseError::fail(format!("{asked:?} ended the session"))),
            };
        }
    }
}
