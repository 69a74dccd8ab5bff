//! One request: checked, then served. No I/O with the client.

use super::buffers::PIECE;
use super::seldom::Seldom;
use super::{Agreed, Export, Replies};
use crate::block::{BlockDevice, BlockError, Zeroes};
use crate::geometry::ByteRange;
use crate::nbd::wire::{Command, CommandFlags, MAX_PAYLOAD, NbdError, Request};

/// Checks what the protocol asks for before a request may touch the device ("Request types").
///
/// # Errors
/// The error to answer with.
pub(super) fn check(request: &Request, export: &Export, agreed: Agreed) -> Result<(), NbdError> {
    if !request.flags.only(allowed_flags(request.command, agreed)) {
        return Err(NbdError::Invalid);
    }
    let fits = ByteRange::within(request.offset, request.length, export.device.size()).is_some();
    let writable = if export.is_read_only() { Err(NbdError::Permission) } else { Ok(()) };
    match request.command {
        Command::FLUSH => Ok(()),
        Command::READ => {
            let longest =
                if request.flags.contains(CommandFlags::DF) { PIECE as u64 } else { MAX_PAYLOAD.into() };
            match request.length {
                _ if !fits => Err(NbdError::Invalid),
                length if length > MAX_PAYLOAD.into() => Err(NbdError::Invalid),
                length if length > longest => Err(NbdError::Overflow),
                _ => Ok(()),
            }
        }
        Command::CACHE if fits => Ok(()),
        Command::BLOCK_STATUS if fits && agreed.allocation && request.length > 0 => Ok(()),
        Command::TRIM => writable.and(if fits { Ok(()) } else { Err(NbdError::Invalid) }),
        Command::WRITE | Command::WRITE_ZEROES => {
            writable.and(if fits { Ok(()) } else { Err(NbdError::NoSpace) })
        }
        _ => Err(NbdError::Invalid),
    }
}

/// Flags that a command may have; none that was not agreed on. FUA is legal everywhere once it is offered.
fn allowed_flags(command: Command, agreed: Agreed) -> CommandFlags {
    let (fua, none) = (CommandFlags::FUA, CommandFlags(0));
    let if_extended = |flag| if agreed.replies == Replies::Extended { flag } else { none };
    match command {
        Command::READ if agreed.replies != Replies::Simple => fua.and(CommandFlags::DF),
        Command::WRITE => fua.and(if_extended(CommandFlags::PAYLOAD_LEN)),
        Command::WRITE_ZEROES => fua.and(CommandFlags::NO_HOLE).and(CommandFlags::FAST_ZERO),
        Command::BLOCK_STATUS => fua.and(CommandFlags::REQ_ONE).and(if_extended(CommandFlags::PAYLOAD_LEN)),
        _ => fua,
    }
}

/// Serves a request that passed [`check`] and moves no data: neither read nor write.
///
/// # Errors
/// The error to answer with.
pub(super) fn perform(request: &Request, device: &dyn BlockDevice) -> Result<(), NbdError> {
    let durable = request.flags.contains(CommandFlags::FUA);
    let (offset, length) = (request.offset, request.length);
    match request.command {
        Command::FLUSH => device.flush(),
        Command::TRIM => device.trim(offset, length, durable),
        Command::WRITE_ZEROES => {
            let how = Zeroes {
                may_discard: !request.flags.contains(CommandFlags::NO_HOLE),
                fast: request.flags.contains(CommandFlags::FAST_ZERO),
            };
            device.write_zeroes(offset, length, how, durable)
        }
        _ => device.cache(offset, length),
    }
    .map_err(nbd_error)
}

/// Ours to NBD's: the only place where one becomes the other.
pub(super) fn nbd_error(error: BlockError) -> NbdError {
    let (full, cut, failed) = {
        static FULL: Seldom = Seldom::new();
        static CUT: Seldom = Seldom::new();
        static FAILED: Seldom = Seldom::new();
        (&FULL, &CUT, &FAILED)
    };
    match error {
        BlockError::NoSpace => {
            log(full, &error, "free some space, and let the client try again");
            NbdError::NoSpace
        }
        BlockError::NotSupported => NbdError::NotSupported,
        BlockError::CutShort => {
            log(cut, &error, "what was cut off is lost: stop sealblk and begin a new volume");
            NbdError::Io
        }
        BlockError::Io(_) => {
            log(failed, &error, "the kernel's log may tell more");
            NbdError::Io
        }
        BlockError::LostWrites => NbdError::Io,
        BlockError::Frozen => NbdError::Permission,
        BlockError::Stopped => NbdError::Shutdown,
    }
}

