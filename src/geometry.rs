//! Sector sizes, volume sizes and byte ranges: all arithmetic between bytes and sectors, checked once, here.

use std::fmt;
use std::str::FromStr;

/// The unit of encryption: each sector is enciphered on its own, with its number as tweak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorSize {
    /// 512 bytes, for clients and file systems that need it.
    B512,
    /// 4096 bytes: the page size, and an eighth of the cipher's per-sector cost.
    B4096,
}

impl SectorSize {
    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    const fn shift(self) -> u32 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// Number of the sector that holds byte `offset`.
    pub const fn number(self, offset: u64) -> u64 {
        offset >> self.shift()
    }

    const fn mask(self) -> u64 {
        (1 << self.shift()) - 1
    }

    const fn round_down(self, offset: u64) -> u64 {
        offset & !self.mask()
    }

    /// True if `offset` is a sector's first byte.
    pub const fn is_aligned(self, offset: u64) -> bool {
        offset & self.mask() == 0
    }
}

impl FromStr for SectorSize {
    type Err = GeometryError;

    fn from_str(text: &str) -> Result<Self, GeometryError> {
        match text {
            "512" => Ok(Self::B512),
            "4096" => Ok(Self::B4096),
            _ => Err(GeometryError::SectorSize(text.into())),
        }
    }
}

impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// Why a size or a range was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not one of the two sector sizes.
    #[error("sector size {0:?} is not 512 or 4096")]
    SectorSize(String),
    /// Not a number with a known unit.
    #[error(
        "size {0:?} is not a number with one of the units K, M, G, T (powers of 1024) or KB, MB, GB, TB (powers of 1000)"
    )]
    Size(String),
    /// A volume needs at least one sector.
    #[error("a volume cannot have the size 0")]
    Zero,
    /// The last sector would be incomplete.
    #[error("size {size} is not a multiple of the sector size {sector}; the next larger one is {}", size.next_multiple_of(*sector as u64))]
    Fraction {
        /// Bytes asked for.
        size: u64,
        /// Bytes in a sector.
        sector: usize,
    },
    /// More than one key may encrypt.
    #[error("size {0} is over 256 TiB, the most that one AES-XTS key may encrypt (IEEE 1619)")]
    TooLarge(String),
}

/// A volume's size: a whole number of sectors, at least one, at most 256 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSize(u64);

impl VolumeSize {
    /// 256 TiB = 2^44 cipher blocks: the hard limit of IEEE P1619/D12 for one key.
    pub const MAX: u64 = 1 << 48;
    /// 1 TiB = 2^36 cipher blocks: what the same draft recommends not to exceed.
    pub const ADVISED: u64 = 1 << 40;

    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`GeometryError::Zero`], [`GeometryError::Fraction`] or [`GeometryError::TooLarge`].
    pub fn new(bytes: u64, sector: SectorSize) -> Result<Self, GeometryError> {
        match bytes {
            0 => Err(GeometryError::Zero),
            size if size > Self::MAX => Err(GeometryError::TooLarge(size.to_string())),
            size if !sector.is_aligned(size) => Err(GeometryError::Fraction { size, sector: sector.bytes() }),
            size => Ok(Self(size)),
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Reads a size in bytes: `4096`, `10G` (GiB), `10GiB`, `10GB` (10^9 bytes). Fractions (`1.5G`) are not taken.
///
/// # Errors
/// [`GeometryError::Size`] for what is no size, [`GeometryError::TooLarge`] for what does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, GeometryError> {
    let refuse = || GeometryError::Size(text.into());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(refuse());
    }
    let unit = unit.to_ascii_uppercase();
    let (base, prefix): (u64, &str) = match unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')) {
        Some(prefix) if unit.ends_with("IB") => (1024, prefix),
        Some(prefix) => (1000, prefix),
        None => (1024, &unit),
    };
    let power = ["", "K", "M", "G", "T", "P"].iter().position(|known| *known == prefix).ok_or_else(refuse)?;
    let factor = base.pow(u32::try_from(power).map_err(|_| refuse())?);
    // Of digits alone, one that does not fit is all that is refused.
    let size = number.parse().ok().and_then(|number: u64| number.checked_mul(factor));
    size.ok_or_else(|| GeometryError::TooLarge(text.into()))
}

