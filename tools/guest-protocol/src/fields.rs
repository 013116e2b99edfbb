//! Taking a payload apart.

/// Why a payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The payload ends within a field.
    #[error("The {frame} frame is cut off in its {field}")]
    Short {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The payload goes on behind its last field.
    #[error("The {frame} frame has {len} bytes behind its last field")]
    Trailing {
        /// The frame.
        frame: &'static str,
        /// Bytes left over.
        len: usize,
    },
    /// A field has a value that no version of the protocol gives it.
    #[error("The {frame} frame has an unknown {field}, {value}")]
    Value {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A field that must be text is not, or not of the kind it must be.
    #[error("The {field} of the {frame} frame is no text of its kind")]
    Text {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
    },
    /// No frame has this kind in this direction.
    #[error("No frame is of kind {kind:#04x}")]
    Kind {
        /// First byte of the header.
        kind: u8,
    },
}

/// What is left of a payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    frame: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(frame: &'static str, payload: &'a [u8]) -> Self {
        Fields { frame, rest: payload }
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], PayloadError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or(PayloadError::Short { frame: self.frame, field })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn byte(&mut self, field: &'static str) -> Result<u8, PayloadError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, PayloadError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, PayloadError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self, field: &'static str) -> Result<i32, PayloadError> {
        self.array(field).map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, PayloadError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], PayloadError> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or(PayloadError::Short { frame: self.frame, field })?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn short_text(&mut self, field: &'static str) -> Result<&'a str, PayloadError> {
        let len = self.byte(field)?;
        let bytes = self.bytes(field, usize::from(len))?;
        std::str::from_utf8(bytes).map_err(|_| PayloadError::Text { frame: self.frame, field })
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(self) -> Result<(), PayloadError> {
        match self.rest.len() {
            0 => Ok(()),
            len => Err(PayloadError::Trailing { frame: self.frame, len }),
        }
    }
}
