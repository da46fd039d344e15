//! QEMU's arguments for the disk under test.

use std::path::Path;

/// QEMU's arguments for a disk behind a vhost-user back end, whose memory the back end shares. A back
/// end that goes away is looked for once a second.
pub(crate) fn vhost_disk(socket: &Path, memory_mib: u32) -> Vec<String> {
    let path = socket.display().to_string().replace(',', ",,");
    let mut arguments = shared_memory(memory_mib).to_vec();
    arguments.extend([
        "-chardev".to_owned(),
        format!("socket,id=vu0,path={path},reconnect=1"),
        "-device".to_owned(),
        "vhost-user-blk-pci,chardev=vu0,num-queues=2".to_owned(),
    ]);
    arguments
}

/// The same guest but for its disk, which is that raw image by QEMU's own means: what fails here as well
/// is no fault of the back end.
pub(crate) fn own_disk(image: &Path, memory_mib: u32) -> Vec<String> {
    let mut arguments = shared_memory(memory_mib).to_vec();
    arguments.extend(image_disk(image));
    if let Some(device) = arguments.last_mut() {
        device.push_str(",num-queues=2");
    }
    arguments
}

fn shared_memory(memory_mib: u32) -> [String; 4] {
    [
        "-object",
        &format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
        "-machine",
        "memory-backend=ram",
    ]
    .map(str::to_owned)
}

/// QEMU's arguments for a disk behind an NBD server on a Unix socket.
pub(crate) fn disk(name: &str, socket: &Path) -> [String; 4] {
    // QEMU reads a comma as the end of a value unless it is doubled.
    let path = socket.display().to_string().replace(',', ",,");
    [
        "-blockdev".to_owned(),
        format!("driver=nbd,node-name={name},server.type=unix,server.path={path},cache.direct=on"),
        // A disk with a volatile cache: the guest's flushes come through.
        "-device".to_owned(),
        format!("virtio-blk-pci,drive={name},write-cache=on"),
    ]
}

/// QEMU's arguments for a disk that is a raw image of this machine, by QEMU's own means.
pub(crate) fn image_disk(image: &Path) -> [String; 4] {
    let path = image.display().to_string().replace(',', ",,");
    [
        "-blockdev".to_owned(),
        format!(
            "driver=raw,node-name=d0,file.driver=file,file.filename={path},file.aio=io_uring,\
             file.cache.direct=on,cache.direct=on"
        ),
        "-device".to_owned(),
        "virtio-blk-pci,drive=d0,write-cache=on".to_owned(),
    ]
}
