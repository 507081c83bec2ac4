//! A door in front of a listener: it can be shut, so that connections are refused while the listener lives on.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinHandle,
};

/// Passes connections on while it is open.
pub struct Door {
    address: SocketAddr,
    to: SocketAddr,
    open: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    /// An open door to this address.
    pub async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            to,
            open: Mutex::new(Some(tokio::spawn(pass(listener, to)))),
        }
    }

    /// The base URL of what is behind it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Refuses connections and closes those that there are.
    pub async fn shut(&self) {
        if let Some(task) = self.open.lock().await.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Lets one HTTP call through, and is shut by the time its answer arrives: what the caller does next finds nobody.
    pub async fn shut_after_an_answer(&self) {
        self.shut().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        let to = self.to;
        *self.open.lock().await = Some(tokio::spawn(async move {
            // A caller that breaks off has had its one call.
            let _ = pass_one_call(listener, to).await;
        }));
    }

    /// Opens again at the same address.
    pub async fn open(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        *self.open.lock().await = Some(tokio::spawn(pass(listener, self.to)));
    }
}

async fn pass(listener: TcpListener, to: SocketAddr) {
    // Ended with the task.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut caller, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut callee) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut caller, &mut callee).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass_one_call(listener: TcpListener, to: SocketAddr) -> std::io::Result<()> {
    let (mut caller, _) = listener.accept().await?;
    let mut callee = TcpStream::connect(to).await?;
    let (mut asked, mut answer) = (Vec::new(), Vec::new());
    while !is_whole(&answer) {
        tokio::select! {
            read = caller.read_buf(&mut asked) => {
                if read? == 0 {
                    return Ok(());
                }
                callee.write_all_buf(&mut std::mem::take(&mut asked).as_slice()).await?;
            }
            read = callee.read_buf(&mut answer) => {
                if read? == 0 {
                    break;
                }
            }
        }
    }
    // Shut first: the answer's arrival is what the caller goes by.
    drop(listener);
    // Else this connection would be kept for the next call.
    let first_line = answer
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    answer.splice(first_line..first_line, *b"connection: close\r\n");
    caller.write_all(&answer).await?;
    caller.shutdown().await
}

/// Whether an HTTP answer has come with all of its body.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    body.len() >= length.unwrap_or_default()
}
