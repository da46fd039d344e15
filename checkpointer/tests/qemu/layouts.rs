//! Memory that is looked for in the wrong file, or at the wrong address, is copied from nowhere.

use crate::findings::Bare;
use crate::guest::{Guest, Memory, boot_disk, dir, plain_args, program};
use checkpointer::hypervisor::qemu::ram::Layout;
use checkpointer::memory::PAGE_BYTES;
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn memory_of_a_description_is_found() {
    let Some(program) = program("a layout") else {
        return;
    };
    let mut guest = Guest::start(&program, &[]);
    let layout = Layout::find(&mut guest.qemu).expect("a layout");
    let [block] = layout.ram.blocks() else {
        panic!("{:?}", layout.ram);
    };
    assert_eq!(
        (block.id.as_str(), &block.file),
        ("blockrep-ram", &guest.place.memory)
    );
    assert_eq!(layout.ram.pages() * PAGE_BYTES, 32 << 20);
    let [mapped] = layout.mapped[..] else {
        panic!("{:?}", layout.mapped);
    };
    assert_eq!((mapped.bytes, mapped.first_page), (32 << 20, 0));
    // The same bytes at the address as in the file.
    guest.qemu.stop().expect("paused");
    let process = File::open(format!("/proc/{}/mem", guest.child.pid())).expect("a child's memory");
    let mut there = [0; 4];
    process
        .read_exact_at(&mut there, mapped.start + 0x600)
        .expect("read");
    assert_eq!(u32::from_le_bytes(there), guest.memory.counter());
    assert_eq!(layout.mutable_outside().count(), 0, "{:?}", layout.outside);
    assert!(layout.outside.iter().any(|block| block.name == "pc.bios"));
}

#[test]
fn memory_without_a_name_is_found_and_private_is_not_taken() {
    let Some(program) = program("other layouts") else {
        return;
    };
    let dir = dir();
    let in_dir = format!(
        "memory-backend-file,id=m0,size=32M,share=on,mem-path={}",
        dir.path().display()
    );
    for (object, is_good) in [
        ("memory-backend-memfd,id=m0,size=32M,share=on", true),
        (in_dir.as_str(), true),
        ("memory-backend-memfd,id=m0,size=32M,share=off", false),
        ("memory-backend-ram,id=m0,size=32M", false),
    ] {
        let mut args = plain_args(&boot_disk(dir.path()));
        let words = [
            "-m",
            "32M",
            "-object",
            object,
            "-machine",
            "memory-backend=m0",
        ];
        args.extend(words.map(str::to_owned));
        let mut bare = Bare::start(&program, dir.path(), &args);
        let layout = Layout::find(&mut bare.qemu);
        if is_good {
            let layout = layout.expect(object);
            let block = &layout.ram.blocks()[0];
            Memory::open(&block.file).wait_counting(0);
        } else {
            let told = layout.expect_err(object).to_string();
            assert!(told.contains("share=on"), "{told}");
        }
    }
}
