//! What stands before a guest of `tests/guest/churn.rs` boots: packages, daemons, kernel, accelerator.

use anyhow::Result;

use crate::checkout::Checkout;
use crate::guest::{self, Accelerator, MEMORY_MIB};
use crate::kernel::{self, Contents, GuestKernel};
use crate::lab::Programs;
use crate::packages::{self, Purpose};
use crate::parcel;

/// Memory of a guest whose initramfs holds fio, whose libraries are large.
const FIO_MEMORY_MIB: u32 = 640;

/// All of it.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) programs: Programs,
    pub(crate) kernel: GuestKernel,
    pub(crate) accelerator: Accelerator,
    pub(crate) memory_mib: u32,
}

impl Ground {
    /// Provides it, with fio in the guest or without; `build` makes the daemons.
    pub(crate) fn provide(
        checkout: &Checkout,
        with_fio: bool,
        no_install: bool,
        build: impl FnOnce() -> Result<Programs>,
    ) -> Result<Self> {
        let purposes: &[Purpose] = match with_fio {
            true => &[Purpose::Guest, Purpose::GuestFio],
            false => &[Purpose::Guest],
        };
        packages::provide(checkout, purposes, no_install)?;
        packages::require(purposes)?;
        let programs = build()?;
        let (files, memory_mib) = match with_fio {
            true => (parcel::of_the_system("fio")?, FIO_MEMORY_MIB),
            false => (Vec::new(), MEMORY_MIB),
        };
        let contents = Contents {
            program: "churn",
            modules: &[],
            files: &files,
        };
        let kernel = kernel::provide_with(checkout, &contents)?;
        let accelerator = guest::accelerator(checkout, &kernel)?;
        Ok(Self {
            programs,
            kernel,
            accelerator,
            memory_mib,
        })
    }
}
