//! Telling systemd how things are, where it asked to be told.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where `NOTIFY_SOCKET` leads, or nowhere.
pub(super) struct Notify {
    /// Connected from the beginning: when the machine leaves its initramfs, the path leads nowhere for processes that
    /// were started there, but the socket is still systemd's.
    socket: Option<UnixDatagram>,
    /// How often systemd wants to hear that we live.
    watchdog: Option<Duration>,
}

fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

impl Notify {
    /// Reads the environment.
    #[must_use]
    pub(super) fn from_environment() -> Notify {
        let socket = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| {
            let socket = UnixDatagram::unbound().and_then(|socket| {
                socket.connect_addr(&address(&name)?)?;
                Ok(socket)
            });
            socket.inspect_err(|error| tracing::warn!(name, %error, "systemd cannot be told")).ok()
        });
        let ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let micros = std::env::var("WATCHDOG_USEC").ok().filter(|_| ours);
        let watchdog = micros.and_then(|micros| micros.parse().ok()).map(Duration::from_micros);
        Notify { socket, watchdog }
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(%error, "systemd was not told");
        }
    }

    /// Started.
    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// On the way to the end.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// What goes on, in one line.
    pub(super) fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// Alive.
    pub(super) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How often [`alive`](Self::alive) is to be called: twice as often as systemd wants to hear it.
    #[must_use]
    pub(super) fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }
}
