//! Unwrapping in a process of its own.
