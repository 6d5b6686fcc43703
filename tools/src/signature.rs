//! Signatures of file systems, partition tables and the like on a device, as `wipefs` finds them.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

/// One signature.
#[derive(Debug, Clone, Deserialize)]
pub struct Signature {
    /// Byte offset of its magic, as `wipefs` writes it: `0x438`.
    offset: String,
    /// What it is of: `ext4`, `bcache`, `gpt`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes of its magic.
    length: u64,
}

#[derive(Deserialize)]
struct Report {
    signatures: Vec<Signature>,
}

impl Signature {
    /// Where its magic is: first byte and length. Nothing if `wipefs` said nonsense.
    #[must_use]
    pub fn place(&self) -> Option<(u64, usize)> {
        let offset = u64::from_str_radix(self.offset.strip_prefix("0x")?, 16).ok()?;
        // The longest magic that wipefs knows has a few dozen bytes.
        let length = usize::try_from(self.length).ok().filter(|&length| length <= 4096)?;
        Some((offset, length))
    }
}

/// All signatures on a device, none where there is no `wipefs` to find them.
///
/// # Errors
/// `wipefs` failed, or what it said cannot be understood.
pub fn find(path: &Path) -> io::Result<Vec<Signature>> {
    let run = Command::new("wipefs")
        .args(["--no-act", "--json", "--output", "OFFSET,TYPE,LENGTH", "--"])
        .arg(path)
        .env("LC_ALL", "C")
        // An administrator's PATH may lack the directories where it lives.
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null())
        .output();
    let output = match run {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("wipefs: {said}")));
    }
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Vec::new()); // older ones say nothing when there is nothing
    }
    let report: Report = serde_json::from_slice(&output.stdout)?;
    Ok(report.signatures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_wipefs_writes_them() {
        let one =
            |offset: &str, length| Signature { offset: offset.into(), kind: "x".into(), length }.place();
        assert_eq!(one("0x438", 2), Some((0x438, 2)));
        assert_eq!(one("1080", 2), None);
        assert_eq!(one("0x438", u64::MAX), None);
    }
}
