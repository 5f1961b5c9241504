// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's modules in L1: which are loaded and with which parameters.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use kvmi_lab_control::{Backend, PLATFORM, Platform};
use rustix::system::{delete_module, finit_module};

/// Whose KVM modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Ours, under `/modules/kvmi`.
    Kvmi,
    /// A KVM without introspection that is not the distribution's, under `/modules/plain`.
    Plain,
    /// The distribution's, under `/modules/stock`.
    Stock,
}

impl Origin {
    fn folder(self) -> &'static str {
        match self {
            Self::Kvmi => "/modules/kvmi",
            Self::Plain => "/modules/plain",
            Self::Stock => "/modules/stock",
        }
    }

    /// Those that L1 loads by itself: what is under test, where its image has that.
    #[must_use]
    pub fn under_test() -> Self {
        let is_there = |origin: &Self| Path::new(origin.folder()).join("kvm.ko").exists();
        [Self::Kvmi, Self::Plain]
            .into_iter()
            .find(is_there)
            .unwrap_or(Self::Stock)
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

/// What this L1 runs in, as L0 wrote on the kernel's command line.
///
/// # Errors
///
/// No such word there, or one that is none.
pub fn platform() -> io::Result<Platform> {
    let text = fs::read_to_string("/proc/cmdline")?;
    let mut words = text.split_whitespace();
    let word = words.find_map(|w| w.strip_prefix(PLATFORM)?.strip_prefix('='));
    let word = word.ok_or_else(|| io::Error::other(format!("no {PLATFORM}= on the kernel's command line")))?;
    word.parse().map_err(io::Error::other)
}

/// Loads what KVM and its vendor module for a back end need of other modules, as the file `/modules/dependencies` says.
///
/// # Errors
///
/// No line for that vendor module; those of finit_module(2).
pub fn load_dependencies(backend: Backend) -> io::Result<()> {
    let text = fs::read_to_string("/modules/dependencies")?;
    let vendor = vendor_module(backend);
    let mut lines = text.lines().map(str::split_whitespace);
    let names = lines.find_map(|mut words| (words.next() == Some(vendor)).then_some(words));
    let names = names.ok_or_else(|| io::Error::other(format!("/modules/dependencies has no line for {vendor}")))?;
    for name in names {
        load(&Path::new("/modules").join(format!("{name}.ko")), "")?;
    }
    Ok(())
}

/// Loads kvm.ko and the vendor module. `introspection` is the parameter of ours; others have none.
///
/// # Errors
///
/// Those of finit_module(2), with the file's name.
pub fn load_kvm(origin: Origin, backend: Backend, introspection: bool) -> io::Result<()> {
    let folder = Path::new(origin.folder());
    let parameters = match (origin, introspection) {
        (Origin::Kvmi, true) => "introspection=1",
        (Origin::Kvmi, false) => "introspection=0",
        (Origin::Plain | Origin::Stock, _) => "",
    };
    load(&folder.join("kvm.ko"), parameters)?;
    let vendor_parameters = match (backend, platform()?) {
        // Bochs 3.0 refuses the address of any posted-interrupt descriptor, and then every entry with a LAPIC fails.
        (Backend::Vmx, Platform::Bochs) => "enable_apicv=0",
        _ => "",
    };
    load_vendor(origin, backend, vendor_parameters)
}

fn load_vendor(origin: Origin, backend: Backend, parameters: &str) -> io::Result<()> {
    let module = Path::new(origin.folder()).join(vendor_module(backend));
    load(&module.with_extension("ko"), parameters)
}

/// Loads the vendor module under test anew such that KVM shadows the guest's page tables.
///
/// # Errors
///
/// Those of unloading and loading.
pub fn without_nested_paging(backend: Backend) -> io::Result<()> {
    unload(vendor_module(backend))?;
    let parameters = match backend {
        Backend::Svm => "npt=0",
        Backend::Vmx => "ept=0 enable_apicv=0",
    };
    load_vendor(Origin::under_test(), backend, parameters)
}

/// Loads kvm-intel under test anew such that KVM emulates what a CPU without unrestricted guest cannot run.
///
/// # Errors
///
/// Those of unloading and loading.
pub fn without_unrestricted_guest() -> io::Result<()> {
    let vendor = vendor_module(Backend::Vmx);
    unload(vendor)?;
    load_vendor(
        Origin::under_test(),
        Backend::Vmx,
        "unrestricted_guest=0 enable_apicv=0",
    )
}

/// Has KVM emulate each instruction that stands behind the prefix for it, in any guest.
///
/// # Errors
///
/// Those of write(2) to kvm.ko's parameter.
pub fn emulate_by_prefix() -> io::Result<()> {
    fs::write("/sys/module/kvm/parameters/force_emulation_prefix", "1")
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

/// Where the modules that have to do with KVM are in memory, for a debugger: a line each, e.g. `kvm .text=0xffffffffc0201000 .bss=0x…`.
///
/// # Errors
///
/// No module of that name, or no right to read where it is.
pub fn places(backend: Backend) -> io::Result<Vec<String>> {
    let vendor = vendor_module(backend).replace('-', "_");
    let place = |module: &str| {
        let mut line = module.to_owned();
        for section in [".text", ".rodata", ".data", ".bss"] {
            let address = fs::read_to_string(format!("/sys/module/{module}/sections/{section}"))?;
            line += &format!(" {section}={}", address.trim());
        }
        Ok(line)
    };
    ["kvm", &vendor].into_iter().map(place).collect()
}

/// Loads `/modules/planted.ko`, which does what a kernel must not do.
///
/// # Errors
///
/// Those of finit_module(2).
pub fn load_planted(what: &str) -> io::Result<()> {
    load(Path::new("/modules/planted.ko"), &format!("what={what}"))
}

fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("load {}: {e}", path.display()));
    let file = File::open(path).map_err(named)?;
    finit_module(&file, &CString::new(parameters)?, 0).map_err(|e| named(e.into()))
}
