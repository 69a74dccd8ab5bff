//! Looks after the connections of a server while requests are in flight: gives threads to those that are stuck,
//! and takes threads and memory from those that do not need them any more.
//!
//! It is a task that sleeps while nothing is in flight anywhere, so an idle server costs nothing. A thread that
//! has received a request looks at one flag to see whether the overseer has to be woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::buffers::{Allowance, Pool};
use super::connection::{Connection, Registration, recruit};
use super::crew::{Crew, Look, Seen};
use super::receiver::Receiver;

/// Between two looks: what a request waits longer than it should if all threads are stuck.
const TICK: Duration = Duration::from_millis(5);
/// Looks between two close ones: a tenth of a second.
const WINDOW: u32 = 20;
/// Threads of all connections together beyond the steady ones of each: a bound on what stuck requests cost.
const EXTRA: usize = 1024;

#[derive(Default)]
pub(super) struct Overseer {
    /// Clear while the task sleeps.
    awake: AtomicBool,
    wake: Notify,
    members: Mutex<Vec<Member>>,
    allowance: Arc<Allowance>,
}

/// A connection. None of it is kept alive from here.
struct Member {
    crew: Weak<Crew<Receiver>>,
    pool: Weak<Pool>,
    connection: Weak<Connection>,
    registration: Weak<Registration>,
}

impl Overseer {
    /// For the connections of this server.
    pub(super) fn allowance(&self) -> Arc<Allowance> {
        self.allowance.clone()
    }

    /// Looks after one more connection, until it ends.
    pub(super) fn enlist(&self, connection: &Arc<Connection>, registration: &Arc<Registration>) {
        self.members().push(Member {
            crew: Arc::downgrade(connection.crew()),
            pool: Arc::downgrade(connection.pool()),
            connection: Arc::downgrade(connection),
            registration: Arc::downgrade(registration),
        });
        // So that the list is cleared of those that have ended, however idle the others are.
        self.stir();
    }

    /// A request has been received, which the crew knows of already.
    pub(super) fn stir(&self) {
        // The crew's lock orders this: if the flag reads as set although the task is about to sleep, then the
        // task, which looks at all crews after it has cleared the flag, sees the request.
        if !self.awake.load(Ordering::Relaxed) && !self.awake.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Never returns.
    pub(super) async fn run(&self) {
        loop {
            self.wake.notified().await;
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 1_u32.. {
                ticks.tick().await;
                let closely = if number.is_multiple_of(WINDOW) { Look::Window } else { Look::Glance };
                if self.look(closely) && closely == Look::Window {
                    self.awake.store(false, Ordering::Relaxed);
                    if self.look(Look::Glance) {
                        break;
                    }
                    self.awake.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Looks at every connection; true if all are idle.
    fn look(&self, closely: Look) -> bool {
        let (mut idle, mut threads, mut stuck) = (true, 0, Vec::new());
        self.members().retain(|member| {
            let (Some(crew), Some(pool)) = (member.crew.upgrade(), member.pool.upgrade()) else {
                return false;
            };
            threads += crew.extra();
            let seen = crew.look(closely);
            idle &= seen == Seen::Idle;
            match seen {
                Seen::Idle | Seen::Quiet if closely == Look::Window => pool.trim(),
                Seen::Stuck(more) => {
                    stuck.push((member.connection.clone(), member.registration.clone(), Some(more)));
                }
                Seen::Short => stuck.push((member.connection.clone(), member.registration.clone(), None)),
                _ => {}
            }
            true
        });
        // Without the lock: what is let go of here may be the last of a connection.
        for (connection, registration, more) in stuck {
            // In this order: as long as there is a registration, nobody takes the connection apart for a successor.
            let Some(registration) = registration.upgrade() else { continue };
            let Some(connection) = connection.upgrade() else { continue };
            let Some(more) = more else {
                recruit(&connection, &registration);
                continue;
            };
            // More threads would only stand in line to send.
            if !connection.outgoing().is_sending() {
                let more = more.min(EXTRA.saturating_sub(threads));
                threads += more;
                (0..more).for_each(|_| recruit(&connection, &registration));
            }
        }
        idle
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