/// A range of bytes that lies inside a volume. May be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// No byte at all.
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// The range of `length` bytes from `offset`, or `None` if it does not lie inside `size` bytes.
    pub fn within(offset: u64, length: u64, size: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (end <= size).then_some(Self { start: offset, end })
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes.
    pub const fn length(self) -> u64 {
        self.end - self.start
    }

    /// True without a byte.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Cuts at sector boundaries: the end of a first sector, whole sectors, the start of a last sector.
    /// Each of the three may be empty; `head` and `tail` lie in one sector each and never fill it.
    pub fn split(self, sector: SectorSize) -> Split {
        let up = sector.round_down(self.start + sector.mask());
        let down = sector.round_down(self.end);
        if up > down {
            // The range lies inside one sector and touches neither of its ends.
            let nothing = Self { start: self.end, end: self.end };
            return Split { head: self, body: nothing, tail: nothing };
        }
        Split {
            head: Self { start: self.start, end: up },
            body: Self { start: up, end: down },
            tail: Self { start: down, end: self.end },
        }
    }

    /// Cuts at multiples of `step` (a power of two), so that no piece crosses one.
    pub fn pieces(self, step: u64) -> impl Iterator<Item = Self> {
        debug_assert!(step.is_power_of_two());
        let mut start = self.start;
        std::iter::from_fn(move || {
            let piece = Self { start, end: self.end.min((start & !(step - 1)) + step) };
            start = piece.end;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// The whole sectors that `self` touches.
    pub fn covering(self, sector: SectorSize) -> Self {
        Self { start: sector.round_down(self.start), end: sector.round_down(self.end + sector.mask()) }
    }
}

/// A range cut at sector boundaries by [`ByteRange::split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The end of a sector whose beginning is outside.
    pub head: ByteRange,
    /// Whole sectors.
    pub body: ByteRange,
    /// The beginning of a sector whose end is outside.
    pub tail: ByteRange,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("10g"), Ok(10 << 30));
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("10GB"), Ok(10_000_000_000));
        assert_eq!(parse_size("256T"), Ok(VolumeSize::MAX));
        for bad in ["", "G", "-1", "1.5G", "1X", "1 G", "10GBB", "99999999999999999999X", "1i", "+5"] {
            assert_eq!(parse_size(bad), Err(GeometryError::Size(bad.into())), "{bad}");
        }
        for huge in ["16777216T", "99999999999999999999", "99999999999999999999G"] {
            assert_eq!(parse_size(huge), Err(GeometryError::TooLarge(huge.into())), "{huge}");
        }
    }

    #[test]
    fn volume_sizes() {
        let sector = SectorSize::B4096;
        assert_eq!(VolumeSize::new(0, sector), Err(GeometryError::Zero));
        assert_eq!(VolumeSize::new(512, sector), Err(GeometryError::Fraction { size: 512, sector: 4096 }));
        assert!(VolumeSize::new(512, SectorSize::B512).is_ok());
        assert!(VolumeSize::new(VolumeSize::MAX, sector).is_ok());
        let over = VolumeSize::MAX + 4096;
        assert_eq!(VolumeSize::new(over, sector), Err(GeometryError::TooLarge(over.to_string())));
    }

    proptest! {
        #[test]
        fn a_split_covers_the_range_once(start in 0u64..100_000, length in 0u64..100_000, small: bool) {
            let sector = if small { SectorSize::B512 } else { SectorSize::B4096 };
            let range = ByteRange::within(start, length, u64::MAX).unwrap();
            let Split { head, body, tail } = range.split(sector);
            prop_assert_eq!(head.start(), range.start());
            prop_assert_eq!(head.length() + body.length() + tail.length(), length);
            for part in [head, body, tail] {
                prop_assert!(part.start() >= range.start() && part.end() <= range.end());
            }
            prop_assert!(sector.is_aligned(body.length()) && (body.is_empty() || sector.is_aligned(body.start())));
            for part in [head, tail] {
                prop_assert!(part.length() < sector.bytes() as u64);
                if !part.is_empty() {
                    prop_assert_eq!(sector.number(part.start()), sector.number(part.end() - 1));
                }
            }
        }

        #[test]
        fn pieces_cover_the_range_once(start in 0u64..100_000, length in 0u64..100_000, shift in 9u32..16) {
            let range = ByteRange::within(start, length, u64::MAX).unwrap();
            let mut next = start;
            for piece in range.pieces(1 << shift) {
                prop_assert_eq!(piece.start(), next);
                prop_assert_eq!(piece.start() >> shift, (piece.end() - 1) >> shift);
                next = piece.end();
            }
            prop_assert_eq!(next, range.end());
        }

        #[test]
        fn no_range_leaves_its_volume(offset: u64, length: u64, size: u64) {
            let expected = u128::from(offset) + u128::from(length) <= u128::from(size);
            prop_assert_eq!(ByteRange::within(offset, length, size).is_some(), expected);
        }
    }
}
