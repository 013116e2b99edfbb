//! The newc cpio format (Documentation/driver-api/early-userspace/buffer-format.rst).

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;
/// Device number of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);
const TRAILER: &str = "TRAILER!!!";
/// Headers and contents begin at multiples of this.
const ALIGN: usize = 4;

/// An archive that is being built. Owner is root, times are zero, inode numbers count up.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// What differs between entries.
#[derive(Default)]
struct Entry<'a> {
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Archive {
    /// Adds a directory, mode 0755.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, 0, &Entry { mode: DIRECTORY | 0o755, links: 2, ..Default::default() });
    }

    /// Adds the console's device node, mode 0600.
    pub fn console(&mut self, name: &str) {
        let entry = Entry { mode: CHARACTER | 0o600, links: 1, device: CONSOLE, ..Default::default() };
        self.entry(name, 0, &entry);
    }

    /// Adds a file with permission bits `mode`; `None` when its length does not fit the format.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Option<()> {
        let len = u32::try_from(content.len()).ok()?;
        self.entry(name, len, &Entry { mode: REGULAR | mode, links: 1, content, ..Default::default() });
        Some(())
    }

    /// The archive with its end mark.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = u32::MAX;
        self.entry(TRAILER, 0, &Entry { links: 1, ..Default::default() });
        self.bytes
    }

    fn entry(&mut self, name: &str, len: u32, entry: &Entry<'_>) {
        self.entries = self.entries.wrapping_add(1);
        let Entry { mode, links, device: (major, minor), content } = *entry;
        // Names are file names: their length fits.
        let name_len = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, mtime, length, device of the file system, device number, name length, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, len, 0, 0, major, minor, name_len, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Name, mode and content of every entry.
    pub fn parse(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, len, name_len) = (field(1), field(6) as usize, field(11) as usize);
            assert_eq!((field(2), field(3), field(5)), (0, 0, 0), "owner and time");
            let name = String::from_utf8(bytes[110..110 + name_len - 1].to_vec()).unwrap();
            let content = (110 + name_len).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(bytes.len(), content);
                return entries;
            }
            entries.push((name, mode, bytes[content..content + len].to_vec()));
            bytes = &bytes[(content + len).next_multiple_of(4)..];
        }
    }

    #[test]
    fn an_archive_reads_back_as_it_was_written() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.console("dev/console");
        archive.file("init", 0o755, b"agent").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        let entries = parse(&archive.finish());
        let expected = [
            ("dev", 0o040_755, b"".as_slice()),
            ("dev/console", 0o020_600, b""),
            ("init", 0o100_755, b"agent"),
            ("empty", 0o100_644, b""),
        ];
        assert_eq!(entries, expected.map(|(name, mode, content)| (name.into(), mode, content.into())));
    }
}
