//! A door in front of a listener: it can be shut, so that connections are refused while the listener lives on.

use std::net::SocketAddr;

use tokio::{
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
