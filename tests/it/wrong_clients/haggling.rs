//! Nonsense in the handshake.

use super::{ELSEWHERE, beside};
use crate::raw::{
    ALLOCATION, Client, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, GO, INFO, LIST, LIST_META_CONTEXT,
    SET_META_CONTEXT, STRUCTURED_REPLY, meta_context, string,
};

#[test]
fn garbage_instead_of_a_handshake() {
    beside(|socket| {
        for garbage in
            [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], &[0; 64], b"\x16\x03\x01\x02\0"]
        {
            let mut client = Client::greeted(socket);
            client.send(garbage);
            // So that the shortest one is at its end, too.
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            client.is_hung_up_on();
        }
    });
}

/// "If the server receives unknown flags, it MUST terminate the session."
#[test]
fn client_flags_that_nobody_knows() {
    beside(|socket| {
        for flags in [4_u32, 1 << 31, u32::MAX] {
            let mut client = Client::greeted(socket);
            client.send(&flags.to_be_bytes());
            client.is_hung_up_on();
        }
    });
}

#[test]
fn garbage_instead_of_an_option() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        client.send(&[7; 16]);
        client.is_hung_up_on();
    });
}

#[test]
fn an_option_of_4_gib() {
    beside(|socket| {
        for option in [GO, LIST, SET_META_CONTEXT, 99] {
            let mut client = Client::haggling(socket);
            client.option_of_length(option, u32::MAX, b"");
            let (error, _) = client.option_reply(option);
            assert!([ERR_TOO_BIG, ERR_INVALID, ERR_UNSUP].contains(&error), "{error:#x}");
            client.is_hung_up_on();
        }
    });
}

#[test]
fn options_that_make_no_sense() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        client.option(99, b"?");
        assert_eq!(client.option_reply(99).0, ERR_UNSUP);
        for data in
            [&b""[..], b"\xff\xff\xff\xff", b"\0\0\0\x05vol\0\0", b"\0\0\0\0\xff\xff", b"\0\0\0\0\0\0x"]
        {
            client.option(INFO, data);
            assert_eq!(client.option_reply(INFO).0, ERR_INVALID, "{data:?}");
        }
        client.option(LIST, b"x");
        assert_eq!(client.option_reply(LIST).0, ERR_INVALID);
        assert_eq!(client.choose(INFO, &"x".repeat(4096)), Err(ERR_UNKNOWN));
        // None of this has used up the connection.
        assert_eq!(client.choose(GO, ""), Ok(()));
        assert_eq!(client.read(ELSEWHERE, 3), [0; 3]);
    });
}

/// Names over 4096 bytes, and lists that are longer in their own words than the option that they stand in.
#[test]
fn names_and_queries_without_end() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        let long = "x".repeat(5000);
        let error = client.choose(INFO, &long).unwrap_err();
        assert!([ERR_INVALID, ERR_TOO_BIG].contains(&error), "{error:#x}");
        client.option(STRUCTURED_REPLY, b"");
        assert_eq!(client.option_reply(STRUCTURED_REPLY).0, 1);
        let endless = u32::MAX.to_be_bytes();
        for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
            for data in [
                endless.to_vec(),
                [&string("")[..], &endless].concat(),
                [&string("")[..], &1_u32.to_be_bytes(), &endless].concat(),
                [&string("")[..], &2_u32.to_be_bytes(), &string(ALLOCATION)].concat(),
                [&meta_context("", &[ALLOCATION])[..], b"x"].concat(),
                meta_context("", &[&long]),
                meta_context(&long, &[ALLOCATION]),
            ] {
                client.option(option, &data);
                let (error, _) = client.option_reply(option);
                assert!([ERR_INVALID, ERR_TOO_BIG].contains(&error), "{error:#x} to {data:?}");
            }
            // Thousands of queries are many and no offence.
            client.option(option, &meta_context("", &["a:"; 5000]));
            loop {
                match client.option_reply(option).0 {
                    4 => {}
                    last => break assert!([1, ERR_TOO_BIG, ERR_INVALID].contains(&last), "{last:#x}"),
                }
            }
        }
        assert_eq!(client.choose(GO, ""), Ok(()));
    });
}
