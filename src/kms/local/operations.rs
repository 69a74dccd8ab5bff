//! The operations of the API, one type each: parameters, answer, checks, deed.

pub(crate) mod aliases;
pub(crate) mod cipher;
pub(crate) mod data_keys;
pub(crate) mod ending;
pub(crate) mod grants;
pub(crate) mod keys;
pub(crate) mod listing;
pub(crate) mod policies;
pub(crate) mod rotation;

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::failure::Failure;

/// Checks that a value is one of a set.
///
/// # Errors
/// ValidationException.
fn one_of(field: &str, value: &str, set: &[&str]) -> Result<(), Failure> {
    if set.contains(&value) {
        return Ok(());
    }
    Err(Failure::constraint(field, value, &format!("satisfy enum value set: [{}]", set.join(", "))))
}

/// Checks that a number is within a range.
///
/// # Errors
/// ValidationException.
fn within<T: PartialOrd + Display>(field: &str, value: T, range: RangeInclusive<T>) -> Result<T, Failure> {
    if value < *range.start() {
        let constraint = format!("have value greater than or equal to {}", range.start());
        return Err(Failure::constraint(field, value, &constraint));
    }
    if value > *range.end() {
        let constraint = format!("have value less than or equal to {}", range.end());
        return Err(Failure::constraint(field, value, &constraint));
    }
    Ok(value)
}

/// Checks the length of a text or a blob, which is not put into the message.
///
/// # Errors
/// ValidationException.
fn length_within(field: &str, length: usize, range: RangeInclusive<usize>) -> Result<(), Failure> {
    if range.contains(&length) {
        return Ok(());
    }
    let constraint = format!("have length between {} and {}", range.start(), range.end());
    Err(Failure::constraint(field, format!("[{length} long]"), &constraint))
}
