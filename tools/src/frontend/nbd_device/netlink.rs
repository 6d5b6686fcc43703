//! The kernel's NBD client, asked over generic netlink: connect, reconnect, disconnect.
//!
//! Facts are from the kernel's `include/uapi/linux/nbd-netlink.h` and `drivers/block/nbd.c`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::err::RouterError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder, NoUserHeader};
use neli::neli_enum;
use neli::nl::NlPayload;
use neli::router::synchronous::NlRouter;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;

/// `NBD_CMD_*`.
#[neli_enum(serialized_type = "u8")]
#[allow(missing_docs)] // the kernel's names
pub enum Command {
    Unspec = 0,
    Connect = 1,
    Disconnect = 2,
    Reconfigure = 3,
}

impl neli::consts::genl::Cmd for Command {}

/// `NBD_ATTR_*`; inside `Sockets`, 1 is `NBD_SOCK_ITEM`, and inside that `NBD_SOCK_FD`.
#[neli_enum(serialized_type = "u16")]
#[allow(missing_docs)] // the kernel's names
pub enum Attribute {
    Unspec = 0,
    Index = 1,
    SizeBytes = 2,
    BlockSizeBytes = 3,
    Timeout = 4,
    ServerFlags = 5,
    ClientFlags = 6,
    Sockets = 7,
    DeadConnTimeout = 8,
    DeviceList = 9,
    BackendIdentifier = 10,
}

impl neli::consts::genl::NlAttrType for Attribute {}

type Message = Genlmsghdr<Command, Attribute>;

/// What a device is like.
pub(super) struct Config<'a> {
    /// Size in bytes.
    pub bytes: u64,
    /// Smallest addressable unit in bytes.
    pub block: u32,
    /// `NBD_FLAG_*` of the server.
    pub flags: u16,
    /// The kernel's end of the connection.
    pub socket: BorrowedFd<'a>,
    /// After this, a request that is not answered makes the kernel give the connection up.
    pub timeout: Duration,
    /// Requests wait for this long for another connection when one was given up.
    pub dead_timeout: Duration,
    /// Who serves it: only who says the same may reconnect.
    pub identifier: &'a str,
}

fn attribute(kind: Attribute, payload: impl neli::Size + neli::ToBytes) -> Result<Nlattr<Attribute, Buffer>> {
    let kind = AttrTypeBuilder::default().nla_type(kind).build()?;
    Ok(NlattrBuilder::default().nla_type(kind).nla_payload(payload).build()?)
}

fn nested(kind: impl Into<u16>, inside: &Nlattr<u16, Buffer>) -> Result<Nlattr<u16, Buffer>> {
    let kind = AttrTypeBuilder::default().nla_type(kind.into()).nla_nested(true).build()?;
    Ok(NlattrBuilder::default().nla_type(kind).nla_payload(Vec::<u8>::new()).build()?.nest(inside)?)
}

fn sockets(socket: BorrowedFd<'_>) -> Result<Nlattr<Attribute, Buffer>> {
    let descriptor = u32::try_from(socket.as_raw_fd())?;
    let kind = AttrTypeBuilder::default().nla_type(1u16).build()?;
    let descriptor = NlattrBuilder::default().nla_type(kind).nla_payload(descriptor).build()?;
    let item = nested(1u16, &descriptor)?;
    let kind = AttrTypeBuilder::default().nla_type(Attribute::Sockets).nla_nested(true).build()?;
    Ok(NlattrBuilder::default().nla_type(kind).nla_payload(Vec::<u8>::new()).build()?.nest(&item)?)
}

fn send(command: Command, attributes: Vec<Nlattr<Attribute, Buffer>>) -> Result<Option<u32>> {
    let (router, _) = NlRouter::connect(NlFamily::Generic, None, Groups::empty()).context("netlink")?;
    let family = router.resolve_genl_family("nbd").map_err(|error| anyhow!("the nbd module: {error}"))?;
    let message = GenlmsghdrBuilder::<Command, Attribute, NoUserHeader>::default()
        .cmd(command)
        .version(1)
        .attrs(attributes.into_iter().collect::<GenlBuffer<_, _>>())
        .build()?;
    let answers = router.send::<_, _, u16, Message>(family, NlmF::ACK, NlPayload::Payload(message));
    let mut index = None;
    for answer in answers.map_err(|error| anyhow!("netlink: {error}"))? {
        let answer = answer.map_err(|error: RouterError<u16, Message>| match error {
            RouterError::Nlmsgerr(refused) => {
                anyhow::Error::new(io::Error::from_raw_os_error(-refused.error()))
            }
            other => anyhow!("netlink: {other}"),
        })?;
        if let NlPayload::Payload(message) = answer.nl_payload() {
            let attributes = message.attrs().get_attr_handle();
            index = attributes.get_attr_payload_as::<u32>(Attribute::Index).ok().or(index);
        }
    }
    Ok(index)
}

fn common(config: &Config<'_>) -> Result<Vec<Nlattr<Attribute, Buffer>>> {
    Ok(vec![
        attribute(Attribute::Timeout, config.timeout.as_secs())?,
        attribute(Attribute::DeadConnTimeout, config.dead_timeout.as_secs())?,
        sockets(config.socket)?,
        attribute(Attribute::BackendIdentifier, config.identifier)?,
    ])
}

/// Makes a block device; the number N of `/dev/nbdN`.
///
/// # Errors
/// The module is not loaded, or refuses.
pub(super) fn connect(config: &Config<'_>) -> Result<u32> {
    let mut attributes = vec![
        attribute(Attribute::SizeBytes, config.bytes)?,
        attribute(Attribute::BlockSizeBytes, u64::from(config.block))?,
        attribute(Attribute::ServerFlags, u64::from(config.flags))?,
    ];
    attributes.extend(common(config)?);
    send(Command::Connect, attributes)?.context("the kernel does not say which device it made")
}

/// Gives a device another connection in place of one that ended. While the kernel has not noticed that end, it says yes
/// and lets the new connection go at once.
///
/// # Errors
/// There is no such device, or it is somebody else's.
pub(super) fn reconnect(index: u32, config: &Config<'_>) -> Result<()> {
    let mut attributes = vec![attribute(Attribute::Index, index)?];
    attributes.extend(common(config)?);
    send(Command::Reconfigure, attributes).map(drop)
}

/// Removes a block device: requests under way end first.
///
/// # Errors
/// There is no such device.
pub(super) fn disconnect(index: u32) -> Result<()> {
    send(Command::Disconnect, vec![attribute(Attribute::Index, index)?]).map(drop)
}
