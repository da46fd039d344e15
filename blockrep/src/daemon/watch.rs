//! Notices when an image is taken away under a running daemon.
//!
//! The open file goes on to work, so nothing is lost yet, and everything is once the daemon ends:
//! that must not be silent. Main thread only, once a second.

use super::thread::Mail;
use crate::reactor::MailSender;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An image as it was when it was opened.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    identity: (u64, u64),
    trouble: Option<String>,
}

/// Every image of a daemon.
#[derive(Debug, Default)]
pub(super) struct Watch {
    images: Vec<Option<Watched>>,
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|known| (known.dev(), known.ino()))
}

impl Watch {
    /// Remembers what stands at these paths now, volume 0 first.
    pub(super) fn new(images: &[&Path]) -> Self {
        let watched = |path: &&Path| {
            Some(Watched {
                path: path.to_path_buf(),
                identity: identity(path).ok()?,
                trouble: None,
            })
        };
        Self {
            images: images.iter().map(watched).collect(),
        }
    }

    /// Tells the thread of a volume when its image went, and when it came back.
    pub(super) fn look(&mut self, threads: &[MailSender<Mail>]) {
        for (image, thread) in self.images.iter_mut().zip(threads) {
            let Some(image) = image else { continue };
            let trouble = trouble(image);
            if trouble != image.trouble {
                image.trouble.clone_from(&trouble);
                // A thread that has ended needs no telling.
                let _ = thread.send(Mail::Image(trouble));
            }
        }
    }
}

fn trouble(image: &Watched) -> Option<String> {
    let what = match identity(&image.path) {
        Ok(now) if now == image.identity => return None,
        Ok(_) => "was replaced",
        Err(_) => "was removed",
    };
    Some(format!(
        "image {} {what} while in use: its data is lost when this daemon ends, copy it from the \
         NBD export first",
        image.path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::mailbox;

    /// Somebody cleans up the wrong file; the disk works on until the next restart, empty.
    #[test]
    fn a_removed_image_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, "x").unwrap();
        let (sender, mut mailbox) = mailbox::<Mail>(16).unwrap();
        let senders = [sender];
        let mut watch = Watch::new(&[&path]);
        watch.look(&senders);
        assert!(mailbox.try_recv().is_err());
        let kept = dir.path().join("moved.img");
        fs::rename(&path, &kept).unwrap();
        watch.look(&senders);
        watch.look(&senders);
        let Ok(Mail::Image(Some(text))) = mailbox.try_recv() else {
            panic!("nothing was told");
        };
        assert!(text.contains("was removed"), "{text}");
        assert!(mailbox.try_recv().is_err());
        fs::rename(&kept, &path).unwrap();
        watch.look(&senders);
        assert!(matches!(mailbox.try_recv(), Ok(Mail::Image(None))));
    }
}
