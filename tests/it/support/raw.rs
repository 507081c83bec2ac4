//! HTTP by raw bytes: what no client library would send, and what it would not show.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::SOON;

/// A connection.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn to(address: SocketAddr) -> Self {
        let connected = tokio::time::timeout(SOON, TcpStream::connect(address)).await;
        Self(connected.expect("a connection").unwrap())
    }

    /// Sends bytes; whether the other end still takes them.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = tokio::time::timeout(SOON, self.0.write_all(bytes.as_ref())).await;
        sent.expect("the other end reads").is_ok()
    }

    /// One answer, head and body; `None` where the connection ends before it is whole.
    pub async fn answer(&mut self) -> Option<Answer> {
        let read = async {
            let mut text = String::new();
            loop {
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let answer = Answer::new(head, body);
                    let length = answer
                        .header("content-length")
                        .and_then(|value| value.parse::<usize>().ok());
                    if body.len() >= length.unwrap_or_default() {
                        return Some(answer);
                    }
                }
                text.push(char::from(self.0.read_u8().await.ok()?));
            }
        };
        tokio::time::timeout(SOON, read)
            .await
            .expect("an answer, or the end")
    }

    /// Everything until the connection ends; a reset ends it too.
    pub async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(SOON, self.0.read_to_end(&mut rest)).await;
        let _ = read.expect("the connection is closed");
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    fn new(head: &str, body: &str) -> Self {
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        Self {
            status: status.unwrap_or_default(),
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(is, _)| is == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}
