//! The way to one environment's Kernel, shared by all its channels: who may begin, how many calls at once and a second,
//! and whether anybody's calls get through at all.
//!
//! A channel that can't begin holds nothing but its name in a row: ten thousand of one environment cost no other
//! environment its turn (Law 4).

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    circuit::{Admission, Change, Circuit},
    limit::Pace,
    object_key::ObjectKey,
};
use crate::{
    config::Registration,
    kernel::{KernelError, Operation},
};

/// What an environment's circuits are told apart by: each kind of call may fail alone, and that another succeeds says
/// nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The auth server.
    Auth,
    /// The API, where webhooks are read.
    Reads,
    /// The API, where webhooks are set.
    Writes,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auth, Self::Reads, Self::Writes];

    /// Where an operation belongs.
    pub fn of(operation: Operation) -> Self {
        match operation {
            Operation::Token => Self::Auth,
            Operation::WebhookGet => Self::Reads,
            Operation::WebhookSet | Operation::Send => Self::Writes,
        }
    }

    /// One word for metrics and logs: the operation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => Operation::Token.as_str(),
            Self::Reads => Operation::WebhookGet.as_str(),
            Self::Writes => Operation::WebhookSet.as_str(),
        }
    }
}

/// Wakes a channel: has it reconciled now.
pub(super) type Wake = Arc<dyn Fn(&ObjectKey) + Send + Sync>;

/// One environment's gate.
pub(super) struct Gate {
    wake: Wake,
    /// Looked at by whoever waits for the next probe.
    ticks: Arc<Notify>,
    places: Arc<Semaphore>,
    pace: Mutex<Pace>,
    row: Mutex<Row>,
    circuits: [Mutex<Circuit>; 3],
}

/// ObjectKey has begun, and who waits to.
#[derive(Default)]
struct Row {
    concurrent: usize,
    begun: usize,
    /// Woken to begin, with a place kept for them.
    called: HashSet<ObjectKey>,
    waiting: HashSet<ObjectKey>,
    /// Those that wait, in the order in which they came; who is in here alone waits no longer.
    order: VecDeque<ObjectKey>,
}

/// A channel has begun; its place is given on when this is dropped.
pub(super) struct Begun {
    gate: Arc<Gate>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut row = lock(&self.gate.row);
        row.begun = row.begun.saturating_sub(1);
        self.gate.call_next(row);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock that the runtime goes by: a test may pause it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Row {
    /// Twice as many as there may be calls at once: while one half calls, the other reads Secrets and writes statuses.
    fn most(&self) -> usize {
        self.concurrent * 2
    }

    fn wait(&mut self, who: &ObjectKey) {
        if self.waiting.insert(who.clone()) {
            self.order.push_back(who.clone());
        }
    }

    fn next(&mut self) -> Option<ObjectKey> {
        while let Some(who) = self.order.pop_front() {
            if self.waiting.remove(&who) {
                return Some(who);
            }
        }
        None
    }
}

impl Gate {
    /// A gate with these limits.
    pub fn new(limits: &Registration, wake: Wake, ticks: Arc<Notify>) -> Self {
        let concurrent = limits.concurrent.max(1) as usize;
        Self {
            wake,
            ticks,
            places: Arc::new(Semaphore::new(concurrent)),
            pace: Mutex::new(Pace::new(limits.per_second)),
            row: Mutex::new(Row {
                concurrent,
                ..Row::default()
            }),
            circuits: Default::default(),
        }
    }

    /// The gate of the same environment with other limits: what is under way stays counted.
    pub fn set(&self, limits: &Registration) {
        lock(&self.pace).set(limits.per_second);
        let new = limits.concurrent.max(1) as usize;
        let mut row = lock(&self.row);
        let old = std::mem::replace(&mut row.concurrent, new);
        if new > old {
            self.places.add_permits(new - old);
        } else {
            let places = self.places.clone();
            let less = u32::try_from(old - new).unwrap_or(u32::MAX);
            tokio::spawn(async move {
                if let Ok(taken) = places.acquire_many_owned(less).await {
                    taken.forget();
                }
            });
        }
        self.call_next(row);
    }

