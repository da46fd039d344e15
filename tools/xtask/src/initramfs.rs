//! A cpio archive as the kernel takes it for an initramfs ("newc", kernel document
//! driver-api/early-userspace/buffer-format.rst). Written here because a device node in it would
//! otherwise need root. Not compressed: it is a few MiB and read once.

/// Directory, regular file, character device: the kind bits of st_mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[], (0, 0));
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, REGULAR | 0o644, content, (0, 0));
    }

    pub(crate) fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, REGULAR | 0o755, content, (0, 0));
    }

    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER | 0o600, &[], (major, minor));
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("no file in an initramfs reaches 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A header that is off by a byte makes the kernel panic without an init.
    #[test]
    fn an_archive_has_whole_headers_at_multiples_of_four() {
        let mut archive = Archive::new();
        archive.file("abc", b"12345");
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        // 110 header + 4 name + 2 pad, 5 content + 3 pad.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[110..114], b"abc\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