/// Says seldom that a request failed, for a client asks a broken backing again and again.
fn log(seldom: &Seldom, error: &BlockError, then: &str) {
    if let Some(unsaid) = seldom.say() {
        tracing::warn!(%error, unsaid, "a request failed; {then}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::block::{Extents, Features};

    struct Device {
        size: u64,
        read_only: bool,
    }

    impl BlockDevice for Device {
        fn size(&self) -> u64 {
            self.size
        }

        fn features(&self) -> Features {
            Features { read_only: self.read_only, preferred_block: 4096, always_waits: false }
        }

        fn read(&self, _: u64, _: &mut [u8], _: &mut Extents) -> Result<(), BlockError> {
            Ok(())
        }

        fn status(&self, _: u64, length: u64, _: usize, extents: &mut Extents) -> Result<(), BlockError> {
            extents.push(length, false);
            Ok(())
        }

        fn cache(&self, _: u64, _: u64) -> Result<(), BlockError> {
            Ok(())
        }

        fn write(&self, _: u64, _: &mut [u8], _: bool) -> Result<(), BlockError> {
            Ok(())
        }

        fn flush(&self) -> Result<(), BlockError> {
            Ok(())
        }

        fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), BlockError> {
            Ok(())
        }

        fn write_zeroes(&self, _: u64, _: u64, how: Zeroes, _: bool) -> Result<(), BlockError> {
            if how.fast { Err(BlockError::NotSupported) } else { Ok(()) }
        }

        fn stop(&self) {}
    }

    const SIMPLE: Agreed = Agreed { replies: Replies::Simple, allocation: false };
    const STRUCTURED: Agreed = Agreed { replies: Replies::Structured, allocation: true };
    const EXTENDED: Agreed = Agreed { replies: Replies::Extended, allocation: true };
    const END: u64 = 1 << 20;

    fn request(command: Command, flags: u16, offset: u64, length: u64) -> Request {
        Request { flags: CommandFlags(flags), command, cookie: 0, offset, length }
    }

    fn checked_by(size: u64, read_only: bool, agreed: Agreed, request: Request) -> Result<(), NbdError> {
        let device = Arc::new(Device { size, read_only });
        let export = Export { name: String::new(), description: String::new(), device, read_only: false };
        check(&request, &export, agreed)
    }

    fn checked(
        agreed: Agreed,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> Result<(), NbdError> {
        checked_by(END, false, agreed, request(command, flags, offset, length))
    }

    #[test]
    fn ranges_that_do_not_fit_get_the_error_of_their_command() {
        use Command as C;
        use NbdError as E;
        for (command, error) in [
            (C::READ, E::Invalid),
            (C::TRIM, E::Invalid),
            (C::CACHE, E::Invalid),
            (C::BLOCK_STATUS, E::Invalid),
            (C::WRITE, E::NoSpace),
            (C::WRITE_ZEROES, E::NoSpace),
        ] {
            for agreed in [STRUCTURED, EXTENDED] {
                assert_eq!(checked(agreed, command, 0, END - 1, 1), Ok(()));
                assert_eq!(checked(agreed, command, 0, 0, END), Ok(()));
                for (offset, length) in
                    [(END, 1), (END - 1, 2), (u64::MAX, u64::MAX), (1, u64::MAX), (u64::MAX, 1), (0, END + 1)]
                {
                    assert_eq!(checked(agreed, command, 0, offset, length), Err(error));
                }
            }
        }
        assert_eq!(checked(SIMPLE, C::FLUSH, 0, 0, 0), Ok(()));
    }

    #[test]
    fn flags_are_legal_where_they_belong_and_were_agreed_on() {
        use Command as C;
        let (fua, no_hole, df, one, fast, payload) = (1, 2, 4, 8, 16, 32);
        for (command, simple, structured, extended) in [
            (C::READ, 0, df, df),
            (C::WRITE, 0, 0, payload),
            (C::FLUSH, 0, 0, 0),
            (C::TRIM, 0, 0, 0),
            (C::CACHE, 0, 0, 0),
            (C::WRITE_ZEROES, no_hole | fast, no_hole | fast, no_hole | fast),
            (C::BLOCK_STATUS, 0, one, one | payload),
        ] {
            for (agreed, legal) in [(SIMPLE, simple), (STRUCTURED, structured), (EXTENDED, extended)] {
                if command == C::BLOCK_STATUS && agreed == SIMPLE {
                    continue;
                }
                assert_eq!(checked(agreed, command, fua | legal, 0, 1), Ok(()), "{command:?} {agreed:?}");
                for bit in 0..16 {
                    let flag = 1_u16 << bit;
                    let expected = if (fua | legal) & flag == flag { Ok(()) } else { Err(NbdError::Invalid) };
                    assert_eq!(checked(agreed, command, flag, 0, 1), expected, "{command:?} {flag:#x}");
                }
            }
        }
    }

    #[test]
    fn what_changes_a_read_only_export_is_not_permitted() {
        for (command, expected) in [
            (Command::WRITE, Err(NbdError::Permission)),
            (Command::TRIM, Err(NbdError::Permission)),
            (Command::WRITE_ZEROES, Err(NbdError::Permission)),
            (Command::READ, Ok(())),
            (Command::CACHE, Ok(())),
            (Command::FLUSH, Ok(())),
            (Command::BLOCK_STATUS, Ok(())),
        ] {
            assert_eq!(checked_by(END, true, STRUCTURED, request(command, 0, 0, 512)), expected);
        }
    }

    #[test]
    fn reads_have_a_longest_length_and_unfragmented_ones_a_shorter() {
        let size = 1 << 40;
        let checked =
            |flags, length| checked_by(size, false, STRUCTURED, request(Command::READ, flags, 0, length));
        let (longest, piece, df) = (u64::from(MAX_PAYLOAD), PIECE as u64, CommandFlags::DF.0);
        assert_eq!(checked(0, longest), Ok(()));
        assert_eq!(checked(0, longest + 1), Err(NbdError::Invalid));
        assert_eq!(checked(df, piece), Ok(()));
        assert_eq!(checked(df, piece + 1), Err(NbdError::Overflow));
        assert_eq!(checked(df, longest + 1), Err(NbdError::Invalid), "it would be with fragments, too");
        assert!(piece >= 65_536, "the least that has to be served in one piece");
    }

    #[test]
    fn commands_that_are_not_known_or_not_agreed_on_are_invalid() {
        for command in [8, 9, 99, u16::MAX] {
            assert_eq!(checked(EXTENDED, Command(command), 0, 0, 1), Err(NbdError::Invalid));
        }
        let nothing = Agreed { allocation: false, ..EXTENDED };
        for agreed in [SIMPLE, nothing] {
            assert_eq!(checked(agreed, Command::BLOCK_STATUS, 0, 0, 1), Err(NbdError::Invalid));
        }
        assert_eq!(checked(EXTENDED, Command::BLOCK_STATUS, 0, 0, 0), Err(NbdError::Invalid));
    }

    #[test]
    fn what_carries_no_payload_may_be_as_long_as_the_export() {
        let size = u64::MAX;
        for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE, Command::BLOCK_STATUS] {
            for (offset, length) in [(0, u64::MAX), (1, u64::MAX - 1), (0, u32::MAX.into())] {
                assert_eq!(checked_by(size, false, EXTENDED, request(command, 0, offset, length)), Ok(()));
            }
            assert!(checked_by(size, false, EXTENDED, request(command, 0, 1, u64::MAX)).is_err());
        }
    }

    #[test]
    fn every_error_has_its_number() {
        let all = [
            (BlockError::NoSpace, NbdError::NoSpace),
            (BlockError::NotSupported, NbdError::NotSupported),
            (BlockError::CutShort, NbdError::Io),
            (BlockError::Io(std::io::ErrorKind::Other.into()), NbdError::Io),
            (BlockError::LostWrites, NbdError::Io),
            (BlockError::Frozen, NbdError::Permission),
            (BlockError::Stopped, NbdError::Shutdown),
        ];
        for (ours, theirs) in all {
            assert_eq!(nbd_error(ours), theirs);
        }
        let fast = Request {
            flags: CommandFlags::FAST_ZERO,
            command: Command::WRITE_ZEROES,
            cookie: 0,
            offset: 0,
            length: 1,
        };
        assert_eq!(perform(&fast, &Device { size: 1, read_only: false }), Err(NbdError::NotSupported));
    }
}