    /// Begins the calls of a channel; `None`: it waits in the row, and is woken when there is a place for it.
    pub fn begin(self: &Arc<Self>, who: &ObjectKey) -> Option<Begun> {
        let mut row = lock(&self.row);
        if row.called.remove(who) || row.begun + row.called.len() < row.most() {
            row.begun += 1;
            row.waiting.remove(who);
            return Some(Begun { gate: self.clone() });
        }
        row.wait(who);
        None
    }

    /// A pass of the channel is over: if it was called and did not come, its place is given on; if it was to try whether
    /// calls get through and had none to make, another one tries.
    pub fn over(&self, who: &ObjectKey) {
        let mut row = lock(&self.row);
        let waits = row.waiting.contains(who);
        if row.called.remove(who) {
            self.call_next(row);
        } else {
            drop(row);
        }
        if waits {
            // It was to try, and has not begun: it will.
            return;
        }
        for circuit in &self.circuits {
            if lock(circuit).over(who, now()) {
                self.ticks.notify_one();
            }
        }
    }

    /// The channel is gone.
    pub fn forget(&self, who: &ObjectKey) {
        let mut row = lock(&self.row);
        row.waiting.remove(who);
        row.called.remove(who);
        self.call_next(row);
        for circuit in &self.circuits {
            lock(circuit).forget(who);
        }
        self.ticks.notify_one();
    }

    fn call_next(&self, mut row: MutexGuard<'_, Row>) {
        let mut next = Vec::new();
        while row.begun + row.called.len() < row.most() {
            let Some(who) = row.next() else {
                break;
            };
            row.called.insert(who.clone());
            next.push(who);
        }
        drop(row);
        next.iter().for_each(|who| (self.wake)(who));
    }

    /// Waits for a place and the pace of calls.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().acquire_owned().await.ok();
        let (now, at) = {
            let now = now();
            (now, lock(&self.pace).take(now))
        };
        // The runtime's timers go by milliseconds: one that is due at once would hold the place for one of them.
        if at > now {
            tokio::time::sleep_until(at.into()).await;
        }
        place
    }

    /// Whether a channel's call gets through.
    ///
    /// # Errors
    /// What the others got, while the circuit is open.
    pub fn admit(&self, side: Side, who: &ObjectKey, changed: bool) -> Result<(), KernelError> {
        match lock(&self.circuits[side as usize]).admit(who, changed, now()) {
            Admission::Go => Ok(()),
            Admission::Parked(error) => Err(error),
        }
    }

    /// A call has ended; what became of the circuit. Whom that releases is woken.
    pub fn ended(
        &self,
        side: Side,
        who: &ObjectKey,
        outage: Option<&KernelError>,
        population: impl Fn() -> usize,
    ) -> Change {
        let population = outage.map_or(0, |_| population());
        let change =
            lock(&self.circuits[side as usize]).ended(who, outage, population, now(), fastrand::f64());
        if let Change::Closed(released) = &change {
            released.iter().for_each(|who| (self.wake)(who));
        }
        if change != Change::None || outage.is_some() {
            self.ticks.notify_one();
        }
        change
    }

    /// A call ended, or was not made, and says nothing of the server.
    pub fn undecided(&self, side: Side, who: &ObjectKey, asked: Option<Duration>) {
        lock(&self.circuits[side as usize]).undecided(who, asked, now(), fastrand::f64());
        self.ticks.notify_one();
    }

    /// Wakes whom a probe is due for; answers when the next is.
    pub fn tick(&self) -> Option<Instant> {
        let mut next: Option<std::time::Instant> = None;
        for circuit in &self.circuits {
            let mut circuit = lock(circuit);
            let prober = circuit.tick(now());
            let at = circuit.next_tick();
            drop(circuit);
            if let Some(who) = prober {
                (self.wake)(&who);
            }
            next = [next, at].into_iter().flatten().min();
        }
        next.map(Into::into)
    }

