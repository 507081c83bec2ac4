//! Faults, stopping and restarting, seen by a caller.

use super::*;

#[tokio::test]
async fn a_status_fault_answers_as_kernel_would_so_many_times() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    world
        .sim
        .inject(Fault::status(429).retry_after(2).times(1).on(Endpoint::Send));
    let limited = world.send(&token, &text("a")).send().await.unwrap();
    assert_eq!(
        (limited.status().as_u16(), &limited.headers()["retry-after"]),
        (429, &"2".parse().unwrap())
    );
    assert_eq!(body(limited).await["code"], "TOO_MANY_REQUESTS");
    assert_eq!(world.send(&token, &text("a")).send().await.unwrap().status(), 201);
    world
        .sim
        .inject(Fault::status(400).body(json!({"errors": [{"code": 470}]})));
    assert_eq!(
        body(world.send(&token, &text("a")).send().await.unwrap()).await["errors"][0]["code"],
        470
    );
    world.sim.clear_faults();
    assert_eq!(world.send(&token, &text("a")).send().await.unwrap().status(), 201);
    assert_eq!(world.sim.received(USER).len(), 2);
}

#[tokio::test]
async fn a_fault_may_hit_one_client_only() {
    let world = world(quick()).await;
    world.sim.inject(Fault::status(503).only_for("shop"));
    let form = [("grant_type", "client_credentials")];
    refused(
        world.token_request("shop", "not-a-secret-shop", &form),
        503,
        "UNAVAILABLE",
    )
    .await;
    let token = world.token("bank", MESSAGING).await;
    assert_eq!(world.send(&token, &text("a")).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_reset_closes_the_connection_before_or_after_the_effect() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    for (fault, received) in [
        (Fault::reset(), 0),
        (Fault::reset().after_effect(), 1),
        (Fault::cut(), 2),
    ] {
        world.sim.inject(fault.times(1));
        let sent = world.send(&token, &text("a")).send().await;
        let whole = match sent {
            Ok(answer) => answer.bytes().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole);
        assert_eq!(world.sim.received(USER).len(), received);
    }
    assert!(world.sim.sends().iter().all(|call| call.status.is_none()));
}

#[tokio::test]
async fn garbage_is_a_200_that_is_no_json_and_a_delay_only_delays() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    world.sim.inject(Fault::garbage().times(1));
    let garbage = world.send(&token, &text("a")).send().await.unwrap();
    assert_eq!(garbage.status(), 200);
    assert!(garbage.json::<Value>().await.is_err());
    world.sim.inject(Fault::delay(Duration::from_millis(5)).times(1));
    world.sim.set_latency(Duration::from_millis(5));
    let before = std::time::Instant::now();
    assert_eq!(world.send(&token, &text("a")).send().await.unwrap().status(), 201);
    assert!(before.elapsed() >= Duration::from_millis(10));
}

#[tokio::test]
async fn a_dripping_answer_has_its_head_and_its_effect_in_time_and_its_body_later_or_never() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    world
        .sim
        .inject(Fault::drip(Duration::from_millis(1)).times(1).on(Endpoint::Send));
    let answer = world.send(&token, &text("a")).send().await.unwrap();
    assert!(body(answer).await["messages"][0]["id"].is_string());
    world.sim.inject(Fault::drip(Duration::from_secs(5)).times(1));
    let slow = world.send(&token, &text("b")).timeout(Duration::from_millis(200));
    let answer = slow.send().await.unwrap();
    assert_eq!(answer.status(), 201);
    assert!(answer.bytes().await.unwrap_err().is_timeout());
    assert_eq!(world.sim.received(USER).len(), 2);
}

#[tokio::test]
async fn an_empty_answer_has_no_body_and_no_effect() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    world.sim.inject(Fault::empty().times(1));
    let answer = world.send(&token, &text("a")).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.bytes().await.unwrap().len()),
        (200, 0)
    );
    world.sim.inject(Fault::gone().times(1));
    assert_eq!(world.send(&token, &text("a")).send().await.unwrap().status(), 410);
    assert!(world.sim.received(USER).is_empty());
}

#[tokio::test]
async fn a_hung_call_ends_when_kernel_stops_and_its_state_outlives_the_restart() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    world.sim.inject(Fault::hang().times(1));
    let hung = tokio::spawn(world.send(&token, &text("a")).send());
    world.sim.wait_calls(Endpoint::Send, 1, SOON).await.unwrap();
    world.sim.stop().await;
    assert!(hung.await.unwrap().is_err());
    assert!(
        world
            .send(&token, &text("a"))
            .send()
            .await
            .unwrap_err()
            .is_connect()
    );
    let url = world.sim.url();
    world.sim.restart().await.unwrap();
    world.sim.restart().await.unwrap();
    assert_eq!(world.sim.url(), url);
    assert_eq!(world.send(&token, &text("a")).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_taken_port_is_an_error() {
    let first = KernelSim::start(quick()).await.unwrap();
    let port = first.url().rsplit(':').next().unwrap().parse().unwrap();
    let second = KernelSim::start(KernelOptions { port, ..quick() }).await;
    assert!(matches!(second, Err(StartError::Listen { .. })));
}
