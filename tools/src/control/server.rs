//! The engine's side of its control socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::dev::Buf;
use bcache_engine::env::Env;
use bcache_engine::net::{Listener, Stream};
use bcache_engine::sync::Semaphore;

use super::{Reply, Request};

/// Longest line taken.
const LINE: usize = 64 << 10;
/// Most connections at a time.
const CLIENTS: u64 = 64;

/// How long a client may take for a request, and for taking the answer: places are few.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answers requests.
pub trait Service {
    /// Answers.
    fn answer(self: Rc<Self>, request: Request) -> impl Future<Output = Reply> + 'static;
}

/// Listens at `path`, for root only.
///
/// # Errors
/// Another process listens there, or the file system refuses.
pub fn bind(env: &Env, path: &Path) -> io::Result<Listener> {
    let listener = Listener::bind(env, path)?;
    // Its directory is closed to everybody else already, so nobody was faster.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers clients for ever.
pub async fn serve<S: Service + 'static>(env: Env, listener: Listener, service: Rc<S>) {
    let places = Rc::new(Semaphore::new(CLIENTS));
    loop {
        let place = Rc::clone(&places).acquire_owned(1).await;
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a control connection was not taken");
                env.sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (service, client_env) = (Rc::clone(&service), env.clone());
        env.spawn(async move {
            if let Err(error) = client(&client_env, &stream, service).await {
                tracing::info!(%error, "a control connection ended");
            }
            stream.shutdown();
            drop(place);
        })
        .detach();
    }
}

async fn client<S: Service>(env: &Env, stream: &Stream, service: Rc<S>) -> io::Result<()> {
    let uid = stream.peer_uid()?;
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {uid} is not root")));
    }
    let (mut buf, mut filled) = (Buf::zeroed(LINE), 0);
    // A line that comes byte by byte has no more time than one that does not come.
    let mut until = env.now() + PATIENCE.as_nanos() as u64;
    loop {
        let Some(end) = buf[..filled].iter().position(|byte| *byte == b'\n') else {
            if filled == buf.len() {
                return send(env, stream, &Reply::Error(format!("a line of more than {LINE} bytes"))).await;
            }
            let left = Duration::from_nanos(until.saturating_sub(env.now()));
            let Ok((back, result)) = env.timeout(left, stream.recv(buf, filled)).await else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            buf = back;
            match result? {
                0 => return Ok(()),
                count => filled += count,
            }
            continue;
        };
        // Who gave up waiting before it was begun was told that nobody answers: nothing happens behind their back.
        if stream.is_hung_up() {
            return Ok(());
        }
        let reply = match serde_json::from_slice(&buf[..end]) {
            Ok(request) => Rc::clone(&service).answer(request).await,
            Err(error) => Reply::Error(format!("not a request: {error}")),
        };
        buf.copy_within(end + 1..filled, 0);
        filled -= end + 1;
        send(env, stream, &reply).await?;
        until = env.now() + PATIENCE.as_nanos() as u64;
    }
}

async fn send(env: &Env, stream: &Stream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let sent = env.timeout(PATIENCE, stream.send(vec![Buf::copied(&line).freeze()])).await;
    sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
