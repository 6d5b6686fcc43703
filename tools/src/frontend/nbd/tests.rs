//! The server against a client that writes the bytes by hand, well and badly.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::dev::{Buf, Shared};
use bcache_engine::env::{Backend, Env, Rng, Runtime};
use bcache_engine::net::Stream;
use bcache_engine::volume::{Volume, VolumeError, VolumeFuture, VolumeId};

use super::proto::{self, command_flag, error};
use super::*;
use crate::frontend::ram::RamVolume;

const SIZE: u64 = 4 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;

/// A client without any manners.
struct Client(Stream);

impl Client {
    async fn send(&self, bytes: &[u8]) {
        self.0.send(vec![Buf::copied(bytes).freeze()]).await.unwrap();
    }

    async fn receive(&self, len: usize) -> Vec<u8> {
        self.0.recv_exact(Buf::zeroed(len), 0).await.unwrap().to_vec()
    }

    /// Whether the server has ended the connection, whatever it sent before.
    async fn ended(&self) -> bool {
        loop {
            match self.0.recv(Buf::zeroed(65536), 0).await.1 {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    }

    async fn greet(&self, flags: u32) {
        assert_eq!(self.receive(18).await, proto::greeting());
        self.send(&flags.to_be_bytes()).await;
    }

    async fn option(&self, option: u32, data: &[u8]) {
        let header = [
            &proto::OPTION_MAGIC.to_be_bytes()[..],
            &option.to_be_bytes(),
            &(data.len() as u32).to_be_bytes(),
            data,
        ];
        self.send(&header.concat()).await;
    }

    /// The kind and the data of the next answer to `option`.
    async fn answer(&self, option: u32) -> (u32, Vec<u8>) {
        let header = self.receive(20).await;
        assert_eq!(header[..8], proto::OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(header[8..12], option.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        (number(12), self.receive(number(16) as usize).await)
    }

    /// Chooses an export by `NBD_OPT_GO`; its size and flags.
    async fn go(&self, name: &str) -> (u64, u16) {
        let data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat();
        self.option(7, &data).await;
        let mut found = None;
        loop {
            match self.answer(7).await {
                (1, _) => return found.expect("an export's size comes before the end"),
                (3, info) if info[..2] == [0, 0] => {
                    let size = u64::from_be_bytes(info[2..10].try_into().unwrap());
                    found = Some((size, u16::from_be_bytes(info[10..12].try_into().unwrap())));
                }
                (3, _) => {}
                (kind, _) => panic!("answer {kind:#x} to GO {name:?}"),
            }
        }
    }

    async fn request(&self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) {
        let header = [
            &proto::REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
            data,
        ];
        self.send(&header.concat()).await;
    }

    /// The cookie and the error of the next simple reply.
    async fn reply(&self) -> (u64, u32) {
        let header = self.receive(16).await;
        assert_eq!(header[..4], proto::SIMPLE_REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        (u64::from_be_bytes(header[8..].try_into().unwrap()), error)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> u32 {
        self.request(WRITE, 0, 1, offset, data.len() as u32, data).await;
        self.reply().await.1
    }

    async fn read(&self, offset: u64, len: u32) -> Vec<u8> {
        self.request(READ, 0, 2, offset, len, &[]).await;
        assert_eq!(self.reply().await, (2, 0));
        self.receive(len as usize).await
    }
}

struct World {
    env: Env,
    server: Server,
    volume: Rc<RamVolume>,
}

impl World {
    fn new(env: &Env, limits: Limits) -> World {
        let volume = Rc::new(RamVolume::new("ram", SIZE));
        let exports = ExportTable::new(vec![volume.clone(), Rc::new(RamVolume::new("other", 4096))]);
        World { env: env.clone(), server: Server::new(env, Rc::new(exports), limits), volume }
    }

    fn connect(&self) -> Client {
        let (ours, theirs) = Stream::pair(&self.env).unwrap();
        self.server.serve(theirs);
        Client(ours)
    }

    /// A client past its handshake.
    async fn client(&self) -> Client {
        let client = self.connect();
        client.greet(3).await;
        client.go("").await;
        client
    }

    /// Waits until all clients are gone.
    async fn empty(&self) {
        while self.server.clients() > 0 {
            self.env.sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Runs `body` with a server on each backend.
fn each(body: impl AsyncFn(&World)) {
    for backend in [Backend::Auto, Backend::Threads] {
        let runtime = Runtime::with_backend(backend).unwrap();
        runtime.block_on(body(&World::new(&runtime.env(), Limits::default())));
    }
}

#[test]
fn exports_are_found_by_name_label_uuid_and_index() {
    each(async |world| {
        let uuid = world.volume.id().uuid.to_string();
        for (name, size) in
            [("", SIZE), ("ram", SIZE), ("ram-label", SIZE), (&uuid, SIZE), ("0", SIZE), ("1", 4096)]
        {
            let client = world.connect();
            client.greet(3).await;
            assert_eq!(client.go(name).await.0, size, "{name:?}");
        }
        let client = world.connect();
        client.greet(3).await;
        client.option(7, &[0, 0, 0, 1, b'x', 0, 0]).await;
        assert_eq!(client.answer(7).await.0, (1 << 31) + 6);
        assert_eq!(client.go("ram").await.0, SIZE, "a second try is allowed");
    });
}

#[test]
fn what_is_offered_is_what_is_true() {
    each(async |world| {
        let client = world.connect();
        client.greet(3).await;
        use proto::transmission::*;
        let expect = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | CAN_MULTI_CONN;
        assert_eq!(client.go("").await.1, expect);
    });
}

#[test]
fn the_old_way_to_choose_an_export_works() {
    each(async |world| {
        for (flags, zeroes) in [(1, 124), (3, 0)] {
            let client = world.connect();
            client.greet(flags).await;
            client.option(1, b"ram").await;
            let answer = client.receive(10 + zeroes).await;
            assert_eq!(answer[..8], SIZE.to_be_bytes());
            assert!(answer[10..].iter().all(|b| *b == 0));
            assert_eq!(client.read(0, 512).await, [0; 512]);
        }
        let client = world.connect();
        client.greet(3).await;
        client.option(1, b"nothing").await;
        assert!(client.ended().await);
    });
}

#[test]
fn options_are_answered_each_in_its_way() {
    each(async |world| {
        let client = world.connect();
        client.greet(3).await;
        client.option(3, &[]).await;
        let (kind, data) = client.answer(3).await;
        assert_eq!((kind, &data[..7]), (2, &[0, 0, 0, 3, b'r', b'a', b'm'][..]));
        assert_eq!(client.answer(3).await.0, 2);
        assert_eq!(client.answer(3).await, (1, Vec::new()));
        for (option, data, kind) in [
            (3, &b"x"[..], (1 << 31) + 3),
            (8, b"x", (1 << 31) + 3),
            (6, b"x", (1 << 31) + 3),
            (5, b"", (1 << 31) + 1),
            (10, b"abc", (1 << 31) + 1),
            (u32::MAX, b"", (1 << 31) + 1),
        ] {
            client.option(option, data).await;
            assert_eq!(client.answer(option).await.0, kind, "option {option}");
        }
        // Asked for its sizes and its name, it tells them, and options go on.
        client.option(6, &[0, 0, 0, 0, 0, 2, 0, 3, 0, 1]).await;
        let mut kinds = Vec::new();
        loop {
            match client.answer(6).await {
                (3, info) => kinds.push(info[1]),
                (kind, _) => break assert_eq!(kind, 1),
            }
        }
        assert_eq!(kinds, [0, 3, 1]);
        client.option(2, &[]).await;
        assert_eq!(client.answer(2).await.0, 1);
        assert!(client.ended().await);
    });
}

#[test]
fn bytes_are_kept() {
    each(async |world| {
        let client = world.client().await;
        let data: Vec<u8> = (0..1 << 20).map(|i| (i / 511) as u8).collect();
        assert_eq!(client.write(512, &data).await, 0);
        assert_eq!(client.read(0, 512).await, [0; 512]);
        assert!(client.read(512, 1 << 20).await == data);
        for command in [TRIM, ZEROES] {
            assert_eq!(client.write(0, &[7; 8192]).await, 0);
            client.request(command, 0, 3, 512, 4096, &[]).await;
            assert_eq!(client.reply().await, (3, 0));
            let expect = [[7; 512].as_slice(), &[0; 4096], &[7; 3584]].concat();
            assert!(client.read(0, 8192).await == expect);
        }
        let before = world.volume.flushes();
        client.request(FLUSH, 0, 4, 0, 0, &[]).await;
        assert_eq!(client.reply().await, (4, 0));
        client.request(TRIM, command_flag::FUA, 5, 0, 512, &[]).await;
        assert_eq!(client.reply().await, (5, 0));
        assert_eq!(world.volume.flushes(), before + 2);
        // A second client sees the same bytes.
        assert!(world.client().await.read(8192, 512).await == data[8192 - 512..8192]);
    });
}

#[test]
fn structured_replies_carry_reads_and_their_errors() {
    each(async |world| {
        let client = world.connect();
        client.greet(3).await;
        client.option(8, &[]).await;
        assert_eq!(client.answer(8).await.0, 1);
        assert_ne!(client.go("").await.1 & proto::transmission::SEND_DF, 0);
        assert_eq!(client.write(512, &[9; 512]).await, 0, "writes keep the simple form");
        client.request(READ, command_flag::DF, 8, 512, 512, &[]).await;
        assert_eq!(client.receive(28).await, proto::data_chunk(8, 512, 512));
        assert_eq!(client.receive(512).await, [9; 512]);
        client.request(READ, 0, 9, SIZE, 512, &[]).await;
        assert_eq!(client.receive(26).await, proto::error_chunk(9, error::EINVAL));
        client.request(READ, 0, 10, 0, 0, &[]).await;
        assert_eq!(client.receive(20).await, proto::empty_chunk(10));
    });
}

#[test]
fn refused_requests_leave_the_stream_in_step() {
    each(async |world| {
        let client = world.client().await;
        assert_eq!(client.write(SIZE - 512, &[1; 1024]).await, error::ENOSPC);
        assert_eq!(client.write(100, &[1; 300_000]).await, error::EINVAL);
        client.request(READ, 0, 3, SIZE, 512, &[]).await;
        assert_eq!(client.reply().await, (3, error::EINVAL));
        client.request(99, 0, 4, 0, 512, &[]).await;
        assert_eq!(client.reply().await, (4, error::EINVAL));
        assert_eq!(client.write(0, &[1; 512]).await, 0);
        assert_eq!(client.read(0, 512).await, [1; 512]);
        assert_eq!(world.server.stats().errors.get(), 4);
    });
}

#[test]
fn many_requests_at_once_are_all_answered() {
    each(async |world| {
        let client = world.client().await;
        let mut bytes = Vec::new();
        for cookie in 0..5000u64 {
            bytes.extend_from_slice(&proto::REQUEST_MAGIC.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 0]);
            bytes.extend_from_slice(&cookie.to_be_bytes());
            bytes.extend_from_slice(&(cookie % 8 * 512).to_be_bytes());
            bytes.extend_from_slice(&512u32.to_be_bytes());
        }
        let sender = client.0.clone();
        let sending = world.env.spawn(async move { sender.send(vec![Buf::copied(&bytes).freeze()]).await });
        let mut seen = vec![false; 5000];
        for _ in 0..5000 {
            let (cookie, error) = client.reply().await;
            assert_eq!(error, 0);
            assert!(!std::mem::replace(&mut seen[cookie as usize], true));
            client.receive(512).await;
        }
        sending.await.unwrap();
    });
}

#[test]
fn a_client_that_never_reads_holds_only_its_own_budget() {
    for backend in [Backend::Auto, Backend::Threads] {
        let runtime = Runtime::with_backend(backend).unwrap();
        let limits = Limits { client_bytes: 1 << 20, ..Limits::default() };
        let world = World::new(&runtime.env(), limits);
        runtime.block_on(async {
            let greedy = world.client().await;
            let sender = greedy.0.clone();
            let flood = world.env.spawn(async move {
                let request =
                    [&proto::REQUEST_MAGIC.to_be_bytes()[..], &[0; 20], &65536u32.to_be_bytes()].concat();
                let many = Buf::copied(&request.repeat(2000)).freeze();
                while sender.send(vec![many.clone()]).await.is_ok() {}
            });
            let other = world.client().await;
            for _ in 0..50 {
                assert_eq!(other.read(0, 4096).await, [0; 4096]);
            }
            let read = world.server.stats().read_bytes.get();
            assert!(read < 8 << 20, "{read} bytes read for one who takes none");
            assert!(!flood.is_finished());
            greedy.0.shutdown();
            flood.await;
            drop(other);
            world.empty().await;
        });
    }
}

#[test]
fn a_write_cut_off_in_the_middle_changes_nothing() {
    each(async |world| {
        let client = world.client().await;
        client.request(WRITE, 0, 1, 0, 1 << 20, &[5; 700_000]).await;
        client.0.shutdown();
        drop(client);
        world.empty().await;
        assert_eq!(world.client().await.read(0, 4096).await, [0; 4096]);
    });
}

#[test]
fn a_client_that_says_goodbye_gets_its_replies_first() {
    each(async |world| {
        let client = world.client().await;
        client.request(WRITE, 0, 1, 0, 512, &[3; 512]).await;
        client.request(READ, 0, 2, 0, 512, &[]).await;
        client.request(DISCONNECT, 0, 3, 0, 0, &[]).await;
        assert_eq!((client.reply().await, client.reply().await), ((1, 0), (2, 0)));
        assert_eq!(client.receive(512).await, [3; 512]);
        assert!(client.ended().await);
        world.empty().await;
    });
}

#[test]
fn nonsense_ends_only_the_connection_it_came_on() {
    each(async |world| {
        let good = world.client().await;
        let mut rng = Rng::new(1);
        for round in 0..200 {
            let client = world.connect();
            // Random bytes after none, one or all steps of a handshake.
            if round % 4 > 0 {
                client.greet(3).await;
            }
            if round % 4 > 1 {
                client.option(77, b"?").await;
                client.answer(77).await;
            }
            if round % 4 > 2 {
                client.go("").await;
            }
            let mut bytes: Vec<u8> = (0..200).map(|_| rng.bits() as u8).collect();
            match round % 3 {
                0 => bytes[..8].copy_from_slice(&proto::OPTION_MAGIC.to_be_bytes()),
                1 => bytes[..4].copy_from_slice(&proto::REQUEST_MAGIC.to_be_bytes()),
                _ => {}
            }
            let _ = client.0.send(vec![Buf::copied(&bytes).freeze()]).await;
            client.0.shutdown();
        }
        assert_eq!(good.write(0, &[1; 512]).await, 0);
        assert_eq!(good.read(0, 512).await, [1; 512]);
        drop(good);
        world.empty().await;
    });
}

#[test]
fn haggling_without_end_is_ended() {
    each(async |world| {
        let client = world.connect();
        client.greet(3).await;
        let taken = client.0.clone();
        let haggler = world.env.spawn(async move {
            let option = [&proto::OPTION_MAGIC.to_be_bytes()[..], &77u32.to_be_bytes(), &[0; 4]].concat();
            let option = Buf::copied(&option).freeze();
            for _ in 0..1000 {
                if taken.send(vec![option.clone()]).await.is_err() {
                    return true;
                }
            }
            false
        });
        assert!(client.ended().await);
        let _ = haggler.await;
        world.empty().await;
    });
}

#[test]
fn the_slow_and_the_many_are_turned_away() {
    for backend in [Backend::Auto, Backend::Threads] {
        let runtime = Runtime::with_backend(backend).unwrap();
        let limits = Limits { clients: 2, handshake: Duration::from_millis(50), ..Limits::default() };
        let world = World::new(&runtime.env(), limits);
        runtime.block_on(async {
            let settled = world.client().await;
            let silent = world.connect();
            let third = world.connect();
            assert!(third.ended().await, "there is room for two");
            assert!(silent.ended().await, "it has had its time");
            assert_eq!(settled.read(0, 512).await, [0; 512], "the handshake's limit does not end a client");
        });
    }
}

#[test]
fn stopping_ends_everyone() {
    each(async |world| {
        let clients = [world.client().await, world.connect()];
        world.server.stop().await;
        assert_eq!(world.server.clients(), 0);
        for client in clients {
            assert!(client.ended().await);
        }
        assert!(world.connect().ended().await);
    });
}

/// A volume whose requests take their time, and fail when told to.
struct Slow {
    env: Env,
    errno: Cell<i32>,
    under_way: Cell<u32>,
    most: Cell<u32>,
    read_only: bool,
}

impl Slow {
    async fn work(&self) -> Result<(), VolumeError> {
        self.under_way.set(self.under_way.get() + 1);
        self.most.set(self.most.get().max(self.under_way.get()));
        self.env.sleep(Duration::from_millis(5)).await;
        self.under_way.set(self.under_way.get() - 1);
        match self.errno.get() {
            0 => Ok(()),
            errno => Err(VolumeError::new(errno, "as told")),
        }
    }
}

impl Volume for Slow {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn id(&self) -> VolumeId {
        VolumeId { name: "slow".into(), label: String::new(), uuid: uuid::Uuid::nil() }
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, _at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            self.work().await?;
            Ok(vec![Buf::zeroed(len as usize).freeze()])
        })
    }

    fn write(&self, _at: u64, _data: Shared, _fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(self.work())
    }

    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(self.work())
    }

    fn discard(&self, _at: u64, _len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(self.work())
    }

    fn write_zeroes(&self, _at: u64, _len: u64, _fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(self.work())
    }
}

fn slow(env: &Env, read_only: bool) -> (Rc<Slow>, Server) {
    let volume = Rc::new(Slow {
        env: env.clone(),
        errno: Cell::new(0),
        under_way: Cell::new(0),
        most: Cell::new(0),
        read_only,
    });
    let server = Server::new(env, Rc::new(ExportTable::new(vec![volume.clone()])), Limits::default());
    (volume, server)
}

#[test]
fn requests_run_side_by_side_and_all_end_before_the_connection_does() {
    let runtime = Runtime::new().unwrap();
    let env = runtime.env();
    runtime.block_on(async {
        let (volume, server) = slow(&env, false);
        let (ours, theirs) = Stream::pair(&env).unwrap();
        server.serve(theirs);
        let client = Client(ours);
        client.greet(3).await;
        client.go("").await;
        for cookie in 0..20 {
            client.request(WRITE, 0, cookie, 0, 512, &[0; 512]).await;
        }
        while volume.most.get() < 20 {
            env.sleep(Duration::from_millis(1)).await;
        }
        client.0.shutdown();
        server.stop().await;
        assert_eq!(volume.under_way.get(), 0);
    });
}

#[test]
fn errors_of_the_volume_reach_the_client() {
    let runtime = Runtime::new().unwrap();
    let env = runtime.env();
    runtime.block_on(async {
        for read_only in [false, true] {
            let (volume, server) = slow(&env, read_only);
            let (ours, theirs) = Stream::pair(&env).unwrap();
            server.serve(theirs);
            let client = Client(ours);
            client.greet(3).await;
            let flags = client.go("").await.1;
            assert_eq!(flags & proto::transmission::READ_ONLY != 0, read_only);
            assert_eq!(flags & proto::transmission::SEND_TRIM == 0, read_only);
            if read_only {
                assert_eq!(client.write(0, &[0; 512]).await, error::EPERM);
                continue;
            }
            for (errno, expect) in
                [(5, error::EIO), (28, error::ENOSPC), (12, error::ENOMEM), (71, error::EIO)]
            {
                volume.errno.set(errno);
                assert_eq!(client.write(0, &[0; 512]).await, expect);
                client.request(READ, 0, 5, 0, 512, &[]).await;
                assert_eq!(client.reply().await, (5, expect));
            }
        }
    });
}
