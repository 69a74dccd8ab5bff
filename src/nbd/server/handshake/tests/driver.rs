//! Options and answers on a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::nbd::server::Signal;
use crate::nbd::server::handshake::{HandshakeError, LAST_ANSWERS, MAX_DATA, Outcome, haggle};

type Served = JoinHandle<Result<Outcome<DuplexStream>, HandshakeError>>;

/// A client whose flags are sent, and the server's side of it.
async fn begin() -> (DuplexStream, watch::Sender<Signal>, Served) {
    begin_with(|| true).await
}

async fn begin_with(
    settle: impl Fn() -> bool + Send + Sync + 'static,
) -> (DuplexStream, watch::Sender<Signal>, Served) {
    let (mut ours, theirs) = duplex(1 << 16);
    let (stop, stopped) = watch::channel(Signal::Run);
    let served = tokio::spawn(async move { haggle(theirs, &exports(), None, stopped, settle).await });
    let mut greeting = [0; 18];
    ours.read_exact(&mut greeting).await.unwrap();
    ours.write_all(&[0, 0, 0, 3]).await.unwrap();
    (ours, stop, served)
}

async fn send(stream: &mut DuplexStream, code: Code, length: u32, data: &[u8]) {
    let option = [&b"IHAVEOPT"[..], &code.0.to_be_bytes(), &length.to_be_bytes(), data].concat();
    stream.write_all(&option).await.unwrap();
}

/// The next reply's type.
async fn reply(stream: &mut DuplexStream) -> Reply {
    let mut head = [0; 20];
    stream.read_exact(&mut head).await.unwrap();
    let word = |at: usize| u32::from_be_bytes(*head[at..].first_chunk().unwrap());
    let mut data = vec![0; word(16) as usize];
    stream.read_exact(&mut data).await.unwrap();
    Reply(word(12))
}

async fn hung_up(stream: &mut DuplexStream) {
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "there is more");
}

#[tokio::test]
async fn data_that_is_too_long_is_read_off_and_the_client_goes_on() {
    let (mut client, _stop, served) = begin().await;
    let long = vec![0xAA; 1 << 20];
    send(&mut client, Code::INFO, 1 << 20, &long).await;
    assert_eq!(reply(&mut client).await, Reply::ERR_TOO_BIG);
    send(&mut client, Code(77), 1 << 20, &long).await;
    assert_eq!(reply(&mut client).await, Reply::ERR_UNSUP);
    send(&mut client, Code::GO, 6, &[0; 6]).await;
    for kind in [Reply::INFO, Reply::INFO, Reply::ACK] {
        assert_eq!(reply(&mut client).await, kind);
    }
    assert!(matches!(served.await.unwrap(), Ok(Outcome::Transmit(_, export, _)) if export.name == "one"));
}

#[tokio::test]
async fn whoever_is_told_that_it_may_transmit_keeps_its_place_and_whoever_lost_it_is_not_told() {
    let settled = Arc::new(AtomicU32::new(0));
    for keeps in [true, false] {
        let settling = settled.clone();
        let (mut client, _stop, served) = begin_with(move || {
            settling.fetch_add(1, Ordering::SeqCst);
            keeps
        })
        .await;
        send(&mut client, Code::INFO, 6, &[0; 6]).await;
        for kind in [Reply::INFO, Reply::INFO, Reply::ACK] {
            assert_eq!(reply(&mut client).await, kind);
        }
        assert_eq!(settled.load(Ordering::SeqCst), u32::from(!keeps), "nothing is chosen yet");
        send(&mut client, Code::GO, 6, &[0; 6]).await;
        if keeps {
            assert_eq!(reply(&mut client).await, Reply::INFO);
            assert_eq!(settled.load(Ordering::SeqCst), 1);
            assert!(matches!(served.await.unwrap(), Ok(Outcome::Transmit(..))));
        } else {
            hung_up(&mut client).await;
            assert!(matches!(served.await.unwrap(), Ok(Outcome::Over)));
        }
    }
}

#[tokio::test]
async fn data_without_end_is_answered_and_not_waited_for() {
    let (mut client, _stop, served) = begin().await;
    send(&mut client, Code::GO, u32::MAX, b"").await;
    assert_eq!(reply(&mut client).await, Reply::ERR_TOO_BIG);
    hung_up(&mut client).await;
    assert!(matches!(served.await.unwrap(), Err(HandshakeError::TooMuchData)));
}

#[tokio::test]
async fn many_options_may_not_have_more_data_than_one() {
    let (mut client, _stop, served) = begin().await;
    let (length, most) = (1 << 16, MAX_DATA >> 16);
    for number in 0..=most {
        send(&mut client, Code(77), length, if number < most { &[0; 1 << 16] } else { b"" }).await;
        assert_eq!(reply(&mut client).await, Reply::ERR_UNSUP, "option {number}");
    }
    hung_up(&mut client).await;
    assert!(matches!(served.await.unwrap(), Err(HandshakeError::TooMuchData)));
}

#[tokio::test]
async fn who_asks_while_the_server_ends_is_told_so() {
    let (mut client, stop, served) = begin().await;
    send(&mut client, Code::LIST, 0, b"").await;
    for kind in [Reply::SERVER, Reply::SERVER, Reply::ACK] {
        assert_eq!(reply(&mut client).await, kind);
    }
    stop.send(Signal::End).unwrap();
    send(&mut client, Code::GO, 6, &[0; 6]).await;
    assert_eq!(reply(&mut client).await, Reply::ERR_SHUTDOWN);
    send(&mut client, Code::ABORT, 0, b"").await;
    assert_eq!(reply(&mut client).await, Reply::ACK);
    hung_up(&mut client).await;
    assert!(matches!(served.await.unwrap(), Ok(Outcome::Over)));
}

#[tokio::test]
async fn who_is_silent_while_the_server_ends_is_not_waited_for() {
    let (mut client, stop, served) = begin().await;
    stop.send(Signal::End).unwrap();
    let began = std::time::Instant::now();
    hung_up(&mut client).await;
    assert!(matches!(served.await.unwrap(), Ok(Outcome::Over)));
    assert!(began.elapsed() < LAST_ANSWERS + Duration::from_secs(5));
}

#[tokio::test]
async fn a_hand_over_refuses_nobody() {
    let (mut client, stop, served) = begin().await;
    stop.send(Signal::HandOver).unwrap();
    tokio::time::sleep(2 * LAST_ANSWERS).await;
    send(&mut client, Code::EXPORT_NAME, 3, b"two").await;
    let mut told = [0; 10];
    client.read_exact(&mut told).await.unwrap();
    assert!(matches!(served.await.unwrap(), Ok(Outcome::Transmit(_, export, _)) if export.name == "two"));
}
