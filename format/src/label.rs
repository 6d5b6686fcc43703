//! Names of devices, as superblocks and the uuid table hold them.

use std::fmt;

/// Bytes of a label.
pub const LABEL_BYTES: usize = 32;

/// A label: printed and compared up to the first NUL, which may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Label(pub [u8; LABEL_BYTES]);

impl Label {
    /// A label of `text`; nothing when it has more than 32 bytes or a NUL.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut label = Self::default();
        if text.contains('\0') {
            return None;
        }
        label.0.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(label)
    }
    /// The bytes before the first NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or_default()
    }
    /// The text before the first NUL and without a newline at its end; other bytes that are no text are replaced.
    #[must_use]
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(self.as_bytes()).trim_end_matches('\n').to_owned()
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_text().fmt(f)
    }
}
