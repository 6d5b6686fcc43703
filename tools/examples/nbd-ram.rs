//! Serves a volume in memory: `nbd-ram SOCKET BYTES`. For measuring the front end against other servers.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Context;
use bcache_engine::env::{Runtime, Signals};
use bcache_engine::net::Listener;
use bcache_tools::frontend::nbd::{ExportTable, Limits, Server};
use bcache_tools::frontend::ram::RamVolume;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let socket = PathBuf::from(args.next().context("usage: nbd-ram SOCKET BYTES")?);
    let bytes =
        args.next().and_then(|arg| arg.to_str()?.parse().ok()).context("usage: nbd-ram SOCKET BYTES")?;
    let runtime = Runtime::new()?;
    let env = runtime.env();
    let signals = Signals::termination(&env)?;
    let exports = ExportTable::new(vec![Rc::new(RamVolume::new("ram", bytes))]);
    let server = Server::new(&env, Rc::new(exports), Limits::default());
    let listener = Listener::bind(&env, &socket)?;
    println!("serving at {} by {:?}", socket.display(), runtime.backend());
    runtime.block_on(async {
        let listening = {
            let server = server.clone();
            env.spawn(async move { server.listen(&listener).await })
        };
        let signal = signals.next().await?;
        drop(listening);
        server.stop().await;
        eprintln!("stopped by {signal}: {:?}", server.stats());
        Ok(())
    })
}
