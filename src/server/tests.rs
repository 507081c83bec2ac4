//! The loop from outside, by raw bytes on loopback.

use std::{future::Future, time::Duration};

use axum::{
    body::Bytes,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
};

use super::*;
use crate::telemetry::ListenersMetrics;

/// How long anything may take that has nothing to wait for.
const SOON: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    stop: Stop,
    metrics: ListenerMetrics,
    /// Told by a test to let the requests to `/hold` end.
    release: Arc<Notify>,
    /// Told when one has arrived.
    arrived: Arc<Notify>,
    ended: JoinHandle<()>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Bounds)) -> Self {
        Self::start_with(SOON, None, change).await
    }

    /// With a grace, and behind these networks, apart by spaces.
    async fn start_with(grace: Duration, trusted: Option<&str>, change: impl FnOnce(&mut Bounds)) -> Self {
        let mut bounds = Bounds::default();
        change(&mut bounds);
        let (release, arrived) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let hold = {
            let (release, arrived) = (release.clone(), arrived.clone());
            move || {
                let (release, arrived) = (release.clone(), arrived.clone());
                async move {
                    arrived.notify_one();
                    release.notified().await;
                    "held"
                }
            }
        };
        let app = Router::new()
            .route("/ok", get(async || "ok"))
            .route("/length", post(async |body: Bytes| body.len().to_string()))
            .route("/unread", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .route("/large", get(async || vec![b'x'; 32 << 20].into_response()))
            .route("/hold", get(hold));
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = ListenersMetrics::default().of("test");
        let stop = Stop::at_once(CancellationToken::new(), grace);
        let listening = Listening {
            listener,
            app,
            bounds,
            trusted: trusted.map(|network| network.split(' ').filter_map(|one| one.parse().ok()).collect()),
            tls: None,
            metrics: metrics.clone(),
        };
        Self {
            address,
            ended: tokio::spawn(listening.serve(stop.clone())),
            stop,
            metrics,
            release,
            arrived,
        }
    }

    async fn client(&self) -> Raw {
        Raw(soon(TcpStream::connect(self.address)).await.unwrap())
    }

    /// What the server says to these bytes until it closes the connection.
    async fn told(&self, bytes: &[u8]) -> String {
        let mut client = self.client().await;
        client.send(bytes).await;
        client.rest().await
    }

    /// Waits until so many connections were ended for this reason.
    async fn closed(&self, reason: &'static str, number: u64) {
        soon(async {
            while self.metrics.closed_so_far(reason) < number {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect("it does not take long")
}

struct Raw(TcpStream);

impl Raw {
    async fn send(&mut self, bytes: &[u8]) {
        soon(self.0.write_all(bytes)).await.unwrap();
    }

    async fn ask(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await;
        self.answer().await
    }

    /// One answer, its head and its body.
    async fn answer(&mut self) -> String {
        let mut answer = String::new();
        soon(async {
            loop {
                if let Some((head, body)) = answer.split_once("\r\n\r\n") {
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                    if body.len() >= length.unwrap_or_default() {
                        return answer;
                    }
                }
                let byte = self.0.read_u8().await.expect("an answer");
                answer.push(char::from(byte));
            }
        })
        .await
    }

    /// Everything until the connection is closed; a reset ends it too.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = soon(self.0.read_to_end(&mut rest)).await;
        String::from_utf8_lossy(&rest).into_owned()
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_shut_out_and_an_idle_connection_is_not() {
    let server = Server::start(|bounds| bounds.header_timeout = Duration::from_millis(100)).await;
    let mut kept = server.client().await;
    assert_eq!(status(&kept.ask("/ok").await), "200");
    // Three times the time of a head: the idle connection outlives it.
    for _ in 0..3 {
        let mut slow = server.client().await;
        let drip = async {
            let mut interval = tokio::time::interval(Duration::from_millis(10));
            for byte in b"GET /ok HTTP/1.1\r\nhost: x\r\nx-padding: "
                .iter()
                .chain(std::iter::repeat(&b'x'))
            {
                interval.tick().await;
                if slow.0.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
        };
        soon(drip).await;
    }
    assert_eq!(server.metrics.closed_so_far("header_timeout"), 3);
    assert_eq!(
        server.told(b"").await,
        "",
        "who says nothing at all is shut out as well"
    );
    assert_eq!(status(&kept.ask("/ok").await), "200");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_own_time() {
    let server = Server::start(|bounds| bounds.idle_timeout = Duration::from_millis(100)).await;
    let mut client = server.client().await;
    assert_eq!(status(&client.ask("/ok").await), "200");
    assert_eq!(client.rest().await, "");
    assert_eq!(server.metrics.closed_so_far("idle"), 1);
}

#[tokio::test]
async fn a_request_that_takes_long_is_not_idle() {
    let server = Server::start(|bounds| {
        bounds.idle_timeout = Duration::from_millis(50);
        bounds.header_timeout = Duration::from_millis(50);
    })
    .await;
    let mut client = server.client().await;
    client.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.arrived.notified().await;
    server.told(b"").await;
    server.told(b"").await;
    server.release.notify_one();
    assert_eq!(status(&client.answer().await), "200");
}

#[tokio::test]
async fn the_last_request_of_a_connection_is_told_so() {
    let server = Server::start(|bounds| bounds.requests = 3).await;
    let mut client = server.client().await;
    for _ in 0..2 {
        assert!(!client.ask("/ok").await.contains("connection: close"));
    }
    assert!(client.ask("/ok").await.contains("connection: close"));
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn who_does_not_read_is_shut_out() {
    let server = Server::start(|bounds| {
        bounds.write_timeout = Duration::from_millis(200);
        bounds.requests = u32::MAX;
    })
    .await;
    let mut one = server.client().await;
    one.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.closed("write_timeout", 1).await;
    // The same by many small answers: requests are not taken on without end.
    let mut many = server.client().await;
    let requests = b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    soon(async { while many.0.write_all(&requests).await.is_ok() {} }).await;
    server.closed("write_timeout", 2).await;
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_answered_400_and_nothing_behind_it_is() {
    let server = Server::start(|_| {}).await;
    let smuggled = "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n";
    for head in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        "content-length: 0\r\ncontent-length: 0\r\n\r\n",
        "content-length: 0\r\ncontent-length: 1\r\n\r\n",
        "content-length: +0\r\n\r\n",
        "transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: identity\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "x: 1\r\n folded: 2\r\n\r\n",
        "x: 1\n\r\n",
        "x: 1\rcontent-length: 4\r\n\r\n",
        "x: 1\0\r\n\r\n",
        "x 1\r\n\r\n",
        "host: y\r\n\r\n",
    ] {
        let told = server
            .told(format!("POST /length HTTP/1.1\r\nhost: x\r\n{head}{smuggled}").as_bytes())
            .await;
        assert_eq!(status(&told), "400", "{head}: {told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{head}: {told}");
    }
    for request in [
        "GET /ok HTTP/1.1\r\n\r\n",
        "GET /ok\r\n\r\n",
        "GET /ok HTTP/9.9\r\nhost: x\r\n\r\n",
        "POST /length HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "G\0T /ok HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        assert_eq!(status(&server.told(request.as_bytes()).await), "400", "{request}");
    }
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "5\r\nhelloworld\r\n",
        "1\na\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let head = "POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let told = server
            .told(format!("{head}{chunks}0\r\n\r\n{smuggled}").as_bytes())
            .await;
        assert_eq!(status(&told), "400", "{chunks}: {told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{chunks}: {told}");
    }
}

#[tokio::test]
async fn http_2_is_not_spoken() {
    let server = Server::start(|_| {}).await;
    let told = server
        .told(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await;
    assert_eq!(told, "", "closed without a word");
    let upgrade = "GET /ok HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n";
    assert_eq!(
        status(&server.told(upgrade.as_bytes()).await),
        "200",
        "as if it were not asked for"
    );
}

#[tokio::test]
async fn a_head_has_a_largest_size_and_number_of_headers() {
    let server = Server::start(|_| {}).await;
    let many = format!("GET /ok HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(100));
    assert_eq!(status(&server.told(many.as_bytes()).await), "431");
    let large = format!(
        "GET /ok HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(64 * 1024)
    );
    assert_eq!(status(&server.told(large.as_bytes()).await), "431");
    let endless = format!("GET /ok HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(64 * 1024));
    assert_eq!(
        status(&server.told(endless.as_bytes()).await),
        "431",
        "without an end"
    );
    let fits = format!(
        "GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{}\r\n",
        "x: y\r\n".repeat(60)
    );
    assert_eq!(status(&server.told(fits.as_bytes()).await), "200");
}

#[tokio::test]
async fn ten_thousand_pipelined_requests_are_answered_in_order() {
    let server = Server::start(|bounds| bounds.requests = 20_000).await;
    let (mut reader, mut writer) = server.client().await.0.into_split();
    let write = async {
        for n in 0..10_000 {
            let body = "x".repeat(n % 7);
            let request = format!(
                "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            writer.write_all(request.as_bytes()).await.unwrap();
        }
        writer
            .write_all(b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
    };
    let mut text = String::new();
    let ((), read) = soon(async { tokio::join!(write, reader.read_to_string(&mut text)) }).await;
    read.unwrap();
    let bodies: Vec<&str> = text
        .split("HTTP/1.1 200")
        .skip(1)
        .filter_map(|one| one.split("\r\n\r\n").nth(1))
        .collect();
    let wanted: Vec<String> = (0..10_000)
        .map(|n| (n % 7).to_string())
        .chain(["ok".to_owned()])
        .collect();
    assert_eq!(bodies, wanted);
}

#[tokio::test]
async fn when_all_connections_are_served_more_wait_and_another_listener_does_not_notice() {
    let (full, other) = (
        Server::start(|bounds| bounds.connections = 2).await,
        Server::start(|_| {}).await,
    );
    let (mut first, mut second) = (full.client().await, full.client().await);
    for client in [&mut first, &mut second] {
        client.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await;
        soon(full.arrived.notified()).await;
    }
    let mut third = full.client().await;
    third.send(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await;
    for _ in 0..100 {
        assert_eq!(status(&other.client().await.ask("/ok").await), "200");
    }
    assert_eq!(full.metrics.opened_now(), 2, "the third waits outside");
    full.release.notify_one();
    full.release.notify_one();
    assert_eq!(status(&first.answer().await), "200");
    drop(first);
    assert_eq!(status(&third.answer().await), "200");
}

#[tokio::test]
async fn who_asks_for_nothing_makes_room_for_who_does() {
    let server = Server::start(|bounds| bounds.connections = 8).await;
    let mut served = server.client().await;
    served.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await;
    soon(server.arrived.notified()).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(server.client().await);
    }
    // It stands behind more silent ones than there are places.
    assert_eq!(status(&server.client().await.ask("/ok").await), "200");
    assert!(server.metrics.closed_so_far("full") >= 13);
    server.release.notify_one();
    assert_eq!(status(&served.answer().await), "200", "who is served stays");
}

#[tokio::test]
async fn an_address_has_its_share_where_addresses_are_known() {
    for (trusted, limited) in [
        (None, false),
        (Some(""), true),
        (Some("10.0.0.0/8"), true),
        (Some("127.0.0.0/8"), false),
    ] {
        let server = Server::start_with(SOON, trusted, |bounds| bounds.connections_per_address = 2).await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = server.client().await;
            client.ask("/ok").await;
            clients.push(client);
        }
        let mut third = server.client().await;
        if limited {
            assert_eq!(third.rest().await, "");
            assert_eq!(server.metrics.closed_so_far("address"), 1);
            drop(clients.pop());
            soon(async {
                while server.metrics.opened_now() > 1 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert_eq!(status(&server.client().await.ask("/ok").await), "200");
        } else {
            assert_eq!(status(&third.ask("/ok").await), "200", "{trusted:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_arrives_although_its_body_was_not_read_and_says_that_the_connection_closes() {
    let server = Server::start(|_| {}).await;
    let (mut reader, mut writer) = server.client().await.0.into_split();
    let head = "POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n";
    writer.write_all(head.as_bytes()).await.unwrap();
    // The whole body is sent before the answer is looked at.
    soon(writer.write_all(&vec![b'x'; 900_000])).await.unwrap();
    let mut answer = String::new();
    soon(reader.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(status(&answer), "413");
    assert!(answer.contains("connection: close"), "{answer}");
    let expecting = "POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
    assert_eq!(
        status(&server.told(expecting.as_bytes()).await),
        "413",
        "nothing is asked for first"
    );
}

#[tokio::test]
async fn a_drain_is_announced_lets_requests_end_and_then_nobody_is_let_in() {
    let server = Server::start(|_| {}).await;
    let (mut idle, mut busy) = (server.client().await, server.client().await);
    assert_eq!(status(&idle.ask("/ok").await), "200");
    busy.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await;
    soon(server.arrived.notified()).await;
    server.stop.draining.store(true, Ordering::Relaxed);
    let told = server.client().await.ask("/ok").await;
    assert!(
        told.contains("connection: close"),
        "still let in, and told: {told}"
    );
    server.stop.halt.cancel();
    assert_eq!(idle.rest().await, "");
    soon(async { while TcpStream::connect(server.address).await.is_ok() {} }).await;
    assert!(!server.ended.is_finished());
    server.release.notify_one();
    let answer = busy.rest().await;
    assert_eq!(
        (status(&answer), answer.contains("connection: close")),
        ("200", true),
        "{answer}"
    );
    soon(server.ended).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_never_ends_is_left_behind_after_the_grace() {
    let server = Server::start_with(Duration::from_millis(50), None, |_| {}).await;
    let mut stuck = server.client().await;
    stuck.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await;
    soon(server.arrived.notified()).await;
    server.stop.halt.cancel();
    soon(server.ended).await.unwrap();
}
