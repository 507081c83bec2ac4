//! The runner against an API server of one Lease, in this process and under paused time.

use std::sync::{Arc, Mutex, MutexGuard};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::controller::lease::{Leadership, Timing, channel};

const SECOND: Duration = Duration::from_secs(1);
const BASE: &str = "/apis/coordination.k8s.io/v1/namespaces/aura/leases";

/// How the API server is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    /// It refuses at once.
    Refusing(u16),
    /// It takes a request and never answers.
    Silent,
    /// It does what it is asked and never says so.
    Mute,
}

#[derive(Default)]
struct Stored {
    lease: Option<Value>,
    version: u64,
    mood: Mood,
    requests: usize,
}

/// An API server of one Lease.
#[derive(Clone, Default)]
struct Api1(Arc<Mutex<Stored>>);

impl Api1 {
    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap()
    }

    fn mood(&self, mood: Mood) {
        self.stored().mood = mood;
    }

    fn spec(&self) -> Value {
        self.stored().lease.as_ref().unwrap()["spec"].clone()
    }

    fn holder(&self) -> String {
        self.spec()["holderIdentity"].as_str().unwrap().to_owned()
    }

    /// Writes it as somebody else would: a label, an edit by hand.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut stored = self.stored();
        let mut lease = stored.lease.take().unwrap();
        change(&mut lease);
        store(&mut stored, lease);
    }

    fn client(&self) -> Client {
        let router = Router::new()
            .route(BASE, post(create))
            .route(&format!("{BASE}/lease"), get(read).put(replace))
            .with_state(self.clone());
        Client::new(router, "default")
    }
}

fn store(stored: &mut Stored, mut lease: Value) -> Value {
    stored.version += 1;
    lease["metadata"]["resourceVersion"] = json!(stored.version.to_string());
    stored.lease = Some(lease.clone());
    lease
}