    /// How many channels wait to begin.
    pub fn waiting(&self) -> usize {
        lock(&self.row).waiting.len()
    }

    /// Whether a kind of call gets through.
    pub fn is_up(&self, side: Side) -> bool {
        lock(&self.circuits[side as usize]).is_closed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn who(n: usize) -> ObjectKey {
        ObjectKey::new("n", n.to_string())
    }

    fn gate(concurrent: u32) -> (Arc<Gate>, Arc<Mutex<Vec<ObjectKey>>>) {
        let woken: Arc<Mutex<Vec<ObjectKey>>> = Arc::default();
        let into = woken.clone();
        let wake: Wake = Arc::new(move |who| lock(&into).push(who.clone()));
        let limits = Registration {
            per_second: 1000,
            concurrent,
            one_webhook_per_client: true,
        };
        (Arc::new(Gate::new(&limits, wake, Arc::default())), woken)
    }

    #[test]
    fn who_finds_no_place_is_called_when_there_is_one_and_nobody_overtakes() {
        let (gate, woken) = gate(1);
        let (first, second) = (gate.begin(&who(1)).unwrap(), gate.begin(&who(2)).unwrap());
        assert!(gate.begin(&who(3)).is_none());
        assert!(gate.begin(&who(3)).is_none(), "asked twice, waits once");
        assert_eq!(gate.waiting(), 1);
        drop(first);
        assert_eq!(lock(&woken)[..], [who(3)]);
        assert!(gate.begin(&who(4)).is_none(), "the place is kept");
        assert!(gate.begin(&who(3)).is_some());
        drop(second);
        assert_eq!(lock(&woken)[1..], [who(4)]);
    }

    #[test]
    fn a_place_is_given_on_when_the_one_that_was_called_does_not_come_or_is_gone() {
        let (gate, woken) = gate(1);
        let begun = [gate.begin(&who(1)), gate.begin(&who(2))];
        for n in 3..6 {
            assert!(gate.begin(&who(n)).is_none());
        }
        drop(begun);
        let called = lock(&woken).clone();
        assert_eq!(called.len(), 2);
        gate.over(&called[0]);
        gate.forget(&called[1]);
        assert_eq!(lock(&woken).len(), 3);
        assert_eq!(gate.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_than_stated_are_under_way_at_once_also_after_a_change() {
        let (gate, _) = gate(2);
        let (a, b) = (gate.turn().await, gate.turn().await);
        let soon = Duration::from_secs(60);
        assert!(tokio::time::timeout(soon, gate.turn()).await.is_err());
        let limits = |concurrent| Registration {
            per_second: 1000,
            concurrent,
            one_webhook_per_client: true,
        };
        gate.set(&limits(3));
        let c = gate.turn().await;
        gate.set(&limits(1));
        tokio::task::yield_now().await;
        drop((a, b));
        assert!(
            tokio::time::timeout(soon, gate.turn()).await.is_err(),
            "one is still under way"
        );
        drop(c);
        assert!(gate.turn().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_ends_without_a_call_is_followed_by_another_at_once() {
        let (gate, woken) = gate(4);
        let down = KernelError::Unreachable;
        for n in 1..4 {
            gate.ended(Side::Reads, &who(n), Some(&down), || 9);
        }
        assert!(!gate.is_up(Side::Reads));
        let probes = || lock(&woken).len();
        tokio::time::sleep_until(gate.tick().unwrap()).await;
        gate.tick();
        assert_eq!(probes(), 1);
        let first = lock(&woken)[0].clone();
        // It was suspended meanwhile, or is on hold, or has nothing to look at: its pass calls nobody.
        gate.over(&first);
        tokio::time::advance(Duration::from_secs(2)).await;
        gate.tick();
        assert_eq!(
            probes(),
            2,
            "ten thousand like it would take days, half a minute each"
        );
    }
}
