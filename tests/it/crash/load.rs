//! Kernel and its users as a load: calls of several messages over several channels, repeated with the same ids until
//! they are answered 200, some made twice at once, some made again long after. Keeps a ledger of what was acknowledged.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aura_whatsapp_operator::sim::{
    aura::{AuraSim, Behaviour, ReceivedActivity, SentReply},
    kernel::KernelSim,
    ledger::{Lane, Sent},
};
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How soon a call that was not taken is made again: sooner than Kernel would, so that a start is met by calls.
const AGAIN: Duration = Duration::from_millis(10);
/// How soon a sender looks again whether more may be under way.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How many replies messages get, in turn.
const REPLIES: [usize; 4] = [1, 2, 0, 1];

/// The users of one channel that one connection brings messages of.
pub struct Stream {
    pub channel: String,
    pub url: String,
    pub users: Vec<String>,
}

/// What is known of messages so far.
#[derive(Default)]
struct Board {
    sent: Vec<Sent>,
    acknowledged: usize,
    /// Replies that the bridge acknowledged, and those that users have.
    taken: HashSet<String>,
    received: HashSet<String>,
    seen_replies: usize,
    seen_received: usize,
}

struct Inner {
    board: Mutex<Board>,
    arrived: Arc<AtomicUsize>,
    /// Calls answered 200, repetitions included.
    answered: AtomicU64,
    next: AtomicU64,
    ending: AtomicBool,
    window: usize,
    kernel: KernelSim,
    aura: AuraSim,
    /// Answers that are neither a 200 nor a wish to be called again.
    odd: Mutex<Vec<String>>,
}

/// A load under way. It ends with this.
pub struct Load {
    inner: Arc<Inner>,
    senders: JoinSet<()>,
}

/// The text of the `n`-th message, and its id in the ledger.
fn text(n: u64) -> String {
    format!("m{n}")
}

/// The number of the message that a text, or a reply's text, tells of.
pub fn number(text: &str) -> u64 {
    let digits = text.trim_start_matches('m').split('/').next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}

/// None, one or two replies to a message, by its number.
fn replies(activity: &ReceivedActivity) -> Vec<Value> {
    let said = activity.text.as_deref().unwrap_or_default();
    let count = REPLIES[usize::try_from(number(said)).unwrap() % REPLIES.len()];
    (0..count).map(|i| json!(format!("{said}/{i}"))).collect()
}

impl Load {
    /// Begins. So many messages, of both directions together, are kept under way: acknowledged and not yet arrived.
    pub fn start(kernel: &KernelSim, aura: &AuraSim, streams: Vec<Stream>, window: usize, seed: u64) -> Self {
        let arrived = Arc::new(AtomicUsize::new(0));
        let count = arrived.clone();
        aura.set_behaviour(Behaviour::script(move |activity| {
            count.fetch_add(1, Ordering::Relaxed);
            replies(activity)
        }));
        let inner = Arc::new(Inner {
            board: Mutex::default(),
            arrived,
            answered: AtomicU64::new(0),
            next: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            window,
            kernel: kernel.clone(),
            aura: aura.clone(),
            odd: Mutex::default(),
        });
        let mut senders = JoinSet::new();
        for (n, stream) in (0..).zip(streams) {
            let random = fastrand::Rng::with_seed(seed.wrapping_add(n));
            senders.spawn(send(inner.clone(), stream, random));
        }
        Self { inner, senders }
    }

    /// Messages of both directions that were acknowledged and have not arrived: no more than there are.
    pub fn unfinished(&self) -> usize {
        self.inner.unfinished()
    }

    /// Calls that were answered 200 so far.
    pub fn answered(&self) -> u64 {
        self.inner.answered.load(Ordering::Relaxed)
    }

    /// Begins no further call; returns when every one that was begun is answered.
    pub async fn end(&mut self) {
        self.inner.ending.store(true, Ordering::Relaxed);
        while let Some(ended) = self.senders.join_next().await {
            ended.unwrap();
        }
    }

    /// Whether everything that is due has arrived: what was acknowledged, and the replies to it.
    pub fn is_over(&self) -> bool {
        let mut board = self.inner.board.lock().unwrap();
        self.inner.refresh(&mut board);
        let arrived = self.inner.arrived.load(Ordering::Relaxed);
        let due = (0..board.sent.len()).map(|n| REPLIES[n % REPLIES.len()]);
        arrived == board.sent.len() && board.received.len() == due.sum::<usize>()
    }