fn status(code: u16, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                      "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}

/// Answers in the mood of the moment.
async fn answer(api: &Api1, act: impl FnOnce(&mut Stored) -> Response) -> Response {
    let (mood, response) = {
        let mut stored = api.stored();
        stored.requests += 1;
        match stored.mood {
            Mood::Refusing(code) => (stored.mood, status(code, "InternalError")),
            Mood::Silent => (stored.mood, status(500, "InternalError")),
            Mood::Well | Mood::Mute => (stored.mood, act(&mut stored)),
        }
    };
    if mood == Mood::Silent || mood == Mood::Mute {
        std::future::pending::<()>().await;
    }
    response
}

async fn read(State(api): State<Api1>) -> Response {
    answer(&api, |stored| match &stored.lease {
        Some(lease) => Json(lease).into_response(),
        None => status(404, "NotFound"),
    })
    .await
}

async fn create(State(api): State<Api1>, Json(lease): Json<Value>) -> Response {
    answer(&api, |stored| {
        if stored.lease.is_some() {
            status(409, "AlreadyExists")
        } else {
            (StatusCode::CREATED, Json(store(stored, lease))).into_response()
        }
    })
    .await
}

async fn replace(State(api): State<Api1>, Json(lease): Json<Value>) -> Response {
    answer(&api, |stored| match &stored.lease {
        None => status(404, "NotFound"),
        Some(current) if current["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] => {
            status(409, "Conflict")
        }
        Some(_) => Json(store(stored, lease)).into_response(),
    })
    .await
}

/// A candidate that runs.
struct Candidate {
    leadership: Leadership,
    stop: Stop,
    task: JoinHandle<()>,
}

impl Candidate {
    fn start(api: &Api1, identity: &str) -> Self {
        let (publish, leadership) = channel();
        let stop = Stop::default();
        let settings = Settings {
            namespace: "aura".into(),
            name: "lease".into(),
            identity: identity.into(),
            timing: Timing::default(),
        };
        let task = tokio::spawn(run(
            (api.client(), Asked::default()),
            settings,
            publish,
            stop.clone(),
        ));
        Self {
            leadership,
            stop,
            task,
        }
    }

    async fn leading(api: &Api1, identity: &str) -> Self {
        let mut candidate = Self::start(api, identity);
        candidate.acquired().await;
        candidate
    }

    /// Waits until it leads; the time that took.
    async fn acquired(&mut self) -> Duration {
        let start = Instant::now();
        tokio::time::timeout(SECOND * 60, self.leadership.acquired())
            .await
            .expect("it never led");
        start.elapsed()
    }

    async fn lost(&mut self) -> Duration {
        let start = Instant::now();
        tokio::time::timeout(SECOND * 60, self.leadership.lost())
            .await
            .expect("it led on");
        start.elapsed()
    }

    /// `kill -9`: not another step.
    fn kill(self) {
        self.task.abort();
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn the_first_creates_the_lease_and_the_second_stands_by() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    let two = Candidate::start(&api, "two");
    for _ in 0..60 {
        tokio::time::sleep(SECOND).await;
        assert!(one.leadership.is_leader() && !two.leadership.is_leader());
    }
    let spec = api.spec();
    assert_eq!(
        (&spec["holderIdentity"], &spec["leaseDurationSeconds"]),
        (&json!("one"), &json!(12))
    );
    assert_eq!(spec["leaseTransitions"], 0);
    // Microseconds, as the API server wants them.
    let renewed = spec["renewTime"].as_str().unwrap();
    assert_eq!(
        (renewed.len(), renewed.ends_with('Z')),
        ("2026-11-22T10:00:00.000000Z".len(), true)
    );
    // A renewal every 2 s, a look every 1 to 2 s.
    let requests = api.stored().requests;
    assert!((60..=95).contains(&requests), "{requests}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_when_its_lease_has_run_out() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    let mut two = Candidate::start(&api, "two");
    tokio::time::sleep(SECOND * 5).await;
    one.kill();
    let vacant = seconds(two.acquired().await);
    assert!((10.0..=14.0).contains(&vacant), "{vacant}");
    assert_eq!(
        (api.holder().as_str(), &api.spec()["leaseTransitions"]),
        ("two", &json!(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_stopping_leader_keeps_the_lease_until_its_work_has_ended_and_then_releases_it() {
    let api = Api1::default();
    let mut one = Candidate::leading(&api, "one").await;
    let mut two = Candidate::start(&api, "two");
    one.stop.asked.cancel();
    tokio::time::sleep(SECOND * 30).await;
    assert!(
        one.leadership.is_leader() && !two.leadership.is_leader(),
        "work is under way"
    );
    one.stop.finished.cancel();
    assert!(seconds(one.lost().await) < 0.1);
    let vacant = seconds(two.acquired().await);
    assert!(vacant <= 2.0, "{vacant}");
    one.task.await.unwrap();
    assert_eq!(api.spec()["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_is_to_stop_takes_nothing_any_more() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    let two = Candidate::start(&api, "two");
    tokio::time::sleep(SECOND * 3).await;
    two.stop.asked.cancel();
    two.task.await.unwrap();
    one.kill();
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(api.holder(), "one");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_ends_the_claim_and_its_return_gives_it_back_in_the_same_process() {
    for mood in [Mood::Refusing(503), Mood::Refusing(403), Mood::Silent] {
        let api = Api1::default();
        let mut one = Candidate::leading(&api, "one").await;
        let mut two = Candidate::start(&api, "two");
        tokio::time::sleep(SECOND).await;
        api.mood(mood);
        // At most the deadline after the last renewal, at least that minus the time between two.
        let left = seconds(one.lost().await);
        assert!((6.0..=8.0).contains(&left), "{mood:?}: {left}");
        tokio::time::sleep(SECOND * 30).await;
        assert!(
            !one.leadership.is_leader() && !two.leadership.is_leader(),
            "{mood:?}"
        );
        api.mood(Mood::Well);
        tokio::select! {
            _ = one.acquired() => {}
            _ = two.acquired() => {}
        }
        tokio::time::sleep(SECOND * 10).await;
        assert!(
            one.leadership.is_leader() != two.leadership.is_leader(),
            "{mood:?}"
        );
        one.kill();
        two.kill();
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_costs_no_leadership() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    for mood in [Mood::Silent, Mood::Refusing(500), Mood::Mute] {
        api.mood(mood);
        tokio::time::sleep(SECOND * 5).await;
        api.mood(Mood::Well);
        assert!(one.leadership.is_leader(), "{mood:?}");
        tokio::time::sleep(SECOND * 5).await;
        assert!(
            one.leadership.until().unwrap() > Instant::now() + SECOND * 5,
            "{mood:?}"
        );
    }
    assert_eq!(api.spec()["leaseTransitions"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_answers_are_lost_ends_its_claim_though_its_renewals_arrive() {
    let api = Api1::default();
    let mut one = Candidate::leading(&api, "one").await;
    let before = api.stored().version;
    api.mood(Mood::Mute);
    assert!(seconds(one.lost().await) <= 8.0);
    assert!(api.stored().version > before, "a renewal arrived");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_with_somebody_elses_edit_is_overcome() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    for number in 0..20 {
        tokio::time::sleep(SECOND * 2).await;
        api.edit(|lease| lease["metadata"]["labels"]["edited"] = json!(number.to_string()));
        assert!(one.leadership.is_leader(), "{number}");
    }
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(
        api.stored().lease.as_ref().unwrap()["metadata"]["labels"]["edited"],
        "19"
    );
    assert_eq!(api.holder(), "one");
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_to_another_by_hand_is_left_to_him() {
    let api = Api1::default();
    let mut one = Candidate::leading(&api, "one").await;
    api.edit(|lease| lease["spec"]["holderIdentity"] = json!("another"));
    assert!(seconds(one.lost().await) <= 2.0);
    let vacant = seconds(one.acquired().await);
    assert!((10.0..=14.0).contains(&vacant), "{vacant}");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_made_again_by_its_holder() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    let two = Candidate::start(&api, "two");
    tokio::time::sleep(SECOND * 3).await;
    api.stored().lease = None;
    for _ in 0..30 {
        tokio::time::sleep(SECOND).await;
        assert!(one.leadership.is_leader() && !two.leadership.is_leader());
    }
    assert_eq!(api.holder(), "one");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_soon_though_the_api_server_is_away() {
    for mood in [Mood::Silent, Mood::Refusing(503)] {
        let api = Api1::default();
        let one = Candidate::leading(&api, "one").await;
        api.mood(mood);
        tokio::time::sleep(SECOND).await;
        one.stop.asked.cancel();
        one.stop.finished.cancel();
        let start = Instant::now();
        one.task.await.unwrap();
        assert!(seconds(start.elapsed()) <= 8.0, "{mood:?}: {:?}", start.elapsed());
        assert_eq!(api.holder(), "one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_answer_is_lost_was_one() {
    let api = Api1::default();
    let one = Candidate::leading(&api, "one").await;
    api.mood(Mood::Mute);
    one.stop.finished.cancel();
    one.task.await.unwrap();
    assert_eq!(api.holder(), "");
    assert_eq!(api.spec()["leaseTransitions"], 0);
}
