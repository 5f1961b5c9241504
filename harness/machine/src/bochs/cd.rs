// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CD from which L1 boots in Bochs, whose BIOS knows of nothing else.

use std::fs;
use std::path::Path;

use kvmi_lab_control::Platform;

use super::INSTRUCTIONS_PER_SECOND;
use crate::boot::{Boot, BootError, io_error};
use crate::process::Program;
use crate::progress::Progress;

/// Where Debian keeps the boot loader of the CD.
pub(super) const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
pub(super) const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// What the CD tells the kernel, for the key of what is on it.
#[must_use]
pub fn kernel_arguments_on_cd(boot: &Boot) -> String {
    // Bochs's CPUID claims 3.5 GHz, its TSC counts instructions: without this, L1's second would last 3.5 billion of them.
    boot.command_line(
        Platform::Bochs,
        &[&format!("tsc_early_khz={}", INSTRUCTIONS_PER_SECOND / 1000)],
    )
}

/// Writes the CD from which L1 boots.
///
/// # Errors
///
/// [`BootError`]
pub fn write_cd(boot: &Boot, cd: &Path, progress: &Progress) -> Result<(), BootError> {
    let task = progress.task("write the CD for Bochs");
    let content = cd.with_extension("content");
    fs::create_dir_all(&content).map_err(io_error(format!("make {}", content.display())))?;
    let place = |from: &Path, name: &str| {
        fs::copy(from, content.join(name)).map_err(io_error(format!("copy {} to the CD", from.display())))
    };
    place(Path::new(ISOLINUX), "isolinux.bin")?;
    place(Path::new(LDLINUX), "ldlinux.c32")?;
    place(&boot.kernel, "vmlinuz")?;
    place(&boot.initrd, "initrd")?;
    let config = format!(
        "default l1\nprompt 0\nlabel l1\n kernel vmlinuz\n append initrd=initrd {}\n",
        kernel_arguments_on_cd(boot)
    );
    fs::write(content.join("isolinux.cfg"), config).map_err(io_error("write isolinux.cfg"))?;
    Program::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o"])
        .arg(cd)
        .args([
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
        ])
        .arg(&content)
        .run(&task)?;
    fs::remove_dir_all(&content).map_err(io_error("remove the CD's folder"))?;
    task.done();
    Ok(())
}
