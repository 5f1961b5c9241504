// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's modules in L1: which are loaded and with which parameters.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use kvmi_lab_control::Backend;
use rustix::system::{delete_module, finit_module};

/// Whose KVM modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Ours, under `/modules/kvmi`.
    Kvmi,
    /// The distribution's, under `/modules/stock`.
    Stock,
}

impl Origin {
    fn folder(self) -> &'static str {
        match self {
            Self::Kvmi => "/modules/kvmi",
            Self::Stock => "/modules/stock",
        }
    }

    /// Whether the image of L1 has them.
    #[must_use]
    pub fn is_there(self) -> bool {
        Path::new(self.folder()).join("kvm.ko").exists()
    }
}

/// The vendor module's file name for a back end, without its ending.
#[must_use]
pub fn vendor_module(backend: Backend) -> &'static str {
    match backend {
        Backend::Svm => "kvm-amd",
        Backend::Vmx => "kvm-intel",
    }
}

/// The back end of this CPU, by its vendor in `/proc/cpuinfo`.
///
/// # Errors
///
/// Another vendor, or no such file.
pub fn backend() -> io::Result<Backend> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    if text.contains("AuthenticAMD") {
        Ok(Backend::Svm)
    } else if text.contains("GenuineIntel") {
        Ok(Backend::Vmx)
    } else {
        Err(io::Error::other("this CPU is neither AMD's nor Intel's"))
    }
}

/// Loads `/modules/irqbypass.ko`.
///
/// # Errors
///
/// Those of finit_module(2).
pub fn load_irqbypass() -> io::Result<()> {
    load(Path::new("/modules/irqbypass.ko"), "")
}

/// Loads kvm.ko and the vendor module. `introspection` is the parameter of ours; the distribution's has none.
///
/// # Errors
///
/// Those of finit_module(2), with the file's name.
pub fn load_kvm(origin: Origin, backend: Backend, introspection: bool) -> io::Result<()> {
    let folder = Path::new(origin.folder());
    let parameters = match (origin, introspection) {
        (Origin::Kvmi, true) => "introspection=1",
        (Origin::Kvmi, false) => "introspection=0",
        (Origin::Stock, _) => "",
    };
    load(&folder.join("kvm.ko"), parameters)?;
    let vendor_parameters = match backend {
        Backend::Svm => "",
        // Bochs 3.0 refuses the address of any posted-interrupt descriptor, and then every entry with a LAPIC fails.
        Backend::Vmx => "enable_apicv=0",
    };
    load(
        &folder.join(vendor_module(backend)).with_extension("ko"),
        vendor_parameters,
    )
}

/// Unloads the vendor module and kvm.ko; fails if a VM still exists.
///
/// # Errors
///
/// Those of delete_module(2), with the module's name.
pub fn unload_kvm(backend: Backend) -> io::Result<()> {
    unload(vendor_module(backend))?;
    unload("kvm")
}

/// Unloads one module, by its file's name without the ending.
///
/// # Errors
///
/// Those of delete_module(2), with the module's name.
pub fn unload(name: &str) -> io::Result<()> {
    const O_NONBLOCK: i32 = 0o4000;
    let name = name.replace('-', "_");
    delete_module(&CString::new(name.clone())?, O_NONBLOCK)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("unload {name}: {e}")))
}

/// How many VMs and open files hold the vendor module.
///
/// # Errors
///
/// No such file.
pub fn vendor_references(backend: Backend) -> io::Result<u64> {
    let name = vendor_module(backend).replace('-', "_");
    let text = fs::read_to_string(format!("/sys/module/{name}/refcnt"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("load {}: {e}", path.display()));
    let file = File::open(path).map_err(named)?;
    finit_module(&file, &CString::new(parameters)?, 0).map_err(|e| named(e.into()))
}
