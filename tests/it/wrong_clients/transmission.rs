//! Nonsense in transmission.

use super::{EINVAL, ELSEWHERE, ENOSPC, SIZE, beside, beside_to_the_end};
use crate::raw::{
    BLOCK_STATUS, CACHE, Client, FLUSH, Mode, PAYLOAD_LEN, READ, TRIM, WRITE, WRITE_ZEROES, extended_header,
    header,
};

#[test]
fn garbage_instead_of_a_request() {
    beside(|socket| {
        for mode in Mode::ALL {
            let mut client = Client::ready_in(socket, mode);
            client.send(&[7; 32]);
            client.is_hung_up_on();
            // After a good request, whose reply is not lost.
            let mut client = Client::ready_in(socket, mode);
            client.write(ELSEWHERE, b"x");
            client.send(&[0; 4096]);
            client.is_hung_up_on();
        }
    });
}

/// A request as another mode has it.
#[test]
fn requests_of_a_mode_that_was_not_agreed_on() {
    beside(|socket| {
        for mode in Mode::ALL {
            let mut client = Client::ready_in(socket, mode);
            client.send(&match mode {
                Mode::Extended => [header(0, READ, 1, 0, 1), vec![0; 4]].concat(),
                _ => extended_header(0, READ, 1, 0, 1),
            });
            client.is_hung_up_on();
        }
    });
}

#[test]
fn half_a_header_and_gone() {
    beside(|socket| {
        drop(Client::connect(socket));
        drop(Client::greeted(socket));
        let mut haggling = Client::haggling(socket);
        haggling.send(b"IHAVE");
        drop(haggling);
        let mut client = Client::ready(socket);
        client.send(&header(0, READ, 1, 0, 512)[..13]);
        drop(client);
    });
}

/// Silence is no offence in transmission; it must not hold up the volume's end, either.
#[test]
fn half_a_header_and_silence() {
    let record = beside_to_the_end(|socket| {
        let mut client = Client::ready(socket);
        client.send(&header(0, READ, 1, 0, 512)[..13]);
        let mut writer = Client::ready(socket);
        writer.send(&header(0, WRITE, 1, 0, 65536));
        writer.send(&[1; 1000]);
        (client, writer)
    });
    assert_eq!(record["connections_cut"], 0, "{record}");
}

/// What cannot be taken off the stream ends it.
#[test]
fn writes_that_are_too_long() {
    beside(|socket| {
        for mode in [Mode::Simple, Mode::Structured] {
            let mut client = Client::ready_in(socket, mode);
            client.request(0, WRITE, 0, u32::MAX);
            client.is_hung_up_on();
        }
        for length in [(64 << 20) + 1, 1 << 32, u64::MAX] {
            let mut client = Client::ready_in(socket, Mode::Extended);
            client.send(&extended_header(PAYLOAD_LEN, WRITE, 1, 0, length));
            client.is_hung_up_on();
        }
    });
}

/// A read's length promises nothing of the client's, so it can be refused and the connection goes on.
#[test]
fn reads_that_are_too_long() {
    beside(|socket| {
        for mode in Mode::ALL {
            let mut client = Client::ready_in(socket, mode);
            assert_eq!(client.ask(0, READ, 0, u32::MAX.into()).error, EINVAL);
            if mode == Mode::Extended {
                assert_eq!(client.ask(0, READ, 0, u64::MAX).error, EINVAL);
            }
            client.write(ELSEWHERE, b"still here");
            assert_eq!(client.read(ELSEWHERE, 10), b"still here");
            client.part();
        }
    });
}

#[test]
fn ranges_and_commands_that_do_not_exist() {
    beside(|socket| {
        for mode in Mode::ALL {
            let mut client = Client::ready_in(socket, mode);
            for (command, offset, length, error) in [
                (READ, SIZE, 1, EINVAL),
                (READ, u64::MAX, 1, EINVAL),
                (READ, u64::MAX - 5, 512, EINVAL),
                (TRIM, SIZE - 1, u32::MAX, EINVAL),
                (TRIM, u64::MAX, u32::MAX, EINVAL),
                (WRITE_ZEROES, SIZE - 1, u32::MAX, ENOSPC),
                (WRITE_ZEROES, u64::MAX, u32::MAX, ENOSPC),
                (CACHE, u64::MAX, u32::MAX, EINVAL),
                (BLOCK_STATUS, SIZE, 512, EINVAL),
                (BLOCK_STATUS, 0, 0, EINVAL),
                (8, 0, 0, EINVAL),
                (0xffff, 0, 0, EINVAL),
            ] {
                let reply = client.ask(0, command, offset, length.into());
                assert_eq!(reply.error, error, "{mode:?}: command {command} at {offset}");
            }
            assert_eq!(client.ask(1 << 15, READ, 0, 1).error, EINVAL, "an unknown flag");
            // The payload of a write that is refused must not be taken for requests.
            let decoy = header(0, READ, 99, 0, 1);
            let cookie = client.submit(0, WRITE, SIZE - 1, decoy.len() as u64, &decoy);
            assert_eq!(client.reply_to(cookie).error, ENOSPC);
            assert_eq!(client.read(ELSEWHERE, 1), [0]);
            client.part();
        }
    });
}

/// Extended requests know lengths and offsets that add up to more than there is.
#[test]
fn lengths_of_64_bits() {
    beside(|socket| {
        let mut client = Client::ready_in(socket, Mode::Extended);
        for (command, error) in
            [(READ, EINVAL), (TRIM, EINVAL), (CACHE, EINVAL), (BLOCK_STATUS, EINVAL), (WRITE_ZEROES, ENOSPC)]
        {
            for (offset, length) in
                [(0, u64::MAX), (1, u64::MAX), (u64::MAX, u64::MAX), (1 << 63, 1 << 63), (0, SIZE + 1)]
            {
                let reply = client.ask(0, command, offset, length);
                assert_eq!(reply.error, error, "command {command} of {length} bytes at {offset}");
            }
        }
        assert_eq!(client.ask(0, FLUSH, 0, 0).error, 0);
        client.part();
    });
}

/// A payload that nobody asked for is refused and taken off the stream; one that is too long ends it.
#[test]
fn payloads_where_none_belongs() {
    beside(|socket| {
        let decoy = extended_header(0, READ, 99, 0, 1);
        for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99] {
            let mut client = Client::ready_in(socket, Mode::Extended);
            let cookie = client.submit(PAYLOAD_LEN, command, 0, decoy.len() as u64, b"");
            client.send(&decoy);
            assert_eq!(client.reply_to(cookie).error, EINVAL, "command {command}");
            client.write(ELSEWHERE, b"still here");
            client.part();
            let mut client = Client::ready_in(socket, Mode::Extended);
            client.send(&extended_header(PAYLOAD_LEN, command, 1, 0, u64::MAX));
            client.is_hung_up_on();
        }
        // Compact requests do not know the flag.
        let mut client = Client::ready_in(socket, Mode::Structured);
        assert_eq!(client.ask(PAYLOAD_LEN, READ, 0, 1).error, EINVAL);
        client.part();
    });
}
