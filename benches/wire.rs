//! NBD's headers to and from bytes.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sealblk::nbd::wire::{
    Chunk, Content, EXTENDED_REQUEST_LENGTH, REQUEST_LENGTH, Request, descriptor_64, simple_reply,
};

/// A READ of 4 KiB at 1 MiB: magic, flags, command, cookie and offset, and the length in as many bytes as are left.
fn read_request<const N: usize>(magic: u32) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..4].copy_from_slice(&magic.to_be_bytes());
    bytes[8..16].copy_from_slice(&7_u64.to_be_bytes());
    bytes[16..24].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    bytes[N - 4..].copy_from_slice(&4096_u32.to_be_bytes());
    bytes
}

fn wire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let compact = read_request::<REQUEST_LENGTH>(0x2560_9513);
    let extended = read_request::<EXTENDED_REQUEST_LENGTH>(0x21e4_1c71);
    group.bench_function("decode/compact request", |bencher| {
        bencher.iter(|| Request::decode(black_box(&compact)).expect("a good request"));
    });
    group.bench_function("decode/extended request", |bencher| {
        bencher.iter(|| Request::decode_extended(black_box(&extended)).expect("a good request"));
    });
    group.bench_function("encode/simple reply", |bencher| {
        bencher.iter(|| simple_reply(black_box(7), Ok(())));
    });
    let content = Content::Data { offset: 1 << 20, length: 4096 };
    let chunk = Chunk { cookie: 7, offset: 1 << 20, last: true, content };
    group.bench_function("encode/structured data", |bencher| bencher.iter(|| black_box(&chunk).encode()));
    group.bench_function("encode/extended data", |bencher| {
        bencher.iter(|| black_box(&chunk).encode_extended());
    });
    group.bench_function("encode/64-bit descriptor", |bencher| {
        bencher.iter(|| descriptor_64(black_box(4096), 0));
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