    /// What was sent and acknowledged.
    pub fn sent(&self) -> Vec<Sent> {
        self.inner.board.lock().unwrap().sent.clone()
    }

    /// Answers that no caller of a bridge under way should get.
    pub fn odd(&self) -> Vec<String> {
        self.inner.odd.lock().unwrap().clone()
    }
}

impl Inner {
    fn refresh(&self, board: &mut Board) {
        let replies = self.aura.replies_since(board.seen_replies);
        board.seen_replies += replies.len();
        let taken = replies.into_iter().filter(SentReply::taken);
        board.taken.extend(taken.map(|reply| reply.text));
        let received = self.kernel.received_since(board.seen_received);
        board.seen_received += received.len();
        board
            .received
            .extend(received.into_iter().map(|message| message.text));
    }

    fn unfinished(&self) -> usize {
        let mut board = self.board.lock().unwrap();
        self.refresh(&mut board);
        let arrived = self.arrived.load(Ordering::Relaxed);
        board.acknowledged.saturating_sub(arrived) + board.taken.len().saturating_sub(board.received.len())
    }

    fn offer(&self, channel: &str, users: &[String], random: &mut fastrand::Rng) -> (Value, Vec<usize>) {
        let mut board = self.board.lock().unwrap();
        let offered = Timestamp::now();
        let (mut messages, mut places) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..=4) {
            let user = random.choice(users).unwrap();
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let lane = Lane {
                channel: channel.to_owned(),
                user: user.clone(),
            };
            let before = places.iter().rev().map(|place: &usize| &board.sent[*place]);
            let after = before
                .filter(|sent| sent.lane == lane)
                .map(|sent| sent.id.clone())
                .next();
            places.push(board.sent.len());
            board.sent.push(Sent {
                id: text(n),
                lane,
                offered,
                acknowledged: None,
                after,
                turn: 0,
            });
            messages.push(
                json!({"from": user, "id": format!("wamid.load.{n}"), "timestamp": offered.as_second().to_string(),
                "type": "text", "text": {"body": text(n)}}),
            );
        }
        (json!({"messages": messages}), places)
    }

    fn acknowledge(&self, places: &[usize]) {
        let mut board = self.board.lock().unwrap();
        let now = Timestamp::now();
        for place in places {
            board.sent[*place].acknowledged.get_or_insert(now);
        }
        board.acknowledged += places.len();
    }

    /// Calls until it is answered 200.
    async fn call(&self, http: &Client, url: &str, body: &Value) {
        loop {
            let status = http
                .post(url)
                .json(body)
                .send()
                .await
                .map(|answer| answer.status());
            match status.map(|status| status.as_u16()) {
                Ok(200) => break,
                Ok(503) | Err(_) => tokio::time::sleep(AGAIN).await,
                Ok(other) => {
                    self.odd.lock().unwrap().push(format!("{other} for {body}"));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// One of Kernel's connections: one call after the other, so that the order of each conversation is known.
async fn send(inner: Arc<Inner>, stream: Stream, mut random: fastrand::Rng) {
    let client = || {
        let builder = Client::builder().no_proxy().timeout(Duration::from_secs(5));
        builder.build().unwrap()
    };
    let (http, another) = (client(), client());
    let mut done: Vec<Value> = Vec::new();
    while !inner.ending.load(Ordering::Relaxed) {
        if inner.unfinished() >= inner.window {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        if let Some(old) = random.choice(&done).filter(|_| random.u8(..8) == 0) {
            inner.call(&http, &stream.url, old).await;
        }
        let (body, places) = inner.offer(&stream.channel, &stream.users, &mut random);
        if random.u8(..8) == 0 {
            // A call that Kernel took for lost, and makes again on another connection.
            tokio::join!(
                inner.call(&http, &stream.url, &body),
                inner.call(&another, &stream.url, &body)
            );
        } else {
            inner.call(&http, &stream.url, &body).await;
        }
        inner.acknowledge(&places);
        if done.len() < 200 {
            done.push(body);
        } else {
            let place = random.usize(..done.len());
            done[place] = body;
        }
    }
}
